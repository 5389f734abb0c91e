"""Which keys a query sees under sinks + window, and attention over a stream in blocks of queries.

The block form is exact. What query t sees is fixed by its position alone, so a block of queries needs no
step-by-step cache: it needs the sinks and the band of keys that its first query still sees. Rotary attention
reads only distances. In the band the distance in the cache is the true distance. A sink is `t - s` tokens
away in the text but only `p(t) - s` in the cache, so for the sink scores alone the query is rotated from
position t to p(t) = min(t, capacity - 1). With positions in the text, p(t) = t.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from streamlm.cache.products import batched_linear, mkl_is_slow, one_by_one
from streamlm.cache.rope import Rotary, Rotation
from streamlm.config import StreamConfig

QUERY_BLOCK = 128  # queries; smaller wastes less of the band, larger makes better matrix products
MANY_KEYS = 4096  # of all heads and rows; for one query each, SDPA is slower than products from here on


def streaming_mask(query_pos: Tensor, key_pos: Tensor, cfg: StreamConfig) -> Tensor:
    """Return which keys each query may see.

    Query t sees key j when j <= t and (j < n_sink or t - j < window_size).
    With n_sink=1, window_size=2::

        1 0 0 0
        1 1 0 0
        1 1 1 0
        1 0 1 1

    Args:
        query_pos: (..., Tq) token positions.
        key_pos: (..., Tk) token positions.
        cfg: cache geometry, in tokens.

    Returns:
        (..., Tq, Tk) bool, True where visible.

    Source: arXiv:2309.17453, section 3.2.
    """
    query_pos, key_pos = query_pos[..., :, None], key_pos[..., None, :]
    distance = query_pos - key_pos  # (..., Tq, Tk)
    return (distance >= 0) & ((key_pos < cfg.n_sink) | (distance < cfg.window_size))


def seen_from_sinks(position: Tensor, cfg: StreamConfig) -> Tensor:
    """Return p(t), the position at which a query stands for the sinks, by its position t in the text."""
    return position if cfg.positions == "text" else position.clamp(max=cfg.capacity - 1)


@dataclass(frozen=True)
class QueryBlock:
    """A run of queries and the keys that any of them sees: all sinks and one slice of the band."""

    queries: slice  # into the new tokens
    band: slice  # into the keys, sinks excluded from it
    # (1, 1, 1, Tq, n_sinks + Tband), or (B, ...) with left pads: 0 where visible, else -inf
    mask: Tensor


@dataclass(frozen=True)
class AttentionPlan:
    """What one pass over new tokens shares between layers of one geometry.

    The keys of the pass are, oldest first::

        the row's sinks | the band: past tokens that the first new query may see | the new tokens

    A sink may also be in the band or among the new tokens; there it is hidden.
    """

    n_sinks: int  # columns of sinks
    first_band: int  # token position of the first key after the sinks
    blocks: tuple[QueryBlock, ...]
    to_sinks: Rotation | None  # (Tq, R) or (B, 1, Tq, R): each query from its position to p(t)


def plan_attention(
    cfg: StreamConfig,
    rotary: Rotary | None,
    device: torch.device,
    *,
    n_past: int,
    n_new: int,
    dtype: torch.dtype,
    shift: int = 0,
    pads: Tensor | None = None,
    min_pads: int = 0,
    block: int = QUERY_BLOCK,
) -> AttentionPlan:
    """Return the plan for `n_new` tokens after `n_past` tokens of one stream, pads counted.

    Args:
        cfg: cache geometry, in tokens.
        rotary: of the layers; None if they do not rotate.
        device: where the plan lives.
        n_past: tokens seen before this pass.
        n_new: tokens of this pass.
        dtype: of rotations, at least float32.
        shift: tokens; token t was rotated as position t - shift (sinks as written, with shift 0).
        pads: (B,) left pads of each row, or None if no row has any.
        min_pads: the fewest left pads of any row.
        block: queries per block.
    """
    end = n_past + n_new
    n_sinks = max(0, min(cfg.n_sink, end - min_pads))
    first_band = min(max(min_pads + n_sinks, n_past - cfg.window_size + 1), n_past)
    pad = torch.zeros((), dtype=torch.int64, device=device) if pads is None else pads[:, None]

    def tokens(start: int, stop: int) -> Tensor:
        return torch.arange(start, stop, device=device)

    blocks = []
    for start in range(n_past, end, block):
        stop = min(start + block, end)
        low = max(first_band, start - cfg.window_size + 1)
        queries, band = tokens(start, stop) - pad, tokens(low, stop) - pad  # positions in the row
        sinks_seen = streaming_mask(queries, tokens(0, n_sinks), cfg)
        band_seen = streaming_mask(queries, band, cfg) & (band >= n_sinks)[..., None, :]
        seen = torch.cat((sinks_seen, band_seen), dim=-1)
        blocks.append(
            QueryBlock(
                queries=slice(start - n_past, stop - n_past),
                band=slice(n_sinks + low - first_band, n_sinks + stop - first_band),
                mask=_additive(seen if pads is None else _with_dummy(seen), dtype),
            )
        )

    positions = seen_from_sinks(tokens(n_past, end) - pad, cfg)
    difference = positions + pad - (tokens(n_past, end) - shift)
    to_sinks = None
    if rotary is not None and n_sinks and (pads is not None or shift or end > cfg.capacity):
        to_sinks = rotary.to(device).by(difference, dtype)
        to_sinks = to_sinks if pads is None else to_sinks.each_row()
    return AttentionPlan(n_sinks, first_band, tuple(blocks), to_sinks)


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what to add to scores (B, Hkv, G, Tq, Tk), for `seen` (Tq, Tk) or (B, ..., Tq, Tk).

    To fill scores where a bool says so takes a CPU 12 times as long.
    """
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
    return mask.view(-1, 1, 1, *seen.shape[-2:])


