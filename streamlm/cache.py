"""`SinkCache`: the keys and values of the attention sinks and of the most recent tokens."""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin

from streamlm.attention import QUERY_BLOCK, DecodePlan
from streamlm.config import StreamConfig
from streamlm.rope import Rotary, rotate, rotation
from streamlm.steps import CacheStep, LayerStep, Padding

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
    """Keys and values of one layer: the sinks, and behind them a ring that is overwritten in place.

    ::

        slot   0 .. n_sink-1 | n_sink .. capacity-1
        token  0 .. n_sink-1 | token u in slot n_sink + (u - n_sink) % window_size

    Tokens are counted from the row's first real one. The keys in the sink slots are turned anew for every
    decoding step, from the copy `sinks` that is never turned.
    """

    sinks: Tensor  # (B, Hkv, n_sink, D)

    def __init__(self, cfg: StreamConfig, *, is_sliding: bool = False) -> None:
        super().__init__()
        self.cfg = cfg
        self.is_sliding = is_sliding
        self.n_seen = 0

    @torch.inference_mode(False)  # tensors born in inference mode could not be written outside it
    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate `capacity` slots like `key_states` and `value_states`, (B, Hkv, T, D)."""

        def slots(states: Tensor, count: int) -> Tensor:
            return states.new_zeros(*states.shape[:2], count, states.shape[3])

        self.keys, self.values = slots(key_states, self.cfg.capacity), slots(value_states, self.cfg.capacity)
        self.sinks = slots(key_states, self.cfg.n_sink)
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
        if step is None or (step.n_past, step.n_new) != (self.n_seen, key_states.shape[2]):
            raise ValueError(UNPREPARED)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._check(key_states)
        plan = step.layer(self.cfg, key_states.device)
        self.n_seen += step.n_new
        if isinstance(plan.attention, DecodePlan):
            put(self.keys, plan.slots, key_states)
            put(self.values, plan.slots, value_states)
            return self.keys[:, :, : plan.n_held], self.values[:, :, : plan.n_held]
        keys = self._pass(self.keys, self.sinks, key_states, plan)
        values = self._pass(self.values, self.values[:, :, : self.cfg.n_sink], value_states, plan)
        return keys, values

    def _pass(self, stored: Tensor, sinks: Tensor, new: Tensor, plan: LayerStep) -> Tensor:
        sinks_after = take(torch.cat((sinks, new), dim=2), plan.sinks)
        seen = torch.cat((sinks_after, take(stored, plan.band), new), dim=2)
        sinks[:, :, : sinks_after.shape[2]].copy_(sinks_after.detach())
        put(stored, plan.slots, new[:, :, new.shape[2] - plan.slots.shape[-1] :])
        return seen

    def _check(self, states: Tensor) -> None:
        held = (self.keys.shape[0], self.keys.shape[1], self.keys.shape[3], self.keys.dtype, self.keys.device)
        new = (states.shape[0], states.shape[1], states.shape[3], states.dtype, states.device)
        if held != new:
            raise ValueError(
                f"SinkCache holds (batch, heads, size, dtype, device) {held} and was given {new}; "
                "use one cache per model and batch, or reset() it and change nothing else"
            )

    def turn_ring(self, cos: Tensor, sin: Tensor, *, interleaved: bool) -> None:
        """Turn the keys behind the sinks in place, in the precision of `cos`."""
        if self.is_initialized:
            ring = self.keys[:, :, self.cfg.n_sink :]
            ring.copy_(rotate(ring, cos.to(ring.device), sin.to(ring.device), interleaved=interleaved))

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

    @torch.inference_mode(False)
    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order, at the same addresses if their number stays."""
        if self.is_initialized:
            self.keys, self.values, self.sinks = (
                _select(x, rows.to(x.device)) for x in (self.keys, self.values, self.sinks)
            )


