"""The layers of a cache.

Who owns what: the cache owns stores and layers; a `Store` owns tensors and knows no layer; a `SinkLayer`
has an index into one store (and, if quantised, its own rings); `StreamState` has what all layers share.
"""

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from transformers.cache_utils import CacheLayerMixin

from streamlm.cache.attention import attend_one
from streamlm.cache.plan import ChunkPlan, DecodePlan
from streamlm.cache.ring import QuantizedRing, put, take
from streamlm.cache.rope import Rotation
from streamlm.cache.store import Store, StreamState, reserving, signature
from streamlm.config import StreamConfig

ShapeAndType = tuple[tuple[int, ...], torch.dtype]


class SinkLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of a `SinkCache`: an index into a `Store` of layers like it.

    Args:
        layer_idx: of the layer in the model.
        cfg: geometry of the layer.
        state: of the cache.
        stores: of the cache; the layer adds one if none fits it.
        n_alike: layers of this geometry.
        is_sliding: whether the model has a sliding window here.
    """

    store: Store
    index: int  # in the store

    def __init__(
        self,
        layer_idx: int,
        cfg: StreamConfig,
        state: StreamState,
        stores: list[Store],
        n_alike: int,
        is_sliding: bool,
    ) -> None:
        self.layer_idx = layer_idx
        self.cfg, self.state, self.stores, self.n_alike = cfg, state, stores, n_alike
        self.is_sliding, self.is_initialized = is_sliding, False
        self.n_slots = cfg.capacity  # in the store

    @property
    def keys(self) -> Tensor:
        """(B, Hkv, slots, D)."""
        return self.store.of_layer[self.index][0]

    @property
    def values(self) -> Tensor:
        """(B, Hkv, slots, Dv)."""
        return self.store.of_layer[self.index][1]

    @property
    def sinks(self) -> Tensor:
        """(B, Hkv, n_sink, D) keys as written."""
        return self.store.of_layer[self.index][2]

    @torch.inference_mode(False)  # tensors born in inference mode could not be written outside it
    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Enter the store of layers like this one, for states like these (B, Hkv, T, D)."""
        like = signature(key_states, value_states)
        store = next((s for s in self.stores if (s.cfg, s.signature) == (self.cfg, like)), None)
        if store is None:
            store = Store(self.cfg, self.n_slots, self.n_alike, key_states, value_states)
            self.stores.append(store)
        self.store, self.index = store, store.admit(self.layer_idx)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, plan: DecodePlan | ChunkPlan
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values; return those that the new queries see.

        Args:
            key_states: (B, Hkv, T, D) rotated with the positions of the pass.
            value_states: (B, Hkv, T, Dv).
            plan: of the pass, for layers like this one.

        Returns:
            keys and values in the order of `AttentionPlan`; of a decoding step, the slots as they lie.

        Raises:
            ValueError: if the states are not like those that are stored.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            if isinstance(plan, DecodePlan):
                self.store.lay_out(plan.slot)  # no sink was seen before the first pass
        like = signature(key_states, value_states)
        if like != self.store.signature:
            raise ValueError(
                f"SinkCache holds (batch, heads, sizes of a key and a value, dtype, device) "
                f"{self.store.signature} and was given {like}; "
                "use one cache per model and batch, or reset() it and change nothing else"
            )
        if isinstance(plan, DecodePlan):
            return self._decode(key_states.detach(), value_states.detach(), plan)
        return self._pass(key_states, value_states, plan)

    def _decode(self, key: Tensor, value: Tensor, plan: DecodePlan) -> tuple[Tensor, Tensor]:
        keys, values, _ = self.store.of_layer[self.index]
        if isinstance(plan.slot, int):
            self.store.key_slots[self.index].copy_(key)
            self.store.value_slots[self.index].copy_(value)
        else:
            put(keys, plan.slot, key)
            put(values, plan.slot, value)
        if plan.n_held == self.cfg.capacity:
            return keys, values
        return keys[:, :, : plan.n_held], values[:, :, : plan.n_held]

    def _pass(self, keys: Tensor, values: Tensor, plan: ChunkPlan) -> tuple[Tensor, Tensor]:
        seen = []
        sink_values = self.values[:, :, : self.cfg.n_sink]
        for stored, sinks, new in ((self.keys, self.sinks, keys), (self.values, sink_values, values)):
            seen.append(_join(sinks, take(stored, plan.band), new, new, plan))
            put(stored, plan.slots, _newest(new, plan))
        return seen[0], seen[1]

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        plan: DecodePlan,
        scaling: float,
        **options: Any,
    ) -> Tensor:
        """Attend with one query per row to what `update` returned; see `attend_one`."""
        return attend_one(query, keys, values, plan.visible, scaling, **options)

    def tensors(self) -> dict[str, Tensor]:
        """Return all that is stored, by name, as it lies in memory."""
        return {"keys": self.keys, "values": self.values, "sinks": self.sinks}

    def load(self, stored: Mapping[str, Tensor]) -> None:
        """Take up what `tensors` of such a layer returned, on the device where it is to be.

        Raises:
            ValueError: if the layer would not hold such tensors.
        """
        keys, values = stored.get("keys"), stored.get("values")
        if keys is None or values is None or not (keys.ndim == values.ndim == 4):
            raise ValueError(f"the state has no layer {self.layer_idx}; it was made for another model")
        expected = self.stored_as(keys, values)  # before any memory is taken
        if other := stored.keys() - expected.keys():
            raise ValueError(
                f"the state holds {self.layer_idx}.{min(other)}, which this SinkCache does not have"
            )
        for name, like in expected.items():
            tensor = stored.get(name)
            if tensor is None or (tuple(tensor.shape), tensor.dtype) != like:
                raise ValueError(
                    f"the state of layer {self.layer_idx} does not fit this SinkCache in its {name}"
                )
        self.lazy_initialization(keys, values)
        for name, tensor in self.tensors().items():
            tensor.copy_(stored[name])

    def stored_as(self, keys: Tensor, values: Tensor) -> dict[str, ShapeAndType]:
        """Return shape and type of all that is stored, by name, for states like these (B, Hkv, T, D)."""
        rows, heads, _, size = keys.shape
        slots, n_sink = self.n_slots, self.cfg.n_sink
        return {
            "keys": ((rows, heads, slots, size), keys.dtype),
            "values": ((rows, heads, slots, values.shape[3]), keys.dtype),
            "sinks": ((rows, heads, n_sink, size), keys.dtype),
        }

    def rotate_window(self, rotation: Rotation) -> None:
        """Rotate the keys of the window in place, in the precision of `rotation`."""
        window = self.keys[:, :, self.cfg.n_sink :]
        window.copy_(rotation.apply(window))

    def select(self, rows: Tensor) -> None:
        """Keep these rows of what is not in the store, in this order."""

    @property
    def nbytes(self) -> int:
        """Bytes in memory outside of the store."""
        return 0

    def get_seq_length(self) -> int:
        """Return the number of tokens seen, not held; left pads count."""
        return self.state.n_seen

    def get_max_cache_shape(self) -> int:
        """Return -1, which in transformers means a cache that takes any number of tokens."""
        return -1

    get_max_length = get_max_cache_shape  # its name in newer transformers, seen in 5.23

    def get_mask_sizes(self, query: Tensor | int) -> tuple[int, int]:
        """Return key count and offset as if nothing was evicted; a prepared model builds no mask of it."""
        return self.state.n_seen + (query if isinstance(query, int) else query.shape[0]), 0

    def reset(self) -> None:
        """Do nothing: the cache forgets the stream, the memory stays."""


