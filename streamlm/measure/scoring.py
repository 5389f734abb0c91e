"""Per-token losses of a stream: in blocks under sinks + window, or with re-computation of the window."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from streamlm.cache.attention import QUERY_BLOCK
from streamlm.cache.forward import cache_argument
from streamlm.cache.head import Head, head_of
from streamlm.cache.sink_cache import POSITION_LIMIT, SinkCache
from streamlm.config import StreamConfig
from streamlm.measure.checkpoint import Checkpoint

CHUNK = 1024  # tokens per pass through the model
HEAD_BLOCK = 128  # tokens per product with the vocabulary: 128 x 49,152 float32 logits are 25 MB


@torch.inference_mode()
def score_stream(
    model: PreTrainedModel,
    ids: np.ndarray,
    cfg: StreamConfig,
    *,
    chunk: int = CHUNK,
    query_block: int = QUERY_BLOCK,
    position_limit: int = POSITION_LIMIT,
    kv_dtype: torch.dtype | str | None = None,
    checkpoint: Checkpoint | None = None,
    on_progress: Callable[[np.ndarray], object] | None = None,
) -> tuple[np.ndarray, SinkCache]:
    """Return the loss of every token of a stream but the first, and the cache as it stands at the end.

    The losses are those of decoding token by token through a cache of n_sink + window_size, computed in
    blocks. Memory does not grow with the stream, but for ids and losses.

    Args:
        model: prepared for `SinkCache`.
        ids: (N,) token ids, N >= 2; one stream, scored exactly as given.
        cfg: cache geometry, in tokens.
        chunk: tokens per pass through the model, fewer where a model has a limit; changes speed and nothing
            else.
        query_block: queries per attention block; likewise.
        position_limit: see `SinkCache`.
        kv_dtype: see `SinkCache`.
        checkpoint: to continue from, and to keep the state in from time to time.
        on_progress: called with the losses so far, after every pass.

    Returns:
        (N-1,) losses in nats, float32 or wider; and the cache.

    Raises:
        ValueError: if there are fewer than two ids, or one is outside the vocabulary.
    """
    check_ids(ids, vocab_size(model))
    cache = _new_cache(
        model, len(ids), cfg, position_limit=position_limit, query_block=query_block, kv_dtype=kv_dtype
    )
    losses, chunk = _no_losses(model, len(ids) - 1), cache.longest_pass(chunk)
    done = 0 if checkpoint is None else checkpoint.restore(losses, cache, model.device)
    for start in range(done, len(losses), chunk):
        losses[start : start + chunk] = _pass(model, ids[start : start + chunk + 1], cache)
        so_far = losses[: start + chunk]
        if checkpoint is not None:
            checkpoint.keep(so_far, cache)
        if on_progress is not None:
            on_progress(so_far)
    return losses, cache


def _new_cache(model: PreTrainedModel, n_ids: int, cfg: StreamConfig, **options: Any) -> SinkCache:
    """Return an empty cache for a stream of so many ids, no larger than it needs to be."""
    cfg = cfg.within(n_ids - 1)
    return SinkCache(
        model.config, n_sink=cfg.n_sink, window_size=cfg.window_size, positions=cfg.positions, **options
    )


def _no_losses(model: PreTrainedModel, count: int) -> np.ndarray:
    return np.empty(count, np.float64 if model.dtype == torch.float64 else np.float32)


def _pass(model: PreTrainedModel, ids: np.ndarray, cache: SinkCache) -> np.ndarray:
    """Feed all of ids (T + 1,) but the last; return the loss of all but the first, (T,)."""
    base, head = model.base_model, head_of(model)
    part = torch.as_tensor(ids, dtype=torch.int64, device=model.device)
    hidden = base(part[None, :-1], **cache_argument(base, cache)).last_hidden_state[0]
    return next_losses(head, hidden, part[1:])


@torch.inference_mode()
def score_stretches(
    model: PreTrainedModel,
    ids: np.ndarray,
    cfg: StreamConfig,
    stretches: Sequence[tuple[int, int]],
    *,
    kv_dtype: torch.dtype | str | None = None,
) -> tuple[np.ndarray, np.ndarray, SinkCache]:
    """Return losses of `score_stream` from some stretches of the stream, reading no more than they need.

    A layer looks back less than its capacity, so nothing further than the sum of these over the layers
    reaches a query, but for the sinks, which see only each other. So passes, positions and losses are those
    of the whole stream, bit for bit.

    Args:
        model: prepared for `SinkCache`.
        ids: (N,) token ids of the stream.
        cfg: cache geometry, in tokens.
        stretches: first query and the one after the last, ascending; passes are whole, so more queries
            may come.
        kv_dtype: see `SinkCache`.

    Returns:
        (T,) queries, ascending; their losses (T,); and the cache after the last of them.
    """
    check_ids(ids, vocab_size(model))
    cache = _new_cache(model, len(ids), cfg, kv_dtype=kv_dtype)
    losses, chunk, start = _no_losses(model, len(ids) - 1), cache.longest_pass(CHUNK), 0
    scored = np.zeros(len(losses), bool)
    clean = 0  # the first query that nothing skipped reaches
    for first, stop in stretches:
        while start < min(stop, len(losses)):
            begin = start if cache._reach is None else (first - cache._reach) // chunk * chunk
            if begin > start >= cache.capacity:
                cache._skip_to(begin, chunk)
                start, clean = begin, first
            found = _pass(model, ids[start : start + chunk + 1], cache)
            at = np.arange(start, start + len(found))
            kept = at >= clean
            losses[at[kept]], scored[at[kept]] = found[kept], True
            start += chunk
    queries = np.flatnonzero(scored)
    return queries, losses[queries], cache


def vocab_size(model: PreTrainedModel) -> int:
    """Return the number of token ids that a model knows."""
    size: int = model.config.get_text_config(decoder=True).vocab_size
    return size


def draw_positions(n_tokens: int, capacity: int, count: int, seed: int) -> np.ndarray:
    """Return queries past the first eviction, ascending: one from each of `count` equal stretches.

    Args:
        n_tokens: ids of the stream; its last token is no query, since nothing follows.
        capacity: tokens held; query `capacity` is the first that misses a key.
        count: of queries; where there are fewer, all are returned.
        seed: of the draw.
    """
    available = max(0, n_tokens - 1 - capacity)
    count = min(count, available)
    drawn = np.arange(count) + np.random.default_rng(seed).random(count)  # in stretches
    return capacity + np.minimum(drawn * available / max(count, 1), available - 1).astype(np.int64)


@torch.inference_mode()
def recompute_losses(
    model: PreTrainedModel,
    ids: np.ndarray,
    positions: np.ndarray,
    capacity: int,
    *,
    on_progress: Callable[[int], object] | None = None,
) -> tuple[np.ndarray, SinkCache]:
    """Return the losses after some queries whose last `capacity` tokens are computed from scratch.

    Args:
        model: prepared for `SinkCache`.
        ids: (N,) token ids of the stream.
        positions: (M,) queries, each from capacity - 1 to N - 2.
        capacity: tokens that are computed, the query included, at positions 0 .. capacity - 1.
        on_progress: called with the number of losses so far.

    Returns:
        (M,) losses in nats of the tokens after the queries; and the cache, as one query leaves it.

    Source: arXiv:2309.17453, figure 1 (c), "sliding window with re-computation".
    """
    cache = SinkCache(model.config, n_sink=0, window_size=capacity)
    base, head = model.base_model, head_of(model)
    stream = torch.as_tensor(ids, dtype=torch.int64, device=model.device)
    losses = _no_losses(model, len(positions))
    for i, position in enumerate(positions.tolist()):
        cache.reset()
        seen = stream[position - capacity + 1 : position + 1]
        hidden = base(seen[None], **cache_argument(base, cache)).last_hidden_state[0, -1:]
        target = stream[position + 1 : position + 2]
        losses[i : i + 1] = next_losses(head, hidden, target)
        if on_progress is not None:
            on_progress(i + 1)
    return losses, cache


def next_losses(head: Head, hidden: Tensor, targets: Tensor) -> np.ndarray:
    """Return the losses (T,) in nats after hidden states (T, H), without ever holding all T x V logits."""
    parts = zip(hidden.split(HEAD_BLOCK), targets.split(HEAD_BLOCK), strict=True)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    losses = [
        nn.functional.cross_entropy(head(rows).to(wide), target, reduction="none") for rows, target in parts
    ]
    return torch.cat(losses).cpu().numpy()


def check_ids(ids: np.ndarray, vocab_size: int) -> None:
    """Raise ValueError unless `ids` is a stream that a model with this vocabulary can score."""
    if len(ids) < 2:
        raise ValueError(f"{len(ids)} token(s) give no loss; at least 2 are needed")
    check_vocabulary(ids, vocab_size)


def check_vocabulary(ids: np.ndarray, vocab_size: int) -> None:
    """Raise ValueError unless a model with this vocabulary knows every token id, (N,)."""
    bad = ids[(ids < 0) | (ids >= vocab_size)]
    if len(bad):
        raise ValueError(
            f"token id {bad[0]} is outside the vocabulary of {vocab_size}; "
            "were the ids made with another model's tokenizer?"
        )