def _select(x: Tensor, rows: Tensor) -> Tensor:
    chosen = x.index_select(0, rows)
    return x.copy_(chosen) if len(rows) == len(x) else chosen


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
        layers = [
            SinkLayer(self.cfg)
            if window is None
            else SinkLayer(StreamConfig(n_sink=0, window_size=window), is_sliding=True)
            for window in layer_windows(config)
        ]
        self.capacity = max(layer.cfg.capacity for layer in layers)
        self.position_limit = max(position_limit, 2 * self.capacity)
        self.query_block = query_block
        self.shift = 0  # token t was rotated as position t - shift
        self.step: CacheStep | None = None
        self.padding = Padding()
        self._stacks: list[tuple[StreamConfig, Tensor, list[Tensor]]] | None = None
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
            geometries=tuple(layer.cfg for layer in self.layers),
            padding=self.padding,
            rotary=rotary,
            dtype=dtype,
            block=self.query_block,
        )
        if self.step.is_decoding(self.cfg):
            self._turn_sinks(n_past, rotary, dtype)
        return self.step

    def _rebase(self, n_past: int, n_new: int, rotary: Rotary, dtype: torch.dtype) -> None:
        """Move the stream back to positions that start at the capacity, if it is about to pass the limit."""
        full = n_past - self.padding.most >= self.capacity
        if not full or n_past + n_new - self.shift <= self.position_limit:
            return
        shift = n_past - (self.capacity - 1)
        back = torch.tensor([self.shift - shift], device=rotary.inv_freq.device)
        cos, sin = rotation(rotary.inv_freq, back, dtype)
        for layer in self.layers:
            layer.turn_ring(cos, sin, interleaved=rotary.interleaved)
        self.shift = shift

    def _turn_sinks(self, n_past: int, rotary: Rotary, dtype: torch.dtype) -> None:
        """Turn the sinks of all layers to where query `n_past` must see them, from untouched copies."""
        if self._stacks is None:
            self._stacks = self._stack_sinks()
        for cfg, sinks, slots in self._stacks:
            pads = torch.zeros(1, dtype=torch.int64) if self.padding.pads is None else self.padding.pads
            pads = pads.to(sinks.device)
            turn = (n_past - self.shift) - (n_past - pads).clamp(max=cfg.capacity - 1) - pads  # (1,) or (B,)
            cos, sin = rotation(rotary.inv_freq.to(sinks.device), turn[:, None, None], dtype)  # (B, 1, 1, R)
            turned = rotate(sinks, cos, sin, interleaved=rotary.interleaved)  # (L, B, Hkv, n_sink, D)
            for slot, keys in zip(slots, turned.unbind(), strict=True):
                slot.copy_(keys)

    @torch.inference_mode(False)
    def _stack_sinks(self) -> list[tuple[StreamConfig, Tensor, list[Tensor]]]:
        """Lay the sinks of like layers side by side, (L, B, Hkv, n_sink, D), so that one turn does all."""
        alike: dict[Any, list[SinkLayer]] = {}
        for layer in self.layers:
            if layer.cfg.n_sink:
                key = (layer.cfg, layer.sinks.shape, layer.sinks.device, layer.sinks.dtype)
                alike.setdefault(key, []).append(layer)
        stacks = []
        for layers in alike.values():
            cfg, sinks = layers[0].cfg, torch.stack([layer.sinks for layer in layers])
            for layer, own in zip(layers, sinks.unbind(), strict=True):
                layer.sinks = own
            stacks.append((cfg, sinks, [layer.keys[:, :, : cfg.n_sink] for layer in layers]))
        return stacks

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
        for layer in self.layers:
            layer.select(rows)
        self.padding.select(rows)
        self._stacks = None

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
        if kept < n_seen and n_seen - self.padding.least > min(layer.cfg.capacity for layer in self.layers):
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
        tensors = [
            x
            for layer in self.layers
            if layer.is_initialized
            for x in (layer.keys, layer.values, layer.sinks)
        ]
        return sum(x.nbytes for x in tensors)


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
