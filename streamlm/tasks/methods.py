"""The same questions under every method and press, at every capacity."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from streamlm.cache.prepare import prepare
from streamlm.config import METHODS, Method, StreamConfig
from streamlm.measure.open_model import OpenedModel
from streamlm.measure.progress import progress
from streamlm.presses.adapter import refused_presses
from streamlm.presses.grammar import check_context, parse_press
from streamlm.records.files import hash_ids
from streamlm.stats import proportion
from streamlm.tasks.answers import Answer, answer_questions, answering_head
from streamlm.tasks.asked import AskedText, Piece, hash_texts, tokenise_pieces
from streamlm.tasks.pressed import answer_pressed

PROTOCOL = (
    "questions in the stream, their right answers follow; candidates are read in copies of the cache; under "
    "a press, what was read before a question is cut once"
)


@dataclass(frozen=True, kw_only=True)
class ComparedCaches:
    """What is kept of the texts.

    Args:
        n_sink: sinks of the methods that have some.
        capacities: tokens in the cache, the same for all methods but dense.
        presses: of kvpress, as `parse_press` reads them.
    """

    n_sink: int
    capacities: list[int]
    presses: list[str]


@dataclass(frozen=True)
class Answered:
    """The answers under one method or press at one capacity."""

    case: dict[str, Any]  # what a row of a record says of it
    answers: list[list[Answer]]  # of each text


def answer_all(
    opened: OpenedModel, texts: Sequence[AskedText], kept: ComparedCaches
) -> tuple[list[Answered], dict[str, str]]:
    """Return the answers under every method and press; and by press, why it cannot work on the model.

    Args:
        opened: a model that is not prepared.
        texts: each a stream of its own.
        kept: of them.
    """
    model, longest = opened.model, max(len(text.ids) for text in texts)
    n_questions = sum(len(text.questions) for text in texts)
    refused = refused_presses(model, kept.presses)
    presses = [press for press in kept.presses if press not in refused]
    for press in presses:
        check_context(parse_press(press), min(text.questions[0].begin for text in texts))
    cases, head = _cases(kept, longest), answering_head(model)
    with progress((len(cases) + bool(presses)) * n_questions, "question") as bar:
        with prepare(model):
            answered = [
                Answered(
                    {"method": method.name, **_sizes(cfg)},
                    [
                        answer_questions(
                            model,
                            head,
                            *text,
                            cfg,
                            recompute=method.name == "recompute",
                            on_answer=bar.update,
                        )
                        for text in texts
                    ],
                )
                for method, cfg in cases
            ]
        sizes = sorted(kept.capacities)
        pressed = [
            answer_pressed(model, head, *text, presses, sizes, on_answer=bar.update)
            for text in texts
            if presses
        ]
    for press in presses:
        for size in sizes:
            case = {"method": press, "n_sink": None, "window_size": None, "capacity": size}
            answered.append(Answered(case, [answers[press, size] for answers in pressed]))
    return answered, refused


def _cases(kept: ComparedCaches, longest: int) -> list[tuple[Method, StreamConfig]]:
    """Return each method with each geometry; dense is one case, whatever the capacity."""
    asked = [StreamConfig(n_sink=kept.n_sink, window_size=n - kept.n_sink) for n in sorted(kept.capacities)]
    compared = [method for method in METHODS.values() if method.is_compared]
    cases = [(method, method.geometry(cfg, longest)) for method in compared for cfg in asked]
    return list(dict.fromkeys(cases))


def _sizes(cfg: StreamConfig) -> dict[str, int]:
    return {"n_sink": cfg.n_sink, "window_size": cfg.window_size, "capacity": cfg.capacity}


def ask_all(
    opened: OpenedModel,
    tokenizer: Any,
    written: Sequence[tuple[Any, Sequence[Piece]]],
    kept: ComparedCaches,
    confidence: float,
    *,
    key: str,
    describe: Callable[[Any, Sequence[AskedText]], dict[str, Any]],
) -> dict[str, Any]:
    """Ask everything, and return what a record has of it: rows, what they were asked on, what was refused.

    Args:
        opened: a model that is not prepared.
        tokenizer: of the model.
        written: the group of each text, such as the distance of its questions, and its pieces.
        kept: of them.
        confidence: of the intervals.
        key: of the groups in a row.
        describe: returns what a row says of a group and its texts, beside the answers.
    """
    texts = [tokenise_pieces(pieces, tokenizer) for _, pieces in written]
    groups: dict[Any, list[int]] = {}  # indices of texts
    for i, (group, _) in enumerate(written):
        groups.setdefault(group, []).append(i)
    described = {group: describe(group, [texts[i] for i in of]) for group, of in groups.items()}
    answered, refused = answer_all(opened, texts, kept)

    def answers_of(of: Answered, group: Any) -> dict[str, Any]:
        return describe_answers([*chain(*(of.answers[i] for i in groups[group]))], confidence)

    return {
        "texts_sha256": hash_texts(pieces for _, pieces in written),
        "rows": [
            {**of.case, key: [described[group] | answers_of(of, group) for group in groups]}
            for of in answered
        ],
        "refused": refused,
        "tokens": {
            "count": sum(len(text.ids) for text in texts),
            "sha256": hash_ids(np.concatenate([text.ids for text in texts])),
        },
    }


def describe_answers(answers: Sequence[Answer], confidence: float) -> dict[str, Any]:
    """Return what a record has of some answers."""
    exact, chosen = ([bool(value) for value in of] for of in list(zip(*answers, strict=True))[:2])
    return {
        "asked": len(answers),
        "exact": exact,
        "chosen": chosen,
        **{
            f"{name}_{key}": value
            for name, values in (("exact", exact), ("chosen", chosen))
            for key, value in proportion(sum(values), len(values), confidence).items()
        },
        "nll_nats": float(np.mean([answer.nll_nats for answer in answers])),
    }


def tokens_back(text: AskedText) -> list[int]:
    """Return how many tokens before its answer the value begins that each question asks for."""
    distances = []
    for question in text.questions:
        value = question.candidates[0]
        windows = np.lib.stride_tricks.sliding_window_view(text.ids[: question.begin], len(value))
        distances.append(question.start - int(np.flatnonzero((windows == value).all(axis=1))[0]))
    return distances