def _with_dummy(seen: Tensor) -> Tensor:
    """Let a query that sees nothing, a pad, see its own key: a softmax over no key is NaN."""
    n_queries, n_keys = seen.shape[-2:]
    own = torch.eye(n_queries, dtype=torch.bool, device=seen.device)
    own = torch.nn.functional.pad(own, (n_keys - n_queries, 0))
    return seen | (own & ~seen.any(-1, keepdim=True))


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan,
    scaling: float,
    *,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
) -> Tensor:
    """Return softmax attention of the new queries over sinks and band.

    Args:
        q: (B, Hq, Tq, D) rotated.
        k: (B, Hkv, Tk, D) rotated, in the order of `AttentionPlan`; Hkv divides Hq.
        v: (B, Hkv, Tk, Dv).
        plan: of this pass.
        scaling: of the scores.
        softcap: see `_weights`.
        sink_logits: see `_weights`.

    Returns:
        (B, Hq, Tq, Dv), with heads next to features in memory.
    """
    n_groups, n_sinks = q.shape[1] // k.shape[1], plan.n_sinks
    if softcap is None and sink_logits is None and _is_fused(q.device):
        return _attend_fused(q, k, v, plan, scaling)
    q = q * scaling
    q_sink = None if plan.to_sinks is None else plan.to_sinks.apply(q).unflatten(1, (-1, n_groups))
    # Query heads that share a key head are folded into the query axis: no key is repeated.
    q = q.unflatten(1, (-1, n_groups))  # (B, Hkv, G, Tq, D)
    out = v.new_empty(q.shape[0], q.shape[3], *q.shape[1:3], v.shape[-1]).permute(0, 2, 3, 1, 4)
    logits = None if sink_logits is None else sink_logits.unflatten(0, (-1, n_groups))
    for block in plan.blocks:
        for rows, heads in _parts(q, k, block, n_sinks):
            part = rows, heads, slice(None), block.queries
            keys, values = (
                torch.cat((x[rows, heads, :n_sinks], x[rows, heads, block.band]), dim=2) for x in (k, v)
            )
            scores = batched_linear(q[part].flatten(2, 3), keys)  # (B, Hkv, G*Tq, n_sinks + Tband)
            if q_sink is not None:
                scores[..., :n_sinks] = q_sink[part].flatten(2, 3) @ keys[:, :, :n_sinks].mT
            weights = _weights(
                scores.unflatten(2, (n_groups, -1)),
                block.mask if len(block.mask) == 1 else block.mask[rows],
                softcap,
                None if logits is None else logits[heads],
            )
            mixed = batched_linear(weights.to(v.dtype).flatten(2, 3), values.mT)
            out[part] = mixed.unflatten(2, (n_groups, -1))
    return out.flatten(1, 2)


def _is_fused(device: torch.device) -> bool:
    """Return whether SDPA computes masked attention in one kernel there, which keeps no scores in memory."""
    return device.type == "cuda"


def _attend_fused(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scaling: float) -> Tensor:
    """Return what `attend` does, by one call of SDPA for each block of queries.

    Sinks are scored with another rotation of the query than the band is. So they get features of their own:
    a query is (q, q to sinks), a key of the band (k, 0), and a sink (0, k).
    """
    n_groups, n_sinks = q.shape[1] // k.shape[1], plan.n_sinks
    if plan.to_sinks is not None:
        q = torch.cat((q, plan.to_sinks.apply(q)), dim=-1)
        sinks, band = k[:, :, :n_sinks], k[:, :, n_sinks:]
        pad = torch.nn.functional.pad
        k = torch.cat((pad(sinks, (k.shape[-1], 0)), pad(band, (0, k.shape[-1]))), dim=2)
    k, v = (x.repeat_interleave(n_groups, dim=1) for x in (k, v))
    out = v.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[-1]).transpose(1, 2)
    for block in plan.blocks:
        keys, values = (torch.cat((x[:, :, :n_sinks], x[:, :, block.band]), dim=2) for x in (k, v))
        out[:, :, block.queries] = torch.nn.functional.scaled_dot_product_attention(
            q[:, :, block.queries],
            keys,
            values,
            attn_mask=block.mask.flatten(1, 2).to(q.dtype),
            scale=scaling,
        )
    return out


