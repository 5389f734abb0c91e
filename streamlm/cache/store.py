"""Where the stream stands, and the tensors in which the keys and values of like layers lie side by side."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from streamlm.cache.plan import DecodePlan, Padding
from streamlm.config import StreamConfig


@dataclass
class StreamState:
    """Where the stream stands, for all layers of a cache."""

    n_seen: int = 0  # tokens ever fed, pads counted
    shift: int = 0  # token t was rotated as position t - shift
    padding: Padding = field(default_factory=Padding)

    def reset(self) -> None:
        """Forget the stream."""
        self.n_seen, self.shift, self.padding = 0, 0, Padding()


Signature = tuple[int, int, int, int, torch.dtype, torch.device]


def signature(keys: Tensor, values: Tensor) -> Signature:
    """Return what layers of a store share: batch, heads, sizes D and Dv, dtype, device."""
    batch, heads, _, size = keys.shape
    return batch, heads, size, values.shape[3], keys.dtype, keys.device


@contextmanager
def reserving(cfg: StreamConfig, states: Tensor) -> Iterator[None]:
    """Raise ValueError if the block finds no memory for slots of states like these (B, Hkv, T, D)."""
    try:
        yield
    except RuntimeError as error:  # what torch raises for a GPU, for the CPU, and for sizes beyond any memory
        raise ValueError(
            f"there is no memory on {states.device} for the keys and values of {cfg.capacity:,} tokens in "
            f"{len(states):,} rows; use a smaller window_size, or fewer rows"
        ) from error


class Store:
    """Keys and values of like layers on one device, in tensors of all these layers.

    ::

        slot   0 .. n_sink-1 | n_sink .. capacity-1
        token  0 .. n_sink-1 | token u in slot n_sink + (u - n_sink) % window_size

    Tokens are counted from the row's first real one. The keys in the sink slots are rotated for every
    decoding step, from the copy `sinks` that is never rotated.

    Args:
        cfg: geometry of the layers.
        n_slots: `capacity`, or `n_sink` if the windows are elsewhere.
        n_layers: that may come.
        keys: (B, Hkv, T, D) for their shape, dtype and device.
        values: (B, Hkv, T, Dv) likewise.

    Raises:
        ValueError: if there is no memory for them.
    """

    def __init__(self, cfg: StreamConfig, n_slots: int, n_layers: int, keys: Tensor, values: Tensor) -> None:
        def slots(states: Tensor, count: int) -> Tensor:
            return states.new_zeros(n_layers, *states.shape[:2], count, states.shape[3])

        self.cfg, self.n_slots = cfg, n_slots
        self.members: list[int] = []  # the layers of the model that are here, in order
        with reserving(cfg, keys):
            self._set(slots(keys, n_slots), slots(values, n_slots), slots(keys, cfg.n_sink))

    def _set(self, keys: Tensor, values: Tensor, sinks: Tensor) -> None:
        self.keys, self.values, self.sinks = keys, values, sinks  # (L, B, Hkv, slots, D)
        self.of_layer: list[tuple[Tensor, Tensor, Tensor]]  # views (B, Hkv, slots, D)
        self.of_layer = list(zip(keys, values, sinks, strict=True))
        self.signature = signature(keys[0], values[0])
        self.key_slots: tuple[Tensor, ...] = ()  # of the new token, (B, Hkv, 1, D) for each layer
        self.value_slots: tuple[Tensor, ...] = ()

    def admit(self, layer_idx: int) -> int:
        """Return the place here of a layer of the model."""
        self.members.append(layer_idx)
        return len(self.members) - 1

    @torch.inference_mode(False)
    def trim(self) -> None:
        """Free the room of layers that turned out to be on another device."""
        if len(self.members) < len(self.keys):
            self._set(*(x[: len(self.members)].clone() for x in (self.keys, self.values, self.sinks)))

    @torch.inference_mode(False)
    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order, at the same addresses if their number stays."""
        tensors = (self.keys, self.values, self.sinks)
        chosen = [x.index_select(1, rows.to(x.device)) for x in tensors]
        if len(rows) != self.keys.shape[1]:
            self._set(*chosen)
            return
        for stored, new in zip(tensors, chosen, strict=True):
            stored.copy_(new)

    def begin_step(self, plans: Sequence[DecodePlan]) -> None:
        """Rotate the sinks to where the new token sees them, and lay out the slots that it goes to.

        Args:
            plans: of every layer here, in order; layers of one kind have the same.
        """
        if self.cfg.n_sink:
            stored, left = self.keys.narrow(3, 0, self.cfg.n_sink), list(range(len(plans)))
            while left:
                plan = plans[left[0]]
                alike = [i for i in left if plans[i] is plan]
                left = [i for i in left if plans[i] is not plan]
                rows = slice(None) if len(alike) == len(plans) else alike
                sinks, rotation = self.sinks[rows], plan.sink_rotation
                stored[rows] = sinks if rotation is None else rotation.apply(sinks)
        self.lay_out(plans[0].slot)

    def lay_out(self, slot: int | Tensor) -> None:
        """Find the slots of a new token, where they are the same in all rows."""
        if isinstance(slot, int) and self.n_slots == self.cfg.capacity:
            self.key_slots = self.keys.narrow(3, slot, 1).unbind()
            self.value_slots = self.values.narrow(3, slot, 1).unbind()

    @property
    def device(self) -> torch.device:
        """Where the slots are."""
        return self.keys.device

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.keys.nbytes + self.values.nbytes + self.sinks.nbytes