def _join(sinks: Tensor, past: Tensor, new: Tensor, new_in_band: Tensor, plan: ChunkPlan) -> Tensor:
    """Return sinks | past of the band | new, having stored the sinks that are among the new."""
    sinks_after = take(torch.cat((sinks, new), dim=2), plan.sinks)
    seen = torch.cat((sinks_after, past, new_in_band), dim=2)
    sinks[:, :, : sinks_after.shape[2]].copy_(sinks_after.detach())
    return seen


def _newest(new: Tensor, plan: ChunkPlan) -> Tensor:
    """Return those of the new tokens that outlive the pass."""
    return new[:, :, new.shape[2] - plan.slots.shape[-1] :]


def _reads_codes(ring: QuantizedRing) -> bool:
    """Return whether a kernel can attend to the codes of a ring as they lie.

    Not with gradients, which it does not give; and not while a step is traced to be compiled, since the trace
    would take what the kernel computes for constants.
    """
    return (
        ring.codes.device.type == "cuda"
        and ring.codes.dtype == torch.int8
        and ring.dtype != torch.float64
        and _has_triton()
        and not torch.is_grad_enabled()
        and get_proxy_mode() is None
    )


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


class QuantizedLayer(SinkLayer):
    """A layer that stores its window quantised, and its sinks as they are.

    A key or value is rounded once, on arrival, for the query of its own token too, so that chunks and single
    tokens give the same losses. Keys are rounded again when the stream is moved back to small positions,
    which happens to no key more often than twice.
    """

    def __init__(self, *args: Any, kv_dtype: torch.dtype) -> None:
        super().__init__(*args)
        self.kv_dtype = kv_dtype
        self.n_slots = self.cfg.n_sink
        self.rings: tuple[QuantizedRing, ...] = ()  # of keys, of values
        # Whether attention is given the very tensors that `update` returns: some models repeat or join them.
        self.is_passed_on: bool | None = None  # not known yet
        self._returned: tuple[Tensor, Tensor] | None = None

    @torch.inference_mode(False)
    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """See `SinkLayer`; in the store are the sinks alone."""
        super().lazy_initialization(key_states, value_states)
        with reserving(self.cfg, key_states):
            self.rings = tuple(
                QuantizedRing(states, self.cfg.window_size, self.kv_dtype)
                for states in (key_states, value_states)
            )

    def _decode(self, key: Tensor, value: Tensor, plan: DecodePlan) -> tuple[Tensor, Tensor]:
        n_sink, seen = self.cfg.n_sink, []
        slot = plan.slot - n_sink
        at = torch.full((1,), slot, device=key.device) if isinstance(slot, int) else slot
        for sinks, ring, new in zip((self.keys, self.values), self.rings, (key, value), strict=True):
            ring.put(at, new)
            if not (self.is_passed_on and _reads_codes(ring)):
                sinks = torch.cat((sinks, ring.read(plan.n_held - n_sink)), dim=2)
            seen.append(sinks)
        if self.is_passed_on is None:
            self._returned = seen[0], seen[1]
        return seen[0], seen[1]

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        plan: DecodePlan,
        scaling: float,
        **options: Any,
    ) -> Tensor:
        """See `SinkLayer`; where a kernel reads the codes, keys and values are those of the sinks alone."""
        if self._returned is not None:
            self.is_passed_on = keys is self._returned[0] and values is self._returned[1]
            self._returned = None
        if keys.shape[2] == plan.n_held:
            return super().attend(query, keys, values, plan, scaling, **options)
        from streamlm.cache.quantized_attention import attend_codes  # here: it loads Triton

        key_ring, value_ring = self.rings
        return attend_codes(
            query,
            (keys, values),
            (key_ring.codes, value_ring.codes),
            (key_ring.scales, value_ring.scales),
            plan.n_held - self.cfg.n_sink,
            plan.visible,
            scaling,
            **options,
        )

    def _pass(self, keys: Tensor, values: Tensor, plan: ChunkPlan) -> tuple[Tensor, Tensor]:
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

    def stored_as(self, keys: Tensor, values: Tensor) -> dict[str, ShapeAndType]:
        """See `SinkLayer`."""
        rows, heads = keys.shape[:2]
        n_scales = 1 if self.kv_dtype == torch.int8 else 0
        codes = {}
        for name, states in (("key", keys), ("value", values)):
            slots = (rows, heads, self.cfg.window_size)
            codes[f"{name}_codes"] = ((*slots, states.shape[3]), self.kv_dtype)
            codes[f"{name}_scales"] = ((*slots, n_scales), torch.float32)
        return super().stored_as(keys, values) | codes

    def rotate_window(self, rotation: Rotation) -> None:
        """See `SinkLayer`."""
        ring, window_size = self.rings[0], self.cfg.window_size
        rotated = rotation.apply(ring.read(window_size))
        ring.put(torch.arange(window_size, device=rotated.device), rotated)

    def select(self, rows: Tensor) -> None:
        """See `SinkLayer`."""
        for ring in self.rings:
            ring.select(rows)

    @property
    def nbytes(self) -> int:
        """See `SinkLayer`."""
        return sum(ring.nbytes for ring in self.rings)
