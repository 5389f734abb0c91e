"""A run scored again, whole or in a sample of stretches: its beginning, one anywhere, its end."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from streamlm.cache.sink_cache import SinkCache
from streamlm.config import StreamConfig, find_method
from streamlm.experiment.follow import Refuted, bootstrap_of
from streamlm.measure.open_model import OpenedModel
from streamlm.measure.scorers import SCORERS, Scored, Task, describe_layers, with_recomputed
from streamlm.measure.scoring import draw_positions, recompute_losses, score_stretches
from streamlm.records.types import Record
from streamlm.summaries.main import Run

# Of a stream that is sampled: its beginning, a stretch in the middle and its end.
STRETCHES = 3
MIN_WINDOWS = 3  # recomputed for a `recompute` record, whatever it takes: the first, the last, one between
NO_WINDOWS: Record = {"positions": [], "losses_nats": []}  # of a run that is no `recompute`


@dataclass(frozen=True)
class SampleSize:
    """How much of a run is scored again."""

    max_tokens: int  # passes are whole, so it may be more
    seed: int


def task_of(run: Run, ids: np.ndarray, opened: OpenedModel) -> Task:
    """Return what was scored, as a record has it."""
    record, method = run.record, find_method(run.record["method"])
    recorded = asked = StreamConfig(n_sink=record["n_sink"], window_size=record["window_size"])
    if "recomputed" in record:
        asked = _parse_geometry(record["recomputed"]["paired_with"])
    elif method.is_sampled:
        raise ValueError(f"how {method.name} is sampled is not known to verify")
    kept = method.geometry(asked, len(ids))
    if (kept.n_sink, kept.window_size) != (recorded.n_sink, recorded.window_size):
        raise Refuted(f"it keeps {recorded}, and {kept} by its method, {method.name}")
    storage, dtype = record["storage"], record["environment"]["dtype"]
    return Task(
        model=opened.model,
        ids=ids,
        method=method,
        asked=asked,
        bootstrap=bootstrap_of(record, len(ids)),
        kv_dtype=None if storage == dtype else storage,
        yarn=record.get("yarn"),
        n_positions=len(record.get("recomputed", NO_WINDOWS)["positions"]),
    )


def _parse_geometry(text: str) -> StreamConfig:
    found = re.fullmatch(r"(\d{1,18})\+(\d{1,18})", text, re.ASCII)
    if found is None:
        raise ValueError(f"{text!r} is not what a run keeps, such as 4+1024")
    return StreamConfig(n_sink=int(found[1]), window_size=int(found[2]))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What was scored again of a run: losses of the stream, then recomputed windows."""

    queries: np.ndarray  # (T + M,)
    losses: np.ndarray  # (T + M,) nats
    recorded_windows: np.ndarray  # (M,) nats, in the record
    scored: Scored  # its memory and protocol

    @property
    def n_losses(self) -> int:
        """Losses of the stream, T."""
        return len(self.queries) - len(self.recorded_windows)


def rescore(task: Task, run: Run, sample_size: SampleSize) -> Sample:
    """Score a run again, or a sample of it."""
    section = run.record.get("recomputed", NO_WINDOWS)
    if task.method.name in SCORERS and "recomputed" not in run.record:
        scored = SCORERS[task.method.name](task)
        queries, losses = np.arange(len(scored.losses)), scored.losses
    else:
        cfg = task.asked if "recomputed" in run.record else task.cfg
        stretches = draw_stretches(len(task.ids) - 1, sample_size.max_tokens, sample_size.seed)
        queries, losses, cache = score_stretches(task.model, task.ids, cfg, stretches, kv_dtype=task.kv_dtype)
        scored = _with_memory(losses, cache)
    positions = draw_positions(len(task.ids), task.cfg.capacity, task.n_positions, task.bootstrap.seed)
    if positions.tolist() != section["positions"] or len(section["losses_nats"]) != len(positions):
        raise Refuted("its recomputed positions are not those that its seed draws")
    chosen = draw_windows(len(positions), sample_size.max_tokens // task.cfg.capacity, sample_size.seed)
    if len(chosen):
        windows, cache = recompute_losses(task.model, task.ids, positions[chosen], task.cfg.capacity)
        scored = _with_memory(losses, cache)
        losses = np.concatenate((losses, windows))
    return Sample(
        queries=np.concatenate((queries, positions[chosen])),
        losses=losses,
        recorded_windows=np.array(section["losses_nats"], np.float64)[chosen],
        scored=scored,
    )


def _with_memory(losses: np.ndarray, cache: SinkCache) -> Scored:
    return Scored(
        losses=losses,
        runtime_sec=None,
        tokens_per_sec=0.0,
        kv_tokens=cache.mean_held,
        kv_bytes=cache.nbytes,
        layers=describe_layers(cache),
    )


def rescore_wide(
    task: Task, run: Run, sample_size: SampleSize, open_as: Callable[[str, float | None], OpenedModel]
) -> np.ndarray | None:
    """Return the same sample in the next wider type and without quantised storage; None if there is none."""
    dtype = run.record["environment"]["dtype"]
    if dtype == "float64" and task.kv_dtype is None:
        return None
    wider = open_as("float32" if dtype in ("float16", "bfloat16") else "float64", task.yarn)
    return rescore(replace(task, model=wider.model, kv_dtype=None), run, sample_size).losses


def draw_stretches(n_losses: int, max_tokens: int, seed: int) -> list[tuple[int, int]]:
    """Return the queries to score again, as (first, one after the last): all, if so many may be.

    Else the beginning, a stretch anywhere, and the end, a third of `max_tokens` each. Every query between has
    the same chance, which is that third of all at least.
    """
    if n_losses <= max(max_tokens, STRETCHES):
        return [(0, n_losses)]
    size = max(1, max_tokens // STRETCHES)
    first = int(np.random.default_rng(seed).integers(1, n_losses - size))
    return [(0, size), (first, first + size), (n_losses - size, n_losses)]


def draw_windows(n_windows: int, count: int, seed: int) -> np.ndarray:
    """Return which windows to recompute, ascending: the first, the last, and others drawn by the seed."""
    if n_windows <= max(count, MIN_WINDOWS):
        return np.arange(n_windows)
    between = 1 + np.random.default_rng(seed).permutation(n_windows - 2)[: max(count, MIN_WINDOWS) - 2]
    return np.sort(np.concatenate(([0, n_windows - 1], between)))


def with_times_of(task: Task, scored: Scored, run: Run) -> Scored:
    """Return what was scored with the losses and times of the record, and what follows from them."""
    section, outcome = run.record.get("recomputed"), run.record["streaming"]
    seconds, speed = outcome["runtime_sec"], outcome["tokens_per_sec"]
    if section is not None and section["positions"]:
        seconds = None
    elif seconds is None or not seconds > 0:
        raise Refuted(f"its runtime_sec is {seconds}, which is no time")
    else:
        speed = len(run.losses) / seconds
    if not speed > 0:
        raise Refuted(f"its tokens_per_sec is {speed}, which is no speed")
    timed = replace(scored, losses=run.losses, runtime_sec=seconds, tokens_per_sec=speed)
    if section is None:
        return timed
    return with_recomputed(
        task, timed, np.array(section["positions"], np.int64), np.array(section["losses_nats"], np.float64)
    )
