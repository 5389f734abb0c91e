"""The slots of a cache: one tensor for the keys of all like layers, one for their values."""

from typing import Protocol

import torch
from torch import Tensor

from streamlm.config import StreamConfig
from streamlm.rope import rotate
from streamlm.steps import DecodeStep


def kind(states: Tensor) -> tuple[int, int, int, torch.dtype, torch.device]:
    """Return what all keys of a store share: batch, heads, size, dtype, device of (B, H, T, D)."""
    batch, heads, _, size = states.shape
    return batch, heads, size, states.dtype, states.device


class Holder(Protocol):
    """A layer of a cache: its rows of a `Store`."""

    cfg: StreamConfig
    keys: Tensor  # (B, Hkv, capacity, D)
    values: Tensor  # (B, Hkv, capacity, Dv)
    sinks: Tensor  # (B, Hkv, n_sink, D) keys as written


class Store:
    """Keys and values of like layers on one device.

    ::

        slot   0 .. n_sink-1 | n_sink .. capacity-1
        token  0 .. n_sink-1 | token u in slot n_sink + (u - n_sink) % window_size

    Tokens are counted from the row's first real one. The keys in the sink slots are turned anew for every
    decoding step, from the copy `sinks` that is never turned.

    Args:
        cfg: geometry of the layers.
        n_layers: that may come.
        keys: (B, Hkv, T, D) for their shape, dtype and device.
        values: (B, Hkv, T, Dv) likewise.
    """

    @torch.inference_mode(False)  # tensors born in inference mode could not be written outside it
    def __init__(self, cfg: StreamConfig, n_layers: int, keys: Tensor, values: Tensor) -> None:
        def slots(states: Tensor, count: int) -> Tensor:
            return states.new_zeros(n_layers, *states.shape[:2], count, states.shape[3])

        self.cfg = cfg
        self.holders: list[Holder] = []
        # (L, B, Hkv, slots, D)
        self._hold(slots(keys, cfg.capacity), slots(values, cfg.capacity), slots(keys, cfg.n_sink))
        self.key_slots: tuple[Tensor, ...] = ()  # of the new token, (B, Hkv, 1, D) for each layer
        self.value_slots: tuple[Tensor, ...] = ()

    def admit(self, holder: Holder) -> int:
        """Give the next layer's place to `holder`; return its number."""
        self.holders.append(holder)
        self._hold(self.keys, self.values, self.sinks)
        return len(self.holders) - 1

    def _hold(self, *tensors: Tensor) -> None:
        self.keys, self.values, self.sinks = tensors
        self.n_layers, self.like = len(self.keys), kind(self.keys[0])
        for holder, *parts in zip(self.holders, *tensors, strict=False):
            holder.keys, holder.values, holder.sinks = parts

    @torch.inference_mode(False)
    def trim(self) -> None:
        """Free the places of layers that turned out to be on another device."""
        self._hold(*(x[: len(self.holders)].clone() for x in (self.keys, self.values, self.sinks)))

    @torch.inference_mode(False)
    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order, at the same addresses if their number stays."""
        chosen = [x.index_select(1, rows.to(x.device)) for x in (self.keys, self.values, self.sinks)]
        if len(rows) == self.keys.shape[1]:
            for held, new in zip((self.keys, self.values, self.sinks), chosen, strict=True):
                held.copy_(new)
        else:
            self._hold(*chosen)

    def open(self, step: DecodeStep, *, interleaved: bool) -> None:
        """Turn the sinks to where the new token must see them, and lay out the slots that it goes to."""
        if step.sink_turn is not None:
            turned = rotate(self.sinks, *step.sink_turn, interleaved=interleaved)
            self.keys.narrow(3, 0, self.cfg.n_sink).copy_(turned)
        if isinstance(step.slot, int):
            self.key_slots = self.keys.narrow(3, step.slot, 1).unbind()
            self.value_slots = self.values.narrow(3, step.slot, 1).unbind()

    def turn_ring(self, cos: Tensor, sin: Tensor, *, interleaved: bool) -> None:
        """Turn the keys behind the sinks in place, in the precision of `cos`."""
        cos, sin = cos.to(self.keys.device), sin.to(self.keys.device)
        for holder in self.holders:  # one at a time, for the memory
            ring = holder.keys[:, :, self.cfg.n_sink :]
            ring.copy_(rotate(ring, cos, sin, interleaved=interleaved))

    @property
    def device(self) -> torch.device:
        """Where the slots are."""
        return self.keys.device

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.keys.nbytes + self.values.nbytes + self.sinks.nbytes
