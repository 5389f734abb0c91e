"""`SinkCache`: the keys and values of the attention sinks and of the most recent tokens."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig

from streamlm.cache.attention import QUERY_BLOCK
from streamlm.config import StreamConfig
from streamlm.cache.layers import NarrowLayer, SinkLayer, Store
from streamlm.cache.ring import STORAGES
from streamlm.cache.rope import Rotary, rotation
from streamlm.cache.plan import CacheStep, DecodeStep, Padding

# The model is given positions below this, or below twice the capacity: at 16,384 a float32 angle is good to
# 0.001 rad, at 4 M it is off by 0.064.
POSITION_LIMIT = 16_384


class SinkCache(Cache):  # type: ignore[misc]
    """A transformers cache of fixed size that keeps `n_sink` first and `window_size` most recent tokens.

    Layers with a sliding window of their own keep that window and no sinks.

    Args:
        config: of the model.
        n_sink: first tokens, never evicted; with left padding, each row's own first real tokens.
        window_size: most recent tokens, the current one included.
        position_limit: positions given to the model stay below this, or below twice the capacity.
        query_block: queries per attention block; changes speed and nothing else.
        storage: hold the windows as torch.bfloat16, float16 or int8, for less memory and some loss, while
            sinks stay as they are; None holds them as they come. A decoding step then copies the window.

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
        storage: torch.dtype | None = None,
    ) -> None:
        if storage not in (None, *STORAGES.values()):
            raise ValueError(f"storage must be None, {', '.join(map(str, STORAGES.values()))}, got {storage}")
        self.cfg = StreamConfig(n_sink=n_sink, window_size=window_size)
        self.stores: list[Store] = []
        windows = layer_windows(config)
        self.geometries = tuple(
            self.cfg if window is None else StreamConfig(n_sink=0, window_size=window) for window in windows
        )
        make = SinkLayer if storage is None else partial(NarrowLayer, storage=storage)
        layers = [
            make(cfg, self.stores, self.geometries.count(cfg), is_sliding=window is not None)
            for cfg, window in zip(self.geometries, windows, strict=True)
        ]
        self.capacity = max(cfg.capacity for cfg in self.geometries)
        self.fixed_within = limit = fixed_within(config)
        self.position_limit = max(position_limit, 2 * self.capacity)
        if limit is not None:
            self.position_limit = min(self.position_limit, limit)
            if self.capacity > limit:
                raise ValueError(
                    f"longrope changes its frequencies behind {limit} positions, and a capacity of "
                    f"{self.capacity} goes beyond; use a window_size of at most {limit - n_sink}"
                )
        self.query_block = query_block
        self.shift = 0  # token t was rotated as position t - shift
        self.step: CacheStep | None = None
        self.frozen: CacheStep | None = None  # planned ahead, while a step is captured
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
        if self.frozen is not None:
            self.step = self.frozen
            return self.frozen
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
            if len(store.layers) < store.n_layers:
                store.trim()
            plan = self.step.layer(store.cfg, store.device)
            if isinstance(plan, DecodeStep):
                store.open(plan, interleaved=rotary.interleaved)
        return self.step

    def _rebase(self, n_past: int, n_new: int, rotary: Rotary, dtype: torch.dtype) -> None:
        """Move the stream back to positions that start at the capacity, if it is about to pass the limit."""
        full = n_past - self.padding.most >= self.capacity
        if full and n_past + n_new - self.shift > self.position_limit:
            self._turn_back(n_past, rotary, dtype)
        end = n_past + n_new - self.shift
        if self.fixed_within is not None and end > self.fixed_within:
            raise ValueError(
                f"longrope changes its frequencies behind {self.fixed_within} positions, and this pass of "
                f"{n_new} tokens goes to {end}; feed shorter chunks (generate has prefill_chunk_size)"
            )

    def _turn_back(self, n_past: int, rotary: Rotary, dtype: torch.dtype) -> None:
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

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of everything that the stream left here, by name."""
        counts = torch.tensor([self.get_seq_length(), self.shift])
        pads = {} if self.padding.pads is None else {"pads": self.padding.pads.clone()}
        layers = {
            f"{i}.{name}": tensor.clone()
            for i, layer in enumerate(self.layers)
            if layer.is_initialized
            for name, tensor in layer.tensors().items()
        }
        return {"counts": counts, **pads, **layers}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where a cache of the same making stood when it gave its `state_dict`.

        Args:
            state: tensors by name, on the devices where the layers are to be.

        Raises:
            ValueError: if it is of another geometry, storage or number of layers, or this cache is in use.
        """
        n_seen, shift = state["counts"].tolist()
        own = {name for name in state if name not in ("counts", "pads")}
        for i, layer in enumerate(self.layers):
            if layer.is_initialized:
                raise ValueError("a state can be loaded into a new SinkCache only; make one")
            if f"{i}.keys" not in state:
                raise ValueError(f"the state has no layer {i}; it was made for another model")
            layer.lazy_initialization(state[f"{i}.keys"], state[f"{i}.values"])
            for name, tensor in layer.tensors().items():
                held = state.get(f"{i}.{name}")
                if held is None or (held.shape, held.dtype) != (tensor.shape, tensor.dtype):
                    raise ValueError(f"the state of layer {i} does not fit this SinkCache in its {name}")
                tensor.copy_(held)
                own.remove(f"{i}.{name}")
            layer.n_seen = n_seen
        if own:
            raise ValueError(f"the state holds {min(own)}, which this SinkCache has not")
        self.shift, self.padding = shift, Padding.of(state.get("pads"))

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


def fixed_within(config: PretrainedConfig) -> int | None:
    """Return the number of positions behind which the rotary frequencies change, or None if they never do."""
    config = config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope" or rope["short_factor"] == rope["long_factor"]:
        return None
    positions: int = rope["original_max_position_embeddings"]
    return positions


LENGTH_INDEPENDENT = ("default", "linear", "llama3", "yarn", "longrope")
SUPPORTED = (
    "supported are models with one rotary embedding of fixed frequencies "
    f"(rope types {', '.join(LENGTH_INDEPENDENT)}) and full or sliding attention in every layer, "
    "such as Llama, Mistral, Qwen2, Qwen3, Phi-3, StableLM and GPT-NeoX / Pythia"
)
