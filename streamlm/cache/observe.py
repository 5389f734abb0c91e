"""Attention to look at: scores and weights of one block of queries at a time, with the tokens they are about.

What is shown is computed again from the queries and keys of the pass, as `attend` and `attend_one` do, so
that these stay as fast as they are.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from streamlm.cache.attention import AttentionPlan, finish_scores, softmax
from streamlm.cache.plan import ChunkPlan, DecodePlan, slot_of

if TYPE_CHECKING:
    from streamlm.cache.sink_cache import SinkCache


@dataclass(frozen=True)
class SeenBlock:
    """The attention of a few queries in one layer, of all its heads."""

    queries: Tensor  # (Tq,) positions of the queries in the text
    keys: Tensor  # (Tk,) positions of the keys in the text; a sink is there twice if the band has it too
    logits: Tensor  # (B, Hq, Tq, Tk) before the softmax; -inf where a key is hidden
    weights: Tensor  # (B, Hq, Tq, Tk) after it; a learned sink may take a share of them


Observer = Callable[[int, SeenBlock], None]


def blocks_of(
    query: Tensor,
    key: Tensor,
    plan: DecodePlan | ChunkPlan,
    scaling: float,
    cache: "SinkCache",
    layer_idx: int,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
) -> Iterator[SeenBlock]:
    """Yield the attention of a pass in one layer, block by block.

    Args:
        query: (B, Hq, Tq, D) rotated.
        key: (B, Hkv, Tk, D) as the cache returned them.
        plan: of the pass, in this layer.
        scaling: of the scores.
        cache: that the pass goes through.
        layer_idx: of the layer.
        softcap: scores s become softcap * tanh(s / softcap).
        sink_logits: (Hq,) one more score of every query, which stands for no key.

    Raises:
        ValueError: if rows differ, or the keys are codes of a quantised window on a GPU.
    """
    state, n_new = cache._state, query.shape[2]
    if state.padding.pads is not None:
        raise ValueError("attention is shown of streams without left pads; give one prompt at a time")
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    if isinstance(plan, DecodePlan):
        if key.shape[2] != plan.n_held:
            raise ValueError("attention over codes is not shown; leave out kv_dtype")
        cfg, newest = cache.layers[layer_idx].cfg, state.n_seen
        slots = torch.arange(plan.n_held, device=key.device)
        age = (slot_of(newest, cfg) - slots) % cfg.window_size
        tokens = torch.where(slots < cfg.n_sink, slots, newest - age)
        scores = query @ key.mT * scaling
        yield _seen(torch.full((1,), newest, device=key.device), tokens, scores, softcap, sink_logits)
        return
    yield from _blocks(query * scaling, key, plan.attention, state.n_seen, n_new, softcap, sink_logits)


def _blocks(
    q: Tensor,
    k: Tensor,
    plan: AttentionPlan,
    n_past: int,
    n_new: int,
    softcap: float | None,
    sink_logits: Tensor | None,
) -> Iterator[SeenBlock]:
    n_sinks = plan.n_sinks
    q_sink = q if plan.to_sinks is None else plan.to_sinks.apply(q)
    positions = torch.arange(n_past, n_past + n_new, device=q.device)
    for block in plan.blocks:
        band = torch.arange(block.band.start, block.band.stop, device=q.device) - n_sinks + plan.first_band
        tokens = torch.cat((torch.arange(n_sinks, device=q.device), band))
        to_sinks = q_sink[:, :, block.queries] @ k[:, :, :n_sinks].mT
        to_band = q[:, :, block.queries] @ k[:, :, block.band].mT
        scores = torch.cat((to_sinks, to_band), dim=-1)
        yield _seen(positions[block.queries], tokens, scores, softcap, sink_logits, block.mask)


def _seen(
    queries: Tensor,
    tokens: Tensor,
    scores: Tensor,
    softcap: float | None,
    sink_logits: Tensor | None,
    mask: Tensor | None = None,
) -> SeenBlock:
    """Return what is seen of scores (B, Hq, Tq, Tk); `mask`, (B, 1, 1, Tq, Tk), is added to them."""
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    logits = finish_scores(wide[:, :, None].clone(), mask, softcap)  # (B, Hq, 1, Tq, Tk)
    return SeenBlock(queries, tokens, logits[:, :, 0], softmax(logits, sink_logits)[:, :, 0])
