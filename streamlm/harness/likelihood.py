"""Log-likelihoods of continuations, each after a context that a cache has read."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamlm.cache.forward import cache_argument
from streamlm.cache.head import head_of
from streamlm.cache.sink_cache import SinkCache
from streamlm.generate.sampling import pass_length, read_prompts
from streamlm.measure.scoring import HEAD_BLOCK, check_vocabulary, vocab_size

Ids = Sequence[int]


class Likelihood(NamedTuple):
    """How likely one continuation is."""

    log_prob_nats: float  # summed over its tokens
    is_greedy: bool  # greedy decoding writes it


def score_continuations(
    model: PreTrainedModel,
    pairs: Sequence[tuple[Ids, Ids]],
    make_cache: Callable[[int], SinkCache],
    *,
    batch_size: int = 1,
) -> Iterator[tuple[int, Likelihood]]:
    """Yield the index of each pair and the likelihood of its continuation, as they are scored.

    Every pair is a stream of its own: the likelihood is that of decoding it token by token through an empty
    cache. A context of several pairs is read once, and each of its continuations in a copy of that cache.

    Args:
        model: prepared for `SinkCache`.
        pairs: token ids of context and continuation; a context has one token at least.
        make_cache: returns an empty cache for streams of so many tokens.
        batch_size: contexts that are read at once, and continuations after them.

    Raises:
        ValueError: if an id is outside the vocabulary.
    """
    indices = defaultdict(list)
    for index, (context, _) in enumerate(pairs):
        indices[tuple(context)].append(index)
    contexts = sorted(indices, key=len, reverse=True)  # the longest first: it shows whether memory is enough
    for start in range(0, len(contexts), batch_size):
        together = contexts[start : start + batch_size]
        rows = [(row, index) for row, context in enumerate(together) for index in indices[context]]
        rows.sort(key=lambda row: len(pairs[row[1]][1]))  # alike lengths together: fewer pads
        n_tokens = max(map(len, together)) + max(len(pairs[index][1]) for _, index in rows)
        yield from _score_after(model, together, rows, pairs, partial(make_cache, n_tokens), batch_size)


@torch.inference_mode()
def _score_after(
    model: PreTrainedModel,
    contexts: Sequence[Ids],
    rows: Sequence[tuple[int, int]],
    pairs: Sequence[tuple[Ids, Ids]],
    new_cache: Callable[[], SinkCache],
    batch_size: int,
) -> Iterator[tuple[int, Likelihood]]:
    """Read contexts, then the continuations after them; a row is the indices of a context and of a pair."""
    cache = new_cache()
    logits = read_prompts(model, cache, contexts)  # (B, V)
    state = cache.state_dict()
    for start in range(0, len(rows), batch_size):
        of_context, indices = zip(*rows[start : start + batch_size], strict=True)
        branch = new_cache()
        branch.load_state_dict(state)
        branch.batch_select_indices(torch.tensor(of_context))
        continuations = [pairs[index][1] for index in indices]
        found = _read_continuations(model, branch, logits[list(of_context)], continuations)
        yield from zip(indices, found, strict=True)


def _read_continuations(
    model: PreTrainedModel, cache: SinkCache, logits: Tensor, continuations: Sequence[Ids]
) -> list[Likelihood]:
    """Return the likelihoods of continuations after the rows of a cache; `logits` (B, V) are before them."""
    check_vocabulary(np.concatenate(continuations), vocab_size(model))
    lengths = torch.tensor([[len(ids)] for ids in continuations])
    longest = max(1, int(lengths.max()))
    tokens = torch.tensor(
        [[*ids, *[0] * (longest - len(ids))] for ids in continuations], device=model.device
    )  # (B, T), pads at the end, where no real token sees them
    base, head = model.base_model, head_of(model)
    scores = [_token_scores(logits[:, None], tokens[:, :1])]
    chunk, block = pass_length(cache, len(tokens)), max(1, HEAD_BLOCK // len(tokens))
    for start in range(0, longest - 1, chunk):
        targets = tokens[:, start + 1 : start + 1 + chunk]
        new = tokens[:, start : start + targets.shape[1]]
        hidden = base(new, **cache_argument(base, cache)).last_hidden_state  # (B, T, H)
        for states, after in zip(hidden.split(block, 1), targets.split(block, 1), strict=True):
            scores.append(_token_scores(head(states.flatten(0, 1)).unflatten(0, after.shape), after))
    log_probs, is_top = (torch.cat(parts, dim=1).cpu() for parts in zip(*scores, strict=True))  # (B, T)
    is_real = torch.arange(longest) < lengths
    sums = torch.where(is_real, log_probs, 0).sum(1, dtype=torch.float64)
    are_greedy = (is_top | ~is_real).all(1)
    return [Likelihood(*pair) for pair in zip(sums.tolist(), are_greedy.tolist(), strict=True)]


def _token_scores(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each target (B, T) by its logits (B, T, V), and whether it is the top."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return wide.gather(-1, targets[..., None])[..., 0], logits.argmax(-1) == targets
