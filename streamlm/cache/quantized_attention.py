"""Attention of one query per row over a window of 8-bit codes, read as they lie: a Triton kernel.

The portable form first writes the whole window out in the model's number type, at every step. The kernel
reads codes and scales and keeps running sums. A program takes one head and one stretch of slots; what the
stretches found is joined afterwards, with the sinks, which are not quantised.

Source of the running sums: Milakov and Gimelshein, Online normalizer calculation for softmax,
arXiv:1805.02867, algorithm 3.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

STRETCH = 512  # slots of a program
TILE_NUMBERS = 8192  # of a tile of keys or values, which must fit into the fast memory of a GPU
SMALLEST = 16  # side of a matrix product on a GPU


@triton.jit
def attend_stretch(
    query_ptr,  # (B * Hkv, G, D)
    key_ptr,  # (B * Hkv, n_slots, D) codes
    key_scale_ptr,  # (B * Hkv, n_slots)
    value_ptr,  # (B * Hkv, n_slots, DV) codes
    value_scale_ptr,  # (B * Hkv, n_slots)
    visible_ptr,  # (B, n_held), if rows differ
    top_ptr,  # (B * Hkv, n_stretches, G) the largest score
    total_ptr,  # (B * Hkv, n_stretches, G) the sum of the weights exp(score - top)
    mixed_ptr,  # (B * Hkv, n_stretches, G, DV) the sum of weights times values
    n_heads,
    n_slots,
    n_held,
    scaling,
    softcap,  # 0 for none
    ROWS_DIFFER: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    G_SIDE: tl.constexpr,
    D_SIDE: tl.constexpr,
    DV_SIDE: tl.constexpr,
    STRETCH: tl.constexpr,
    TILE: tl.constexpr,
):
    """Attend with the G queries of one key head to one stretch of its slots."""
    head, stretch = tl.program_id(0).to(tl.int64), tl.program_id(1)
    group, feature, out_feature = tl.arange(0, G_SIDE), tl.arange(0, D_SIDE), tl.arange(0, DV_SIDE)
    is_query = (group[:, None] < G) & (feature[None, :] < D)
    query = tl.load(query_ptr + (head * G + group[:, None]) * D + feature[None, :], mask=is_query, other=0.0)
    top = tl.full((G_SIDE,), float("-inf"), tl.float32)
    total = tl.zeros((G_SIDE,), tl.float32)
    mixed = tl.zeros((G_SIDE, DV_SIDE), tl.float32)
    for begin in range(0, STRETCH, TILE):
        slot = stretch * STRETCH + begin + tl.arange(0, TILE)
        is_held = slot < n_held
        at = head * n_slots + slot
        is_key = is_held[:, None] & (feature[None, :] < D)
        codes = tl.load(key_ptr + at[:, None] * D + feature[None, :], mask=is_key, other=0)
        scales = tl.load(key_scale_ptr + at, mask=is_held, other=0.0)
        # Rounded to the number type of the model, as the portable form does.
        keys = (codes.to(tl.float32) * scales[:, None]).to(query.dtype)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scaling
        if softcap > 0:
            scores = softcap * (1 - 2 / (tl.exp(2 * scores / softcap) + 1))  # tanh
        is_seen = is_held
        if ROWS_DIFFER:
            row = head // n_heads
            is_seen = is_seen & (tl.load(visible_ptr + row * n_held + slot, mask=is_held, other=0) != 0)
        scores = tl.where(is_seen[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        reference = tl.where(new_top == float("-inf"), 0.0, new_top)  # where nothing was seen yet
        weights = tl.exp(scores - reference[:, None])
        shrink = tl.exp(top - reference)
        is_value = is_held[:, None] & (out_feature[None, :] < DV)
        codes = tl.load(value_ptr + at[:, None] * DV + out_feature[None, :], mask=is_value, other=0)
        scales = tl.load(value_scale_ptr + at, mask=is_held, other=0.0)
        values = (codes.to(tl.float32) * scales[:, None]).to(query.dtype)
        part = tl.dot(weights.to(query.dtype), values, input_precision="ieee")
        mixed = mixed * shrink[:, None] + part
        total = total * shrink + tl.sum(weights, 1)
        top = new_top
    at = (head * tl.num_programs(1) + stretch) * G + group
    tl.store(top_ptr + at, top, mask=group < G)
    tl.store(total_ptr + at, total, mask=group < G)
    is_out = (group[:, None] < G) & (out_feature[None, :] < DV)
    tl.store(mixed_ptr + at[:, None] * DV + out_feature[None, :], mixed, mask=is_out)


def attend_codes(
    query: Tensor,
    sinks: tuple[Tensor, Tensor],
    codes: tuple[Tensor, Tensor],
    scales: tuple[Tensor, Tensor],
    n_held: int,
    visible: Tensor | None,
    scaling: float,
    *,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
) -> Tensor:
    """Return softmax attention of one query per row over sinks and a quantised window.

    Args:
        query: (B, Hq, 1, D) rotated, float32 or narrower.
        sinks: keys (B, Hkv, n_sink, D), rotated for this query, and values (B, Hkv, n_sink, Dv).
        codes: int8 keys (B, Hkv, slots, D) and values (B, Hkv, slots, Dv) of the window.
        scales: (B, Hkv, slots, 1) float32 of both.
        n_held: slots of the window that hold a token; the first ones.
        visible: (B, 1, 1, n_sink + n_held) bool where rows differ; None if every key is visible.
        scaling: of the scores.
        softcap: see `attend_one`.
        sink_logits: likewise.

    Returns:
        (B, Hq, 1, Dv)
    """
    (batch, n_heads, n_sink, size), out_size, n_slots = sinks[0].shape, sinks[1].shape[3], codes[0].shape[2]
    grouped = query.reshape(batch, n_heads, -1, size)  # (B, Hkv, G, D)
    n_groups, n_stretches = grouped.shape[2], triton.cdiv(n_held, STRETCH)
    sides = {
        f"{name}_SIDE": max(SMALLEST, triton.next_power_of_2(length))
        for name, length in (("G", n_groups), ("D", size), ("DV", out_size))
    }
    tile = min(64, max(SMALLEST, TILE_NUMBERS // max(sides["D_SIDE"], sides["DV_SIDE"])))
    top = query.new_empty(batch, n_heads, n_stretches, n_groups, dtype=torch.float32)
    total = torch.empty_like(top)
    mixed = top.new_empty(*top.shape, out_size)
    in_window = None if visible is None else visible[:, 0, 0, n_sink:].contiguous()
    with torch.cuda.device_of(query):
        attend_stretch[(batch * n_heads, n_stretches)](
            grouped.contiguous(),
            codes[0],
            scales[0],
            codes[1],
            scales[1],
            top if in_window is None else in_window,
            top,
            total,
            mixed,
            n_heads,
            n_slots,
            n_held,
            scaling,
            softcap or 0.0,
            ROWS_DIFFER=in_window is not None,
            G=n_groups,
            D=size,
            DV=out_size,
            **sides,
            STRETCH=STRETCH,
            TILE=tile,
        )
    return _join(grouped, sinks, (top, total, mixed), visible, scaling, softcap, sink_logits)


def _join(
    grouped: Tensor,
    sinks: tuple[Tensor, Tensor],
    stretches: tuple[Tensor, Tensor, Tensor],
    visible: Tensor | None,
    scaling: float,
    softcap: float | None,
    sink_logits: Tensor | None,
) -> Tensor:
    """Return (B, Hq, 1, Dv) of what the stretches of the window found, the sinks, and a learned sink."""
    top, total, mixed = stretches
    n_sink = sinks[0].shape[2]
    scores = (grouped @ sinks[0].mT).float() * scaling  # (B, Hkv, G, n_sink)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if visible is not None:
        scores = scores.masked_fill(~visible[..., :n_sink], -torch.inf)
    highest = torch.cat((top.mT, scores), dim=-1).amax(-1)  # (B, Hkv, G)
    if sink_logits is not None:
        logits = sink_logits.float().view(1, *highest.shape[1:])
        highest = torch.maximum(highest, logits)
    shares = (top - highest[:, :, None]).exp()  # (B, Hkv, stretches, G)
    weights = (scores - highest[..., None]).exp()
    whole = (total * shares).sum(2) + weights.sum(-1)
    if sink_logits is not None:
        whole = whole + (logits - highest).exp()
    out = (mixed * shares[..., None]).sum(2) + weights @ sinks[1].float()
    return (out / whole[..., None]).flatten(1, 2)[:, :, None].to(grouped.dtype)
