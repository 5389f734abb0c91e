"""Answers to the questions of a stream, from what a cache still holds when each is asked."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamlm.cache.forward import cache_argument
from streamlm.cache.head import Head, head_of
from streamlm.cache.sink_cache import SinkCache
from streamlm.config import StreamConfig
from streamlm.measure.scoring import CHUNK, check_ids, vocab_size
from streamlm.tasks.asked import Question


class Answer(NamedTuple):
    """How a question was answered."""

    is_exact: bool  # greedy decoding writes the value
    is_chosen: bool  # no other candidate is as likely
    nll_nats: float  # of the value


@torch.inference_mode()
def answer_questions(
    model: PreTrainedModel,
    head: Head,
    ids: np.ndarray,
    questions: Sequence[Question],
    cfg: StreamConfig,
    *,
    recompute: bool = False,
    on_answer: Callable[[], object] | None = None,
) -> list[Answer]:
    """Return the answers to the questions of one stream.

    Before each answer, the cache has read all of the stream, the right answers to earlier questions included.
    Each candidate is then read in a copy of it; the stream goes on with the right one.

    Args:
        model: prepared for `SinkCache`.
        head: its `answering_head`.
        ids: (N,) token ids of the stream.
        questions: in the order of the stream.
        cfg: what is kept.
        recompute: whether instead, for each question, its last tokens are computed from scratch: as many as
            leave room in `cfg.capacity` for an answer.
        on_answer: called after each.

    Raises:
        ValueError: if an id is outside the vocabulary, or the cache has no room for an answer.
    """
    check_ids(ids, vocab_size(model))
    longest = max((len(ids) for question in questions for ids in question.candidates), default=0)
    if cfg.capacity < longest:
        raise ValueError(f"a cache of {cfg.capacity} tokens has no room for an answer of {longest}")
    answers = []
    cache, done = _new_cache(model, cfg), 0
    for question in questions:
        if recompute:
            room = cfg.capacity - longest + 1
            cache, done = _new_cache(model, cfg), max(0, question.start - room)
        hidden = _read(model, cache, ids[done : question.start])
        done = question.start
        answers.append(_answer(model, head, cache, cfg, hidden, question.candidates))
        if on_answer is not None:
            on_answer()
    return answers


def _new_cache(model: PreTrainedModel, cfg: StreamConfig) -> SinkCache:
    return SinkCache(
        model.config, n_sink=cfg.n_sink, window_size=cfg.window_size, positions=cfg.positions
    )  # fmt: skip


def _read(model: PreTrainedModel, cache: SinkCache, ids: np.ndarray) -> Tensor:
    """Feed ids (T,), T >= 1; return the hidden state of the last, (1, H)."""
    chunk = cache.longest_pass(CHUNK)
    for start in range(0, len(ids), chunk):
        hidden = _pass(model, cache, torch.from_numpy(ids[None, start : start + chunk]))
    return hidden[:, -1]


def _pass(model: PreTrainedModel, cache: SinkCache, rows: Tensor) -> Tensor:
    """Feed rows (B, T); return their hidden states (B, T, H)."""
    base = model.base_model
    hidden: Tensor = base(rows.to(model.device), **cache_argument(base, cache)).last_hidden_state
    return hidden


def _answer(
    model: PreTrainedModel,
    head: Head,
    cache: SinkCache,
    cfg: StreamConfig,
    hidden: Tensor,
    candidates: list[list[int]],
) -> Answer:
    """Read the candidates, each after what the cache holds; `hidden` is the state (1, H) before them."""
    rows = candidate_rows(candidates)
    before = hidden[:, None].expand(len(rows), 1, -1)
    if rows.shape[1] > 1:
        branch = _new_cache(model, cfg)
        branch.load_state_dict(cache.state_dict())
        branch.batch_repeat_interleave(len(rows))
        before = torch.cat((before, _pass(model, branch, rows[:, :-1])), dim=1)  # (C, T, H)
    return grade(head, before, candidates)


def candidate_rows(candidates: list[list[int]]) -> Tensor:
    """Return the token ids of candidates, (C, T), shorter ones padded at their end."""
    longest = max(map(len, candidates))
    return torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in candidates])


def answering_head(model: PreTrainedModel) -> Head:
    """Return the head of a model in float32 at least: in bfloat16, likely tokens have the same logits."""
    return head_of(model, torch.promote_types(model.dtype, torch.float32))


def grade(head: Head, before: Tensor, candidates: list[list[int]]) -> Answer:
    """Return the answer that a model gives.

    Args:
        head: of the model, `answering_head`.
        before: (C, T, H) hidden states before each token of each candidate, of `candidate_rows`.
        candidates: token ids, the right one first.
    """
    log_probs = head(before).log_softmax(-1)  # (C, T, V)
    rows = candidate_rows(candidates).to(log_probs.device)
    losses = -log_probs.gather(-1, rows[..., None])[..., 0].cpu()  # (C, T)
    real = torch.arange(rows.shape[1]) < torch.tensor([[len(ids)] for ids in candidates])
    nll = torch.where(real, losses, 0).sum(-1)
    right = torch.tensor(candidates[0])
    written = log_probs[0, : len(right)].argmax(-1).cpu()
    return Answer(torch.equal(written, right), bool((nll[1:] > nll[0]).all()), float(nll[0]))
