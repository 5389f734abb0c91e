"""`SinkCache`: the keys and values of the attention sinks and of the most recent tokens."""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin

from streamlm.attention import QUERY_BLOCK
from streamlm.config import StreamConfig
from streamlm.rope import Rotary, rotation
from streamlm.steps import CacheStep, ChunkStep, DecodeStep, Padding
from streamlm.storage import Store, kind

# The model is given positions below this, or below twice the capacity: at 16,384 a float32 angle is good to
# 0.001 rad, at 4 M it is off by 0.064.
POSITION_LIMIT = 16_384

UNPREPARED = (
    "SinkCache was given to a model that is not prepared for it; load the model with "
    "streamlm.models.load_model, or run it inside `with streamlm.models.prepare(model):`"
)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Return (B, H, n, D) of x (B, H, T, D), by one index (n,) for all rows or (B, n) for each."""
    if index.ndim == 1:
        return x.index_select(2, index)
    return torch.take_along_dim(x, index[:, None, :, None], dim=2)


def put(x: Tensor, index: Tensor, new: Tensor) -> None:
    """Write new (B, H, n, D) in place to x (B, H, T, D), at `index` (n,) or (B, n)."""
    if index.ndim == 1:
        x.index_copy_(2, index, new.detach())
    else:
        x.scatter_(2, index[:, None, :, None].expand_as(new), new.detach())


class SinkLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's rows of a `Store`, and how many tokens it has seen."""

    keys: Tensor  # (B, Hkv, capacity, D)
    values: Tensor  # (B, Hkv, capacity, Dv)
    sinks: Tensor  # (B, Hkv, n_sink, D) keys as written

    def __init__(
        self, cfg: StreamConfig, stores: list[Store], n_alike: int, *, is_sliding: bool = False
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self.stores = stores  # of the cache
        self.n_alike = n_alike  # layers of this geometry
        self.is_sliding = is_sliding
        self.n_seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take a place in the store of layers like this one, for states like these (B, Hkv, T, D)."""
        alike = (s for s in self.stores if s.cfg == self.cfg and s.like == kind(key_states))
        store = next(alike, None)
        if store is None:
            store = Store(self.cfg, self.n_alike, key_states, value_states)
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
        store, given = self.store, (batch, heads, size, key_states.dtype, key_states.device)
        if given != store.like:
            raise ValueError(
                f"SinkCache holds (batch, heads, size, dtype, device) {store.like} and was given {given}; "
                "use one cache per model and batch, or reset() it and change nothing else"
            )
        self.n_seen += n_new
        if isinstance(plan, DecodeStep):
            if key_states.requires_grad:
                key_states, value_states = key_states.detach(), value_states.detach()
            if isinstance(plan.slot, int):
                store.key_slots[self.place].copy_(key_states)
                store.value_slots[self.place].copy_(value_states)
            else:
                put(self.keys, plan.slot, key_states)
                put(self.values, plan.slot, value_states)
            if plan.n_held == self.cfg.capacity:
                return self.keys, self.values
            return self.keys[:, :, : plan.n_held], self.values[:, :, : plan.n_held]
        keys = self._pass(self.keys, self.sinks, key_states, plan)
        values = self._pass(self.values, self.values[:, :, : self.cfg.n_sink], value_states, plan)
        return keys, values

    def _pass(self, stored: Tensor, sinks: Tensor, new: Tensor, plan: ChunkStep) -> Tensor:
        sinks_after = take(torch.cat((sinks, new), dim=2), plan.sinks)
        seen = torch.cat((sinks_after, take(stored, plan.band), new), dim=2)
        sinks[:, :, : sinks_after.shape[2]].copy_(sinks_after.detach())
        put(stored, plan.slots, new[:, :, new.shape[2] - plan.slots.shape[-1] :])
        return seen

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


class SinkCache(Cache):  # type: ignore[misc]
    """A transformers cache of fixed size that keeps `n_sink` first and `window_size` most recent tokens.

    Layers with a sliding window of their own keep that window and no sinks.

    Args:
        config: of the model.
        n_sink: first tokens, never evicted; with left padding, each row's own first real tokens.
        window_size: most recent tokens, the current one included.
        position_limit: positions given to the model stay below this, or below twice the capacity.
        query_block: queries per attention block; changes speed and nothing else.

    Raises:
        ValueError: if a size is out of range or the positions of the model cannot be honoured; when used, if
            the model is not prepared.

    Source: arXiv:2309.17453, section 3.2. Window keys keep the phase they were written with and are turned
    back together once the position limit is reached; the paper's code turns them anew at every token.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        n_sink: int = 4,
        window_size: int = 1020,
        *,
        position_limit: int = POSITION_LIMIT,
        query_block: int = QUERY_BLOCK,
    ) -> None:
        self.cfg = StreamConfig(n_sink=n_sink, window_size=window_size)
        self.stores: list[Store] = []
        windows = layer_windows(config)
        self.geometries = tuple(
            self.cfg if window is None else StreamConfig(n_sink=0, window_size=window) for window in windows
        )
        layers = [
            SinkLayer(cfg, self.stores, self.geometries.count(cfg), is_sliding=window is not None)
            for cfg, window in zip(self.geometries, windows, strict=True)
        ]
        self.capacity = max(cfg.capacity for cfg in self.geometries)
        self.position_limit = max(position_limit, 2 * self.capacity)
        self.query_block = query_block
        self.shift = 0  # token t was rotated as position t - shift
        self.step: CacheStep | None = None
        self.padding = Padding()
        super().__init__(layers=layers)

    def begin(self, n_new: int, rotary: Rotary, dtype: torch.dtype, mask: Tensor | None) -> CacheStep:
        """Plan the pass of `n_new` tokens that comes next.

        Args:
            n_new: tokens of the pass.
            rotary: how the model rotates.
            dtype: of rotations, at least float32.
            mask: (B, n) attention mask with the new tokens last, or None.
        """
        n_past = self.get_seq_length()
        self.padding.read(mask, n_past, n_new)
        self._rebase(n_past, n_new, rotary, dtype)
        self.step = CacheStep(
            n_past=n_past,
            n_new=n_new,
            shift=self.shift,
            geometries=self.geometries,
            padding=self.padding,
            rotary=rotary,
            dtype=dtype,
            block=self.query_block,
        )
        for store in self.stores:
            if len(store.holders) < store.n_layers:
                store.trim()
            plan = self.step.layer(store.cfg, store.device)
            if isinstance(plan, DecodeStep):
                store.open(plan, interleaved=rotary.interleaved)
        return self.step

    def _rebase(self, n_past: int, n_new: int, rotary: Rotary, dtype: torch.dtype) -> None:
        """Move the stream back to positions that start at the capacity, if it is about to pass the limit."""
        full = n_past - self.padding.most >= self.capacity
        if not full or n_past + n_new - self.shift <= self.position_limit:
            return
        shift = n_past - (self.capacity - 1)
        back = torch.tensor([self.shift - shift], device=rotary.inv_freq.device)
        cos, sin = rotation(rotary.inv_freq, back, dtype)
        for store in self.stores:
            store.turn_ring(cos, sin, interleaved=rotary.interleaved)
        self.shift = shift

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """See `SinkLayer.update`; the step is the one that `begin` planned."""
        seen: tuple[Tensor, Tensor] = self.layers[layer_idx].update(key_states, value_states, self.step)
        return seen

    def reset(self) -> None:
        """Forget the stream; the memory stays."""
        super().reset()
        self.shift = 0
        self.step = None
        self.padding = Padding()

    def _select(self, rows: Tensor) -> None:
        for store in self.stores:
            store.select(rows)
        self.padding.select(rows)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows, as beam search asks."""
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times, copies side by side."""
        batch = self.layers[0].keys.shape[0]
        self._select(torch.arange(batch).repeat_interleave(repeats))

    def crop(self, max_length: int) -> None:
        """Forget the last tokens, as assisted decoding asks; only what was never overwritten can come back.

        Args:
            max_length: tokens to keep; negative: tokens to forget.

        Raises:
            ValueError: if the window already dropped tokens that the shorter stream would see.
        """
        n_seen = self.get_seq_length()
        kept = n_seen + max_length if max_length <= 0 else min(max_length, n_seen)
        if kept < n_seen and n_seen - self.padding.least > min(cfg.capacity for cfg in self.geometries):
            raise ValueError(
                f"SinkCache cannot go back from {n_seen} to {kept} tokens: the window has dropped what the "
                "shorter stream would see; use a larger window, or decode without an assistant"
            )
        for layer in self.layers:
            layer.n_seen = kept

    @property
    def n_held(self) -> int:
        """Tokens held in a full-attention layer, of the row that holds most."""
        n_seen: int = self.get_seq_length()
        return min(n_seen - self.padding.least, self.cfg.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes in memory: keys and values of every slot, and the unrotated sink keys."""
        return sum(store.nbytes for store in self.stores)


def layer_windows(config: PretrainedConfig) -> list[int | None]:
    """Return the sliding window of every layer, in tokens, or None for full attention.

    Raises:
        ValueError: if a layer is of another kind, or the positions are not rotary with fixed frequencies.
    """
    config = config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    default = "full_attention" if window is None else "sliding_attention"
    kinds = getattr(config, "layer_types", None) or [default] * config.num_hidden_layers
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    rope = getattr(config, "rope_parameters", None)
    rope_type = (rope or {}).get("rope_type", "default" if rope else "none")
    if unknown or rope_type not in LENGTH_INDEPENDENT or getattr(config, "alibi", False):
        what = f"layers of kind {', '.join(sorted(unknown))}" if unknown else f"rope type {rope_type!r}"
        raise ValueError(f"SinkCache does not know the positions of {config.model_type}: {what}; {SUPPORTED}")
    return [window if kind == "sliding_attention" else None for kind in kinds]


LENGTH_INDEPENDENT = ("default", "linear", "llama3", "yarn")
SUPPORTED = (
    "supported are models with one rotary embedding of fixed frequencies "
    f"(rope types {', '.join(LENGTH_INDEPENDENT)}) and full or sliding attention in every layer, "
    "such as Llama, Mistral, Qwen2, Qwen3, Phi-3, StableLM and GPT-NeoX / Pythia"
)
