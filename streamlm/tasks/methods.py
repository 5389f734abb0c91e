"""The same questions under every method and press, at every capacity."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamlm.cache.prepare import prepare
from streamlm.config import METHODS, Method, StreamConfig
from streamlm.measure.open_model import OpenedModel
from streamlm.measure.progress import progress
from streamlm.presses.adapter import refused_presses
from streamlm.presses.grammar import check_context, parse_press
from streamlm.stats import proportion
from streamlm.tasks.answers import Answer, answer_questions
from streamlm.tasks.asked import AskedText
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
    cases = _cases(kept, longest)
    with progress((len(cases) + bool(presses)) * n_questions, "question") as bar:
        with prepare(model):
            answered = [
                Answered(
                    describe_case(method, cfg),
                    [
                        answer_questions(
                            model, *text, cfg, recompute=method.name == "recompute", on_answer=bar.update
                        )
                        for text in texts
                    ],
                )
                for method, cfg in cases
            ]
        sizes = sorted(kept.capacities)
        pressed = [
            answer_pressed(model, *text, presses, sizes, on_answer=bar.update) for text in texts if presses
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


def describe_case(method: Method, cfg: StreamConfig) -> dict[str, Any]:
    """Return what a row of a record says of a method."""
    sizes = {"n_sink": cfg.n_sink, "window_size": cfg.window_size, "capacity": cfg.capacity}
    return {"method": method.name, **sizes}


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
