"""The layers of a cache, and the tensors in which like layers lie side by side."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from streamlm.config import StreamConfig
from streamlm.cache.ring import NarrowRing, put, take
from streamlm.cache.rope import rotate
from streamlm.cache.plan import CacheStep, ChunkStep, DecodeStep

UNPREPARED = (
    "SinkCache was given to a model that is not prepared for it; load the model with "
    "streamlm.cache.models.load_model, or run it inside `with streamlm.cache.models.prepare(model):`"
)


def kind(states: Tensor) -> tuple[int, int, int, torch.dtype, torch.device]:
    """Return what all keys of a store share: batch, heads, size, dtype, device of (B, H, T, D)."""
    batch, heads, _, size = states.shape
    return batch, heads, size, states.dtype, states.device


class SinkLayer(CacheLayerMixin):  # type: ignore[misc]
    """The part of one layer in a `Store`, and how many tokens it has seen."""

    keys: Tensor  # (B, Hkv, slots, D)
    values: Tensor  # (B, Hkv, slots, Dv)
    sinks: Tensor  # (B, Hkv, n_sink, D) keys as written

    def __init__(
        self, cfg: StreamConfig, stores: list["Store"], n_alike: int, *, is_sliding: bool = False
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self.stores = stores  # of the cache
        self.n_alike = n_alike  # layers of this geometry
        self.is_sliding = is_sliding
        self.n_seen = 0
        self.n_slots = cfg.capacity  # in the store
        self.rings: tuple[NarrowRing, ...] = ()  # of keys and values, if not in the store

    @torch.inference_mode(False)  # tensors born in inference mode could not be written outside it
    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take a place in the store of layers like this one, for states like these (B, Hkv, T, D)."""
        alike = (s for s in self.stores if s.cfg == self.cfg and s.like == kind(key_states))
        store = next(alike, None)
        if store is None:
            store = Store(self.cfg, self.n_slots, self.n_alike, key_states, value_states)
            self.stores.append(store)
        self.store, self.place = store, store.admit(self)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, step: CacheStep | None
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values; return those that the new queries see.

        Args:
            key_states: (B, Hkv, T, D) rotated with the positions of the step.
            value_states: (B, Hkv, T, D).
            step: as the cache planned it.

        Returns:
            keys and values in the order of `StreamPlan`; of a decoding step, the slots as they lie.

        Raises:
            ValueError: if the step was not planned, or the states are not like those that are held.
        """
        batch, heads, n_new, size = key_states.shape
        if step is None or step.n_past != self.n_seen or step.n_new != n_new:
            raise ValueError(UNPREPARED)
        plan = step.layer(self.cfg, key_states.device)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            if isinstance(plan, DecodeStep):
                self.store.open(plan, interleaved=False)  # no sinks yet
        like, given = self.store.like, (batch, heads, size, key_states.dtype, key_states.device)
        if given != like:
            raise ValueError(
                f"SinkCache holds (batch, heads, size, dtype, device) {like} and was given {given}; "
                "use one cache per model and batch, or reset() it and change nothing else"
            )
        self.n_seen += n_new
        if isinstance(plan, DecodeStep):
            return self._decode(key_states.detach(), value_states.detach(), plan)
        return self._pass(key_states, value_states, plan)

    def _decode(self, key: Tensor, value: Tensor, plan: DecodeStep) -> tuple[Tensor, Tensor]:
        if isinstance(plan.slot, int):
            self.store.key_slots[self.place].copy_(key)
            self.store.value_slots[self.place].copy_(value)
        else:
            put(self.keys, plan.slot, key)
            put(self.values, plan.slot, value)
        if plan.n_held == self.cfg.capacity:
            return self.keys, self.values
        return self.keys[:, :, : plan.n_held], self.values[:, :, : plan.n_held]

    def _pass(self, keys: Tensor, values: Tensor, plan: ChunkStep) -> tuple[Tensor, Tensor]:
        seen = []
        sinks_of_values = self.values[:, :, : self.cfg.n_sink]
        for stored, sinks, new in ((self.keys, self.sinks, keys), (self.values, sinks_of_values, values)):
            seen.append(_join(sinks, take(stored, plan.band), new, new, plan))
            put(stored, plan.slots, _newest(new, plan))
        return seen[0], seen[1]

    def tensors(self) -> dict[str, Tensor]:
        """Return all that is held, by name, as it lies in memory."""
        return {"keys": self.keys, "values": self.values, "sinks": self.sinks}

    def turn_ring(self, cos: Tensor, sin: Tensor, *, interleaved: bool) -> None:
        """Turn the keys behind the sinks in place, in the precision of `cos`."""
        ring = self.keys[:, :, self.cfg.n_sink :]
        ring.copy_(rotate(ring, cos, sin, interleaved=interleaved))

    def get_seq_length(self) -> int:
        """Return the number of tokens seen, not held; left pads count."""
        return self.n_seen

    def get_max_cache_shape(self) -> int:
        """Return -1, as transformers says it of a cache that takes any number of tokens."""
        return -1

    get_max_length = get_max_cache_shape  # its name in newer transformers, seen in 5.23

    def get_mask_sizes(self, query: Tensor | int) -> tuple[int, int]:
        """Return key count and offset as if nothing was evicted; a prepared model builds no mask of it."""
        return self.n_seen + (query if isinstance(query, int) else query.shape[0]), 0

    def reset(self) -> None:
        """Forget the stream; the memory stays."""
        self.n_seen = 0


def _join(sinks: Tensor, past: Tensor, new: Tensor, new_in_band: Tensor, plan: ChunkStep) -> Tensor:
    """Return sinks | past of the band | new, having stored the sinks that are among the new."""
    sinks_after = take(torch.cat((sinks, new), dim=2), plan.sinks)
    seen = torch.cat((sinks_after, past, new_in_band), dim=2)
    sinks[:, :, : sinks_after.shape[2]].copy_(sinks_after.detach())
    return seen


def _newest(new: Tensor, plan: ChunkStep) -> Tensor:
    """Return those of the new tokens that outlive the pass."""
    return new[:, :, new.shape[2] - plan.slots.shape[-1] :]


class NarrowLayer(SinkLayer):
    """A layer that holds its window in fewer bits, and its sinks as they are.

    A key or value is rounded once, as it comes, for the query of its own token too, so that chunks and single
    tokens give the same losses. Keys are rounded again when the ring is turned to new positions, which
    happens to no key more often than twice.
    """

    def __init__(self, *args: Any, storage: torch.dtype, **options: Any) -> None:
        super().__init__(*args, **options)
        self.storage = storage
        self.n_slots = self.cfg.n_sink

    @torch.inference_mode(False)
    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """See `SinkLayer`; in the store are the sinks alone."""
        super().lazy_initialization(key_states, value_states)
        self.rings = tuple(
            NarrowRing(states, self.cfg.window_size, self.storage) for states in (key_states, value_states)
        )

    def _decode(self, key: Tensor, value: Tensor, plan: DecodeStep) -> tuple[Tensor, Tensor]:
        n_sink, seen = self.cfg.n_sink, []
        slot = torch.as_tensor(plan.slot, device=key.device) - n_sink
        for sinks, ring, new in zip((self.keys, self.values), self.rings, (key, value), strict=True):
            ring.put(slot if slot.ndim else slot[None], new)
            seen.append(torch.cat((sinks, ring.read(plan.n_held - n_sink)), dim=2))
        return seen[0], seen[1]

    def _pass(self, keys: Tensor, values: Tensor, plan: ChunkStep) -> tuple[Tensor, Tensor]:
        n_sink, seen = self.cfg.n_sink, []
        for sinks, ring, new in zip((self.sinks, self.values), self.rings, (keys, values), strict=True):
            seen.append(_join(sinks, ring.take(plan.band - n_sink), new, ring.round(new), plan))
            ring.put(plan.slots - n_sink, _newest(new, plan))
        return seen[0], seen[1]

    def tensors(self) -> dict[str, Tensor]:
        """See `SinkLayer`."""
        rings = zip(("key", "value"), self.rings, strict=True)
        own = {f"{name}_{part}": getattr(ring, part) for name, ring in rings for part in ("codes", "scales")}
        return super().tensors() | own

    def turn_ring(self, cos: Tensor, sin: Tensor, *, interleaved: bool) -> None:
        """See `SinkLayer`."""
        ring, window_size = self.rings[0], self.cfg.window_size
        turned = rotate(ring.read(window_size), cos, sin, interleaved=interleaved)
        ring.put(torch.arange(window_size, device=turned.device), turned)


class Store:
    """Keys and values of like layers on one device, in tensors of all these layers.

    ::

        slot   0 .. n_sink-1 | n_sink .. capacity-1
        token  0 .. n_sink-1 | token u in slot n_sink + (u - n_sink) % window_size

    Tokens are counted from the row's first real one. The keys in the sink slots are turned anew for every
    decoding step, from the copy `sinks` that is never turned.

    Args:
        cfg: geometry of the layers.
        n_slots: `capacity`, or `n_sink` if the windows are elsewhere.
        n_layers: that may come.
        keys: (B, Hkv, T, D) for their shape, dtype and device.
        values: (B, Hkv, T, Dv) likewise.
    """

    def __init__(self, cfg: StreamConfig, n_slots: int, n_layers: int, keys: Tensor, values: Tensor) -> None:
        def slots(states: Tensor, count: int) -> Tensor:
            return states.new_zeros(n_layers, *states.shape[:2], count, states.shape[3])

        self.cfg, self.n_slots = cfg, n_slots
        self.layers: list[SinkLayer] = []
        # (L, B, Hkv, slots, D)
        self._hold(slots(keys, n_slots), slots(values, n_slots), slots(keys, cfg.n_sink))
        self.key_slots: tuple[Tensor, ...] = ()  # of the new token, (B, Hkv, 1, D) for each layer
        self.value_slots: tuple[Tensor, ...] = ()

    def admit(self, layer: SinkLayer) -> int:
        """Give the next place to `layer`; return its number."""
        self.layers.append(layer)
        self._hold(self.keys, self.values, self.sinks)
        return len(self.layers) - 1

    def _hold(self, *tensors: Tensor) -> None:
        self.keys, self.values, self.sinks = tensors
        self.n_layers, self.like = len(self.keys), kind(self.keys[0])
        for layer, *parts in zip(self.layers, *tensors, strict=False):
            layer.keys, layer.values, layer.sinks = parts

    @torch.inference_mode(False)
    def trim(self) -> None:
        """Free the places of layers that turned out to be on another device."""
        self._hold(*(x[: len(self.layers)].clone() for x in (self.keys, self.values, self.sinks)))

    @torch.inference_mode(False)
    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order, at the same addresses if their number stays."""
        chosen = [x.index_select(1, rows.to(x.device)) for x in (self.keys, self.values, self.sinks)]
        if len(rows) == self.keys.shape[1]:
            for held, new in zip((self.keys, self.values, self.sinks), chosen, strict=True):
                held.copy_(new)
        else:
            self._hold(*chosen)
        for ring in self._rings():
            ring.select(rows)

    def _rings(self) -> Iterator[NarrowRing]:
        return (ring for layer in self.layers for ring in layer.rings)

    def open(self, step: DecodeStep, *, interleaved: bool) -> None:
        """Turn the sinks to where the new token must see them, and lay out the slots that it goes to."""
        if step.sink_turn is not None:
            turned = rotate(self.sinks, *step.sink_turn, interleaved=interleaved)
            self.keys.narrow(3, 0, self.cfg.n_sink).copy_(turned)
        if isinstance(step.slot, int) and self.n_slots == self.cfg.capacity:
            self.key_slots = self.keys.narrow(3, step.slot, 1).unbind()
            self.value_slots = self.values.narrow(3, step.slot, 1).unbind()

    def turn_ring(self, cos: Tensor, sin: Tensor, *, interleaved: bool) -> None:
        """Turn the keys behind the sinks in place, in the precision of `cos`."""
        cos, sin = cos.to(self.device), sin.to(self.device)
        for layer in self.layers:  # one at a time, for the memory
            layer.turn_ring(cos, sin, interleaved=interleaved)

    @property
    def device(self) -> torch.device:
        """Where the slots are."""
        return self.keys.device

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        rings = sum(ring.nbytes for ring in self._rings())
        return self.keys.nbytes + self.values.nbytes + self.sinks.nbytes + rings
