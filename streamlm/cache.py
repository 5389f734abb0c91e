"""`SinkCache`: the keys and values of the attention sinks and of the most recent tokens."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin

from streamlm.attention import QUERY_BLOCK, StreamPlan, plan_stream
from streamlm.config import StreamConfig
from streamlm.rope import rotate, rotation

# The model is given positions below this, or below twice the capacity: at 16,384 a float32 angle is good to
# 0.001 rad, at 4 M it is off by 0.064.
POSITION_LIMIT = 16_384

UNPREPARED = (
    "SinkCache was given to a model that is not prepared for it; load the model with "
    "streamlm.models.load_model, or run it inside `with streamlm.models.prepare(model):`"
)


@dataclass(frozen=True)
class CacheStep:
    """One pass of new tokens through the cache, planned once for all layers.

    The ring is turned back by `rebase` first, if set; then the slots `held` are read, oldest token first;
    then the new tokens `kept` are written to `slots`.
    """

    n_past: int
    n_new: int
    position_ids: Tensor  # (1, T) the bounded positions that the model is to rotate with
    held: Tensor  # (n,) slots of the past keys that the first new query sees, in order of position
    kept: Tensor  # (m,) new tokens, counted from the first new one, that outlive the pass
    slots: Tensor  # (m,) where they go
    rebase: tuple[Tensor, Tensor] | None  # cos, sin (1, R)
    attention: StreamPlan


class SinkLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer: the sinks as written, and behind them a ring.

    ::

        slot   0 .. n_sink-1 | n_sink .. capacity-1
        token  0 .. n_sink-1 | token t in slot n_sink + (t - n_sink) % window_size
    """

    is_sliding = False

    def __init__(self, cfg: StreamConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.n_seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate `capacity` slots like `key_states` and `value_states`, (B, Hkv, T, D)."""
        self.keys, self.values = (
            states.new_zeros(*states.shape[:2], self.cfg.capacity, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, cache_kwargs: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values; return those that the new queries see, in the order of `StreamPlan`.

        Args:
            key_states: (B, Hkv, T, D) rotated with the positions of the step.
            value_states: (B, Hkv, T, D).
            cache_kwargs: holds the `CacheStep` as "step".
        """
        step: CacheStep | None = (cache_kwargs or {}).get("step")
        if step is None or (step.n_past, step.n_new) != (self.n_seen, key_states.shape[2]):
            raise ValueError(UNPREPARED)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if step.rebase is not None:
            ring = self.keys[:, :, self.cfg.n_sink :]
            ring.copy_(rotate(ring, *step.rebase))
        seen = []
        for stored, states in ((self.keys, key_states), (self.values, value_states)):
            seen.append(torch.cat((stored.index_select(2, step.held), states), dim=2))
            stored.index_copy_(2, step.slots, states.index_select(2, step.kept))
        self.n_seen += step.n_new
        return seen[0], seen[1]

    def get_seq_length(self) -> int:
        """Return the number of tokens seen, not held."""
        return self.n_seen

    def get_max_cache_shape(self) -> int:
        """Return the number of tokens that can be held."""
        return self.cfg.capacity

    def get_mask_sizes(self, cache_position: Tensor) -> tuple[int, int]:
        """Return key count and offset as if nothing was evicted; the prepared model builds no mask."""
        return self.n_seen + cache_position.shape[0], 0

    def reset(self) -> None:
        """Forget the stream; the memory stays."""
        super().reset()
        self.n_seen = 0


class SinkCache(Cache):  # type: ignore[misc]
    """A transformers cache of fixed size that keeps `n_sink` first and `window_size` most recent tokens.

    Args:
        config: of the model.
        n_sink: first tokens, never evicted.
        window_size: most recent tokens, the current one included.
        position_limit: positions given to the model stay below this, or below twice the capacity.
        query_block: queries per attention block; changes speed and nothing else.

    Raises:
        ValueError: if a size is out of range; when used, if the model is not prepared.

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
        self.position_limit = max(position_limit, 2 * self.cfg.capacity)
        self.query_block = query_block
        self.shift = 0  # token t was rotated as position t - shift
        self.step: CacheStep | None = None
        n_layers = config.get_text_config(decoder=True).num_hidden_layers
        super().__init__(layers=[SinkLayer(self.cfg) for _ in range(n_layers)])

    def begin(self, n_new: int, inv_freq: Tensor, dtype: torch.dtype) -> CacheStep:
        """Plan the pass of `n_new` tokens that comes next.

        Args:
            n_new: tokens of the pass.
            inv_freq: (R,) the model's rotary inverse frequencies.
            dtype: of rotations, at least float32.
        """
        cfg, n_past = self.cfg, self.get_seq_length()
        rebase = self._rebase(n_past, n_new, inv_freq, dtype)
        end, device = n_past + n_new, inv_freq.device

        def tokens(*spans: tuple[int, int]) -> Tensor:
            return torch.cat([torch.arange(low, max(low, high), device=device) for low, high in spans])

        held = tokens((0, min(cfg.n_sink, n_past)), (max(cfg.n_sink, n_past - cfg.window_size + 1), n_past))
        kept = tokens((n_past, min(cfg.n_sink, end)), (max(n_past, cfg.n_sink, end - cfg.window_size), end))
        self.step = CacheStep(
            n_past=n_past,
            n_new=n_new,
            position_ids=tokens((n_past, end))[None] - self.shift,
            held=self._slots(held),
            kept=kept - n_past,
            slots=self._slots(kept),
            rebase=rebase,
            attention=plan_stream(
                cfg,
                n_past=n_past,
                n_new=n_new,
                inv_freq=inv_freq,
                dtype=dtype,
                shift=self.shift,
                block=self.query_block,
            ),
        )
        return self.step

    def _rebase(
        self, n_past: int, n_new: int, inv_freq: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor] | None:
        """Move the stream back to positions that start at the capacity, if it is about to pass the limit."""
        full = n_past >= self.cfg.capacity
        if not full or n_past + n_new - self.shift <= self.position_limit:
            return None
        shift = n_past - (self.cfg.capacity - 1)
        back = torch.tensor([self.shift - shift], device=inv_freq.device)
        self.shift = shift
        return rotation(inv_freq, back, dtype)

    def _slots(self, tokens: Tensor) -> Tensor:
        ring = self.cfg.n_sink + (tokens - self.cfg.n_sink) % self.cfg.window_size
        return torch.where(tokens < self.cfg.n_sink, tokens, ring)

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        cache_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `SinkLayer.update`; the step is the one that `begin` planned."""
        seen: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, {"step": self.step})
        return seen

    def reset(self) -> None:
        """Forget the stream; the memory stays."""
        super().reset()
        self.shift = 0
        self.step = None

    @property
    def n_held(self) -> int:
        """Tokens held."""
        n_seen: int = self.get_seq_length()
        return min(n_seen, self.cfg.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values in memory."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers if layer.is_initialized)
