"""Answers under a press of kvpress: all that was read before a question is cut once, without the question."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamlm.cache.head import Head
from streamlm.measure.scoring import check_ids, vocab_size
from streamlm.presses.adapter import KeptLayer, check_budget, filled_cache, masking, repeat_rows
from streamlm.presses.grammar import parse_press
from streamlm.presses.prefill import compressor, prefill_densely
from streamlm.tasks.answers import Answer, candidate_rows, grade
from streamlm.tasks.asked import Question

Case = tuple[str, int]  # a press as it is written, and a capacity


@torch.inference_mode()
def answer_pressed(
    model: PreTrainedModel,
    head: Head,
    ids: np.ndarray,
    questions: Sequence[Question],
    presses: Sequence[str],
    capacities: Sequence[int],
    *,
    on_answer: Callable[[], object] | None = None,
) -> dict[Case, list[Answer]]:
    """Return the answers to the questions of one stream under every press, at every capacity.

    For each question the stream before it is read densely and cut, as kvpress is made for; the question and
    each candidate follow. So much is cut that the last of them attends to as many tokens as a cache of this
    capacity holds. A stream for which there is room stays whole.

    Args:
        model: not prepared; `check_model` takes it.
        head: its `answering_head`.
        ids: (N,) token ids of the stream.
        questions: in the order of the stream.
        presses: as `parse_press` reads them.
        capacities: tokens that the last token of an answer attends to.
        on_answer: called after each question.

    Raises:
        ValueError: if an id is outside the vocabulary, a press is refused, or keeps another number.
    """
    check_ids(ids, vocab_size(model))
    made = {press: compressor(model, press, 0) for press in presses}
    answers: dict[Case, list[Answer]] = {(press, size): [] for press in presses for size in capacities}
    for question in questions:
        last = question.start - question.begin + max(map(len, question.candidates)) - 1
        budgets = {size: size - last for size in capacities}
        if min(budgets.values()) < 1:
            raise ValueError(
                f"{min(capacities)} tokens have no room for a question and its answer, {last + 1}"
            )
        cuts = {
            (press, size): partial(compress, budget)
            for press, compress in made.items()
            for size, budget in budgets.items()
            if compress is not None and budget < question.begin
        }
        stream = torch.from_numpy(ids[None]).to(model.device)
        dense, cut = prefill_densely(model, stream[:, : question.begin], cuts)
        whole = [KeptLayer(layer.keys, layer.values) for layer in dense.cache.layers]
        for case, given in answers.items():
            layers = cut[case][0] if case in cut else whole
            budget = budgets[case[1]] if case in cut else question.begin
            check_budget(layers, budget)
            position = budget if parse_press(case[0]).rerotates else question.begin
            asked = stream[0, question.begin : question.start]
            given.append(_answer(model, head, layers, position, asked, question.candidates))
        if on_answer is not None:
            on_answer()
    return answers


def _answer(
    model: PreTrainedModel,
    head: Head,
    layers: Sequence[KeptLayer],
    position: int,
    asked: Tensor,
    candidates: list[list[int]],
) -> Answer:
    """Read a question (T,) and the candidates after what is kept; `position` is that of its first token."""
    rows = candidate_rows(candidates).to(asked.device)
    rows = torch.cat((asked.expand(len(rows), -1), rows), dim=1)[:, :-1]
    repeated = [repeat_rows(layer, len(rows)) for layer in layers]
    cache = filled_cache(model, repeated)
    positions = position + torch.arange(rows.shape[1], device=rows.device)[None]
    with masking(model, cache, repeated):
        hidden = model.base_model(rows, past_key_values=cache, position_ids=positions).last_hidden_state
    return grade(head, hidden[:, len(asked) - 1 :], candidates)
