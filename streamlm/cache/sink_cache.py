"""`SinkCache`: the keys and values of the attention sinks and of the most recent tokens."""

import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig, PreTrainedModel

from streamlm.cache.attention import QUERY_BLOCK
from streamlm.cache.kept_state import kept_states, state_tensors
from streamlm.cache.layers import QuantizedLayer, SinkLayer
from streamlm.cache.plan import ChunkPlan, DecodePlan, PassPlan
from streamlm.cache.ring import parse_kv_dtype
from streamlm.cache.rope import Rotary
from streamlm.cache.saved import SavedCache, base_of, read_cache, write_cache
from streamlm.cache.state import collect_state, put_state
from streamlm.cache.store import Store, StreamState
from streamlm.cache.supported import layer_geometry, layer_windows, rope_limit
from streamlm.config import StreamConfig

# The model is given positions below this, or below twice the capacity: at 16,384 a float32 angle is good to
# 0.001 rad, at 4 M it is off by 0.064.
POSITION_LIMIT = 16_384

UNPREPARED = (
    "SinkCache was given to a model that is not prepared for it; load the model with streamlm.load_model, or "
    "run it inside `with streamlm.prepare(model):`"
)


class SinkCache(Cache):  # type: ignore[misc]
    """A transformers cache of fixed size that keeps `n_sink` first and `window_size` most recent tokens.

    It does so in every layer that attends. One that by itself has a sliding window of at most that many
    tokens keeps that window and no sinks: no layer ever sees or holds more than was asked. A layer with a
    state of fixed size instead, such as a convolution or linear attention, keeps it as transformers does.

    Args:
        config: of the model.
        n_sink: first tokens, never evicted; with left padding, each row's own first real tokens.
        window_size: most recent tokens, the current one included.
        positions: "cache", where sinks come nearer to a query as tokens between them are evicted; or "text",
            where they stay as far as they are in the text, past any length that the model was trained to.
        position_limit: positions given to the model stay below this, or below twice the capacity.
        query_block: queries per attention block; changes speed and nothing else.
        kv_dtype: quantise the windows to torch.bfloat16, float16 or int8, or one of their names, for less
            memory and some loss, while sinks stay as they are; None stores them as they come. A decoding step
            then copies the window, but for int8 on a GPU with Triton.

    Raises:
        ValueError: if a size is out of range or the positions of the model cannot be honoured; when used, if
            the model is not prepared.

    Source: arXiv:2309.17453, section 3.2. Window keys keep the phase they were written with and are rotated
    back together once the position limit is reached; the paper's code rotates them at every token.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        n_sink: int = 4,
        window_size: int = 1020,
        *,
        positions: Literal["cache", "text"] = "cache",
        position_limit: int = POSITION_LIMIT,
        query_block: int = QUERY_BLOCK,
        kv_dtype: torch.dtype | str | None = None,
    ) -> None:
        self.cfg = StreamConfig(n_sink=n_sink, window_size=window_size, positions=positions)
        for name, value, min_value in (
            ("position_limit", position_limit, 0),
            ("query_block", query_block, 1),
        ):
            if type(value) is not int or value < min_value:
                raise ValueError(f"{name} must be a whole number of at least {min_value}, got {value!r:.40}")
        windows = layer_windows(config)
        geometries = {i: layer_geometry(self.cfg, window) for i, window in windows.items()}
        self.capacity = max(cfg.capacity for cfg in geometries.values())
        self._rope_limit = rope_limit(config)
        self._position_limit = max(position_limit, 2 * self.capacity)
        if self._rope_limit is not None:
            self._position_limit = min(self._position_limit, self._rope_limit)
            if self.capacity > self._rope_limit:
                raise ValueError(
                    f"the model rotates or scales otherwise after {self._rope_limit} positions, and a "
                    f"capacity of {self.capacity} exceeds that; use a window_size of at most "
                    f"{self._rope_limit - n_sink}"
                )
        self._query_block = query_block
        self._state = StreamState()
        self._stores: list[Store] = []
        self._pass: PassPlan | None = None  # the one that a prepared model is in
        self._captured_pass: PassPlan | None = None  # planned ahead, while a step is captured
        self._compiled_step: Any = None  # a CompiledStep, once `compile_steps` has made one
        self._compile_sec = 0.0  # that steps of this cache took to compile
        self._model: weakref.ref[PreTrainedModel] | None = None  # the base that reads the stream
        quantized = parse_kv_dtype(kv_dtype)
        self._kv_dtype = None if quantized is None else str(quantized).removeprefix("torch.")
        make = SinkLayer if quantized is None else partial(QuantizedLayer, kv_dtype=quantized)
        alike = Counter(geometries.values())
        self._sink_layers: dict[int, SinkLayer] = {
            i: make(i, cfg, self._state, self._stores, alike[cfg], windows[i] is not None)
            for i, cfg in geometries.items()
        }
        self._kept_states = kept_states(config, windows)
        layers = {**self._sink_layers, **self._kept_states}
        super().__init__(layers=[layers[i] for i in range(len(layers))])

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: all but which model reads the stream, until a pass says so again."""
        return {**self.__dict__, "_model": None}

    def _begin_pass(
        self, n_new: int, rotaries: Sequence[Rotary | None], dtype: torch.dtype, mask: Tensor | None
    ) -> PassPlan:
        """Plan the pass of `n_new` tokens that comes next.

        Args:
            n_new: tokens of the pass.
            rotaries: how each layer rotates; layers that rotate alike have the same object.
            dtype: of rotations, at least float32.
            mask: (B, n) attention mask with the new tokens last, or None.

        Raises:
            ValueError: if an earlier pass broke off in the middle.
        """
        if self._pass is not None:
            raise ValueError(
                "the last pass through this SinkCache broke off, so its layers differ; reset() it"
            )
        self._pass = self._captured_pass or self._plan_pass(n_new, rotaries, dtype, mask)
        return self._pass

    def _plan_pass(
        self, n_new: int, rotaries: Sequence[Rotary | None], dtype: torch.dtype, mask: Tensor | None
    ) -> PassPlan:
        state = self._state
        state.padding.read(mask, state.n_seen, n_new)
        if self._kept_states and state.padding.max:
            raise ValueError(
                "layers with a state of fixed size would read left pads as tokens; give the model one prompt "
                "at a time, or prompts of one length"
            )
        self._rebase(n_new, rotaries, dtype)
        plan = PassPlan(
            n_past=state.n_seen,
            n_new=n_new,
            shift=state.shift,
            padding=state.padding,
            rotaries=rotaries,
            dtype=dtype,
            query_block=self._query_block,
        )
        for store in self._stores:
            store.trim()
            plans = [plan.layer(i, store.cfg, store.device) for i in store.members]
            steps = [step for step in plans if isinstance(step, DecodePlan)]
            if steps:
                store.begin_step(steps)
        return plan

    def _end_pass(self) -> None:
        """Count the tokens of the pass that has gone through all layers."""
        assert self._pass is not None
        self._state.n_seen += self._pass.n_new
        self._pass = None

    def _rebase(self, n_new: int, rotaries: Sequence[Rotary | None], dtype: torch.dtype) -> None:
        """Move the stream back to positions that start at the capacity, if it is about to pass the limit."""
        state = self._state
        if self._is_due(n_new):
            if self._rope_limit is not None and self.cfg.positions == "text":
                raise ValueError(
                    f"the model rotates or scales otherwise after {self._rope_limit} positions, and the text "
                    "goes on; use positions in the cache"
                )
            shift = state.n_seen - (self.capacity - 1)
            for i, layer in self._sink_layers.items():  # one at a time, for the memory
                if (rotary := rotaries[i]) is not None:
                    device = layer.keys.device
                    back = torch.full((1,), state.shift - shift, device=device)
                    layer.rotate_window(rotary.to(device).of_stored.by(back, dtype))
            state.shift = shift
        end = state.n_seen + n_new - state.shift
        if self._rope_limit is not None and end > self._rope_limit:
            raise ValueError(
                f"the model rotates or scales otherwise after {self._rope_limit} positions, and this pass "
                f"of {n_new} tokens goes to {end}; feed at most {self.longest_pass(n_new)} tokens at a time "
                "(generate has prefill_chunk_size)"
            )

    def _is_due(self, n_new: int) -> bool:
        """Return whether the stream is to be moved back before a pass of `n_new` tokens."""
        state = self._state
        is_full = state.n_seen - state.padding.max >= self.capacity
        return is_full and state.n_seen + n_new - state.shift > self._position_limit

    @property
    def _reach(self) -> int | None:
        """Tokens before a query, its row's sinks apart, that can change what it sees; None: all of them.

        Each layer sees less than its capacity back.
        """
        if self._kept_states:
            return None
        return sum(layer.cfg.capacity - 1 for layer in self._sink_layers.values())

    def _skip_to(self, n_seen: int, chunk: int) -> None:
        """Stand at token `n_seen` of the stream, as after passes of `chunk` tokens that left no trace.

        The sinks stay. The window holds what it held, until `_reach` further tokens have been fed.

        Raises:
            ValueError: if the cache is not full, or the token is no later one, whole passes away.
        """
        state = self._state
        if state.n_seen < self.capacity or self._reach is None:
            raise ValueError("only a full SinkCache whose layers all attend can skip tokens; feed it first")
        if n_seen < state.n_seen or (n_seen - state.n_seen) % chunk:
            raise ValueError(f"cannot skip from token {state.n_seen} to {n_seen} in passes of {chunk}")
        while state.n_seen < n_seen:
            if self._is_due(chunk):
                state.shift = state.n_seen - (self.capacity - 1)
            state.n_seen += chunk

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """See `SinkLayer.update`; the plan is that of the pass that a prepared model is in.

        Raises:
            ValueError: if the model is not prepared.
        """
        active, layer = self._pass, self.layers[layer_idx]
        if active is None or active.n_new != key_states.shape[2]:
            raise ValueError(UNPREPARED)
        plan = active.layer(layer_idx, layer.cfg, key_states.device)
        rotary = active.rotaries[layer_idx]
        if rotary is not None and rotary.is_apart:  # what rotates is stored as keys here
            values, keys = layer.update(value_states, key_states, plan)
        else:
            keys, values = layer.update(key_states, value_states, plan)
        return keys, values

    def _plan_of(self, layer_idx: int, device: torch.device) -> DecodePlan | ChunkPlan:
        """Return the plan of the pass for one layer."""
        assert self._pass is not None
        return self._pass.layer(layer_idx, self.layers[layer_idx].cfg, device)

    def longest_pass(self, n_tokens: int) -> int:
        """Return how many tokens, of `n_tokens` at most, one pass may have: some models have a limit."""
        if self._rope_limit is None:
            return n_tokens
        return min(n_tokens, self._rope_limit - self.capacity + 1)

    def reset(self) -> None:
        """Forget the stream; the memory stays."""
        self._state.reset()
        for layer in self._kept_states.values():
            layer.reset()
        self._pass = None

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of everything that the stream left here, by name; at its beginning, its counts."""
        return collect_state(self._state, self._sink_layers, self._kept_states)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue the stream of the cache that returned this `state_dict`, made with the same arguments.

        Args:
            state: tensors by name, on the devices where the layers are to be.

        Raises:
            ValueError: if it is of another geometry, kv_dtype or number of layers, or this cache is in use.
        """
        put_state(state, self._state, self._stores, self._sink_layers, self._kept_states)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that make a cache like this one, for `json`."""
        return {
            **asdict(self.cfg),
            "position_limit": self._position_limit,
            "query_block": self._query_block,
            "kv_dtype": self._kv_dtype,
        }

    def save(self, path: Path | str) -> None:
        """Write what the stream left here to a file, whole or not at all; the stream goes on.

        It is a safetensors file of `nbytes` and a little more. All weights of the model are read for their
        hash, which takes 0.2 s for half a gigabyte.

        Raises:
            ValueError: if nothing was read yet, the last pass broke off, or the model is gone.
            OSError: if the disk refuses.
        """
        write_cache(path, self.settings, self.state_dict(), self._reader())

    @classmethod
    def load(cls, path: Path | str, model: PreTrainedModel) -> "SinkCache":
        """Return a cache that goes on where the one stood that was saved.

        On the same machine the next logits have the same bits.

        Args:
            path: of the file.
            model: the one whose stream it is, prepared for `SinkCache`; on any device.

        Raises:
            ValueError: if the file is damaged or no saved cache, or was saved with other weights, another
                number type or other rotary settings.
        """
        return cls._restored(read_cache(path, model), model)

    @classmethod
    def _restored(cls, saved: SavedCache, model: PreTrainedModel) -> "SinkCache":
        """Return the cache in a file that was read; see `load`."""
        with saved.explained():
            cache = cls(model.config, **saved.settings)
            if cache.settings != saved.settings:
                raise ValueError("its settings are not those of a SinkCache")
            cache.load_state_dict(saved.on_devices_of(model))
            cache._model = weakref.ref(base_of(model))
        return cache

    def _reader(self) -> PreTrainedModel:
        """Return the base model whose stream this is.

        Raises:
            ValueError: if nothing was read yet, the last pass broke off, or the model is gone.
        """
        model = None if self._model is None else self._model()
        if model is None or self._state.n_seen == 0 or self._pass is not None:
            raise ValueError("no model has read a stream into this SinkCache, or its last pass broke off")
        return model

    def _select(self, rows: Tensor) -> None:
        parts: list[Any] = [*self._stores, *self._sink_layers.values(), self._state.padding]
        for part in parts:
            part.select(rows)
        for layer in self._kept_states.values():
            layer.reorder_cache(rows)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows, as beam search asks."""
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times, copies side by side."""
        batch = self._stores[0].keys.shape[1]
        self._select(torch.arange(batch).repeat_interleave(repeats))

    def crop(self, max_length: int) -> None:
        """Forget the last tokens, as assisted decoding asks; only what was never overwritten can come back.

        Args:
            max_length: tokens to keep; negative: tokens to forget.

        Raises:
            ValueError: if the window already dropped tokens that the shorter stream would see, or a layer has
                a state of fixed size, which cannot go back.
        """
        n_seen = self._state.n_seen
        kept = n_seen + max_length if max_length <= 0 else min(max_length, n_seen)
        smallest = min(layer.cfg.capacity for layer in self._sink_layers.values())
        if kept < n_seen and self._kept_states:
            raise ValueError(
                f"SinkCache cannot go back from {n_seen} to {kept} tokens: the model has layers with a state "
                "of fixed size, which knows no earlier one; decode without an assistant"
            )
        if kept < n_seen and n_seen - self._state.padding.min > smallest:
            raise ValueError(
                f"SinkCache cannot go back from {n_seen} to {kept} tokens: the window has dropped what the "
                "shorter stream would see; use a larger window, or decode without an assistant"
            )
        self._state.n_seen = kept

    @property
    def n_held(self) -> int:
        """Tokens held in the layer that holds most, of the row that holds most."""
        return self._held(self.capacity)

    @property
    def mean_held(self) -> float:
        """Mean of the tokens held over the layers that attend, in the row that holds most; whole if it is."""
        held = [self._held(layer.cfg.capacity) for layer in self._sink_layers.values()]
        mean = sum(held) / len(held)
        return int(mean) if mean.is_integer() else mean

    @property
    def geometries(self) -> list[tuple[StreamConfig, int]]:
        """What the layers that attend keep, and how many of them keep that."""
        return list(Counter(layer.cfg for layer in self._sink_layers.values()).items())

    def _held(self, capacity: int) -> int:
        return min(self._state.n_seen - self._state.padding.min, capacity)

    @property
    def nbytes(self) -> int:
        """Bytes in memory: keys, values, the unrotated sink keys, and states of fixed size."""
        states = [tensor for layer in self._kept_states.values() for tensor in state_tensors(layer).values()]
        parts: list[Any] = [*self._stores, *self._sink_layers.values(), *states]
        return sum(part.nbytes for part in parts)
