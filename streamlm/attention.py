"""Which keys a query sees under sinks + window, and attention over a stream in blocks of queries.

The block form is exact. What query t sees is fixed by its position alone, so a block of queries needs no
step-by-step cache: it needs the sinks and the band of keys that its first query still sees. Rotary attention
reads only distances. In the band the distance in the cache is the true distance. A sink is `t - s` tokens
away in the text but only `p(t) - s` in the cache, so for the sink scores alone the query is turned from
its place t to p(t) = min(t, capacity - 1).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from streamlm.config import StreamConfig
from streamlm.rope import rotate, rotation

QUERY_BLOCK = 128  # queries; smaller wastes less of the band, larger makes better matrix products


def streaming_mask(query_pos: Tensor, key_pos: Tensor, cfg: StreamConfig) -> Tensor:
    """Return which keys each query may see.

    Query t sees key j when j <= t and (j < n_sink or t - j < window_size).
    With n_sink=1, window_size=2::

        1 0 0 0
        1 1 0 0
        1 1 1 0
        1 0 1 1

    Args:
        query_pos: (Tq,) token positions.
        key_pos: (Tk,) token positions.
        cfg: cache geometry, in tokens.

    Returns:
        (Tq, Tk) bool, True where visible.

    Source: arXiv:2309.17453, section 3.2.
    """
    behind = query_pos[:, None] - key_pos[None, :]  # (Tq, Tk)
    return (behind >= 0) & ((key_pos < cfg.n_sink) | (behind < cfg.window_size))


@dataclass(frozen=True)
class QueryBlock:
    """A run of queries and the keys that any of them sees: all sinks and one slice of the band."""

    queries: slice  # into the new tokens
    band: slice  # into the keys, sinks excluded from it
    hidden: Tensor  # (Tq, n_sinks + Tband) bool, True where not visible


@dataclass(frozen=True)
class StreamPlan:
    """What one pass over new tokens shares between all layers.

    The keys of the pass are, in order of position::

        sinks 0 .. n_sinks-1 | band: what the first new query still sees | the new tokens
    """

    n_sinks: int  # sinks among the keys of this pass
    blocks: tuple[QueryBlock, ...]
    sink_turn: tuple[Tensor, Tensor] | None  # cos, sin (Tq, R): each query from its phase to p(t)


def plan_stream(
    cfg: StreamConfig,
    *,
    n_past: int,
    n_new: int,
    inv_freq: Tensor,
    dtype: torch.dtype,
    shift: int = 0,
    block: int = QUERY_BLOCK,
) -> StreamPlan:
    """Return the plan for `n_new` tokens after `n_past` tokens of one stream.

    Args:
        cfg: cache geometry, in tokens.
        n_past: tokens seen before this pass.
        n_new: tokens of this pass.
        inv_freq: (R,) rotary inverse frequencies; its device is where the plan lives.
        dtype: of the queries.
        shift: tokens; token t was rotated as position t - shift (sinks always as their own position).
        block: queries per block.
    """
    end = n_past + n_new
    n_sinks = min(cfg.n_sink, end)
    first_band = max(n_sinks, n_past - cfg.window_size + 1)

    def positions(start: int, stop: int) -> Tensor:
        return torch.arange(start, stop, device=inv_freq.device)

    blocks = []
    for start in range(n_past, end, block):
        stop = min(start + block, end)
        low = min(max(first_band, start - cfg.window_size + 1), stop)
        key_pos = torch.cat((positions(0, n_sinks), positions(low, stop)))
        blocks.append(
            QueryBlock(
                queries=slice(start - n_past, stop - n_past),
                band=slice(n_sinks + low - first_band, n_sinks + stop - first_band),
                hidden=~streaming_mask(positions(start, stop), key_pos, cfg),
            )
        )

    new = positions(n_past, end)
    turn = new.clamp(max=cfg.capacity - 1) - (new - shift)
    sink_turn = rotation(inv_freq, turn, dtype) if n_sinks and turn.any() else None
    return StreamPlan(n_sinks, tuple(blocks), sink_turn)


def attend(q: Tensor, k: Tensor, v: Tensor, plan: StreamPlan, scaling: float) -> Tensor:
    """Return softmax attention of the new queries over sinks and band.

    Args:
        q: (B, Hq, Tq, D) rotated.
        k: (B, Hkv, Tk, D) rotated, in the order of `StreamPlan`; Hkv divides Hq.
        v: (B, Hkv, Tk, Dv).
        plan: of this pass.
        scaling: of the scores.

    Returns:
        (B, Hq, Tq, Dv)
    """
    n_sinks, n_groups = plan.n_sinks, q.shape[1] // k.shape[1]
    q = q * scaling
    q_sink = q if plan.sink_turn is None else rotate(q, *plan.sink_turn)
    out = v.new_empty(*q.shape[:3], v.shape[-1])
    for part in plan.blocks:
        # Query heads that share a key head are folded into the query axis: keys are never repeated.
        q_part = q[:, :, part.queries].unflatten(1, (-1, n_groups)).flatten(2, 3)  # (B, Hkv, G*Tq, D)
        sink_part = q_sink[:, :, part.queries].unflatten(1, (-1, n_groups)).flatten(2, 3)
        scores = torch.cat(
            (
                sink_part @ k[:, :, :n_sinks].transpose(-2, -1),
                q_part @ k[:, :, part.band].transpose(-2, -1),
            ),
            dim=-1,
        )  # (B, Hkv, G*Tq, n_sinks + Tband)
        scores.unflatten(2, (n_groups, -1)).masked_fill_(part.hidden, -torch.inf)
        # Sum in fp32: in bf16, 256 + 1 == 256.
        weights = scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(v.dtype)
        seen = weights[..., :n_sinks] @ v[:, :, :n_sinks] + weights[..., n_sinks:] @ v[:, :, part.band]
        out[:, :, part.queries] = seen.unflatten(2, (n_groups, -1)).flatten(1, 2)
    return out


def stream_attention(
    q: Tensor, k: Tensor, v: Tensor, cfg: StreamConfig, *, inv_freq: Tensor, block: int = QUERY_BLOCK
) -> Tensor:
    """Return the attention of a whole stream under sinks + window, as a token-by-token cache gives it.

    Args:
        q: (B, Hq, T, D) rotated as positions 0 .. T-1.
        k: (B, Hkv, T, D) rotated likewise.
        v: (B, Hkv, T, Dv).
        cfg: cache geometry, in tokens.
        inv_freq: (R,) the frequencies they were rotated with.
        block: queries per block; changes speed and nothing else.

    Returns:
        (B, Hq, T, Dv)

    Source: arXiv:2309.17453, section 3.2.
    """
    plan = plan_stream(cfg, n_past=0, n_new=q.shape[2], inv_freq=inv_freq, dtype=q.dtype, block=block)
    return attend(q, k, v, plan, q.shape[-1] ** -0.5)
