"""StreamEval: what a stream can still be asked, by the distance of the answer and by what is kept."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from streamlm.config import METHODS, Compute, Method, StreamConfig
from streamlm.measure.open_model import OpenedModel, open_model
from streamlm.measure.progress import progress
from streamlm.records.files import hash_ids
from streamlm.records.paper import StreamEvalRecord, StreamEvalRow
from streamlm.sources.tokens import read_tokenizer
from streamlm.stats import BootstrapConfig, proportion
from streamlm.tasks.answers import Answer, answer_questions
from streamlm.tasks.stream_text import (
    Question,
    StreamText,
    all_streams,
    hash_streams,
    text_of,
    tokenise_stream,
    write_stream,
)

Stream = tuple[int, np.ndarray, list[Question]]  # the distance of its questions, its ids, the questions
PROTOCOL = "questions in the stream, their right answers follow; candidates are read in copies of the cache"


def measure_stream_eval(
    *,
    model_dir: Path | str,
    title: str | None,
    cfg: StreamText,
    n_sink: int,
    capacities: list[int],
    compute: Compute,
    bootstrap: BootstrapConfig,
) -> StreamEvalRecord:
    """Ask a model about earlier lines of a stream, under every method, at every capacity.

    Args:
        model_dir: a transformers model folder.
        title: true name of the model, if its folder does not say it.
        cfg: what the streams contain.
        n_sink: sinks of the methods that have some.
        capacities: tokens in the cache, the same for all methods but dense.
        compute: number type, device and threads.
        bootstrap: its seed draws the streams; its confidence is that of the intervals.

    Raises:
        ValueError: for any mistake in the above.

    Source: arXiv:2309.17453, section 4.4, figures 8 and 9, appendix C.
    """
    opened = open_model(model_dir, compute, title=title)
    tokenizer, streams = read_tokenizer(Path(model_dir)), []
    for distance, seed in all_streams(cfg, bootstrap.seed):
        streams.append((distance, *tokenise_stream(write_stream(cfg, distance, seed), tokenizer)))
    longest = max(len(ids) for _, ids, _ in streams)
    cases = [
        (method, method.geometry(asked, longest))
        for method in METHODS.values()
        if method.is_compared
        for asked in (StreamConfig(n_sink=n_sink, window_size=size - n_sink) for size in sorted(capacities))
    ]
    distinct = list(dict.fromkeys(cases))  # dense is one case, whatever the capacity
    n_questions = sum(len(questions) for _, _, questions in streams)
    with progress(len(distinct) * n_questions, "question") as bar:
        rows = [_measure_row(opened, method, kept, streams, bootstrap, bar) for method, kept in distinct]
    record: StreamEvalRecord = {
        **opened.describe(  # type: ignore[typeddict-item]
            __file__, "StreamEval, lines of words and numbers from seeds", PROTOCOL, bootstrap
        ),
        "task": {**asdict(cfg), "seed": bootstrap.seed},
        "texts_sha256": hash_streams(cfg, bootstrap.seed),
        "example": text_of(write_stream(cfg, min(cfg.distances), bootstrap.seed)),
        "rows": rows,
        "tokens": {
            "count": sum(len(ids) for _, ids, _ in streams),
            "sha256": hash_ids(np.concatenate([ids for _, ids, _ in streams])),
        },
    }
    return record


def _measure_row(
    opened: OpenedModel,
    method: Method,
    kept: StreamConfig,
    streams: list[Stream],
    bootstrap: BootstrapConfig,
    bar: Any,
) -> StreamEvalRow:
    answers: dict[int, list[Answer]] = {}
    tokens_back: dict[int, list[int]] = {}
    for distance, ids, questions in streams:
        recompute = method.name == "recompute"
        answers.setdefault(distance, []).extend(
            answer_questions(opened.model, ids, questions, kept, recompute=recompute, on_answer=bar.update)
        )
        tokens_back.setdefault(distance, []).extend(_tokens_back(ids, question) for question in questions)
    return {
        "method": method.name,
        "n_sink": kept.n_sink,
        "window_size": kept.window_size,
        "capacity": kept.capacity,
        "distances": [
            describe_answers(distance, max(tokens_back[distance]), found, bootstrap.confidence)
            for distance, found in answers.items()
        ],
    }


def _tokens_back(ids: np.ndarray, question: Question) -> int:
    """Return how many tokens before its answer the value of a question begins that is asked for."""
    value = question.candidates[0]
    windows = np.lib.stride_tricks.sliding_window_view(ids[: question.start], len(value))
    return question.start - int(np.flatnonzero((windows == value).all(axis=1))[0])


def describe_answers(distance: int, tokens_back: int, answers: list[Answer], confidence: float) -> Any:
    """Return what a record has of the answers at one distance."""
    exact, chosen = ([bool(value) for value in of] for of in list(zip(*answers, strict=True))[:2])
    return {
        "distance": distance,
        "tokens_back": tokens_back,
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