def _parts(q: Tensor, k: Tensor, block: QueryBlock, n_sinks: int) -> list[tuple[slice, slice]]:
    """Return the rows and key heads that are computed at a time: all, or one where that is faster."""
    (n_rows, n_heads, n_groups), n_keys = q.shape[:3], n_sinks + block.band.stop - block.band.start
    if not one_by_one(q, k, n_groups * (block.queries.stop - block.queries.start) * n_keys):
        return [(slice(None), slice(None))]
    return [(slice(b, b + 1), slice(h, h + 1)) for b in range(n_rows) for h in range(n_heads)]


def _weights(
    scores: Tensor, mask: Tensor | None, softcap: float | None, sink_logits: Tensor | None
) -> Tensor:
    """Return the softmax of scores (B, Hkv, G, Tq, Tk), which it overwrites.

    Args:
        scores: of queries and keys, scaled.
        mask: broadcasts to `scores` and is added to them; 0 where a key is visible, else -inf.
        softcap: scores s become softcap * tanh(s / softcap), as in Gemma 2.
        sink_logits: (Hq,) or (Hkv, G) one more score of every query that stands for no key, as in gpt-oss.
    """
    return softmax(finish_scores(scores, mask, softcap), sink_logits)


def finish_scores(scores: Tensor, mask: Tensor | None, softcap: float | None) -> Tensor:
    """Return scores capped and masked, in place; arguments as of `_weights`."""
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    if mask is not None:
        scores.add_(mask.to(scores.dtype))
    return scores


def softmax(scores: Tensor, sink_logits: Tensor | None) -> Tensor:
    """Return the softmax of finished scores over their keys; arguments as of `_weights`."""
    if sink_logits is None:
        return scores.softmax(-1)  # torch sums in float32 at least: in bfloat16, 256 + 1 == 256
    column = sink_logits.to(scores.dtype).view(1, *scores.shape[1:3], 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat((scores, column), dim=-1).softmax(-1)[..., :-1]


def attend_one(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    scaling: float,
    *,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
) -> Tensor:
    """Return softmax attention of one query per row over keys in any order: softmax does not care.

    Args:
        q: (B, Hq, 1, D) rotated.
        k: (B, Hkv, Tk, D) rotated, sinks included; Hkv divides Hq.
        v: (B, Hkv, Tk, Dv).
        visible: (B, 1, 1, Tk) bool where rows differ; None if every key is visible.
        scaling: of the scores.
        softcap: see `_weights`.
        sink_logits: see `_weights`.

    Returns:
        (B, Hq, 1, Dv)
    """
    if softcap is None and sink_logits is None and not _sdpa_is_slow(k):
        return torch.nn.functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=visible,
            scale=scaling,
            enable_gqa=True,  # shares key heads without a copy
        )
    grouped = q.squeeze(2).unflatten(1, (k.shape[1], -1)) * scaling  # (B, Hkv, G, D)
    scores = (k @ grouped.mT).mT[:, :, :, None]  # (B, Hkv, G, 1, Tk)
    mask = None if visible is None else _additive(visible, q.dtype)
    weights = _weights(scores, mask, softcap, sink_logits)
    return (weights.squeeze(3).to(v.dtype) @ v).flatten(1, 2)[:, :, None]


def _sdpa_is_slow(k: Tensor) -> bool:
    """Return whether products compute one query per row over these keys (B, Hkv, Tk, D) faster than SDPA."""
    is_mkls = k.device.type == "cpu" and k.dtype == torch.float32 and mkl_is_slow()
    return is_mkls and k[..., 0].numel() >= MANY_KEYS


def stream_attention(
    q: Tensor, k: Tensor, v: Tensor, cfg: StreamConfig, rotary: Rotary | None, *, block: int = QUERY_BLOCK
) -> Tensor:
    """Return the attention of a whole stream under sinks + window, as a token-by-token cache gives it.

    Args:
        q: (B, Hq, T, D) rotated as positions 0 .. T-1.
        k: (B, Hkv, T, D) rotated likewise.
        v: (B, Hkv, T, Dv).
        cfg: cache geometry, in tokens.
        rotary: what they were rotated with; None if they were not.
        block: queries per block; changes speed and nothing else.

    Returns:
        (B, Hq, T, Dv)

    Source: arXiv:2309.17453, section 3.2.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    plan = plan_attention(cfg, rotary, q.device, n_past=0, n_new=q.shape[2], dtype=dtype, block=block)
    k, v = (torch.cat((x[:, :, : plan.n_sinks], x), dim=2) for x in (k, v))
    return attend(q, k, v, plan, q.shape[-1] ** -0.5)
