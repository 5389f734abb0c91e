"""Time and memory per decoded token at a full cache, by any method.

All methods of one capacity are decoded in one process and take turns, so that a noisy neighbour meets all and
their times can be compared turn by turn.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache
from streamlm.config import METHODS, Compute, StreamConfig, find_method
from streamlm.limits import REPEATS
from streamlm.measure.decoders import Decoder, make_decoder, measure_cache, time_steps
from streamlm.measure.memory import held_bytes, measure_rise
from streamlm.measure.open_model import open_model
from streamlm.measure.progress import progress
from streamlm.measure.scoring import check_ids
from streamlm.records.files import hash_ids
from streamlm.records.types import LatencyRecord, Record, Timing
from streamlm.stats import trend

PROTOCOL = "greedy decoding at a full cache, methods in turns, every step awaited"
LONG_RUN_PARTS = 60  # medians that are kept of a long run
YOUNG_TOKENS = 50  # tokens after which the stream beside a long run starts again


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """How much is decoded, in tokens.

    Raises:
        ValueError: if a number is too small or too large.
    """

    warmup_tokens: int  # before the first run, not timed
    timed_tokens: int  # a run
    recompute_tokens: int  # a run of `recompute`, whose every token costs a pass over the whole cache
    runs: int
    compile: bool = False  # the steps of streaming and window, whose cache has a fixed size

    def __post_init__(self) -> None:
        for name in ("warmup_tokens", "timed_tokens", "recompute_tokens", "runs"):
            value = getattr(self, name)
            smallest = 2 if name == "runs" else 1
            if value < smallest:
                raise ValueError(f"{name} must be >= {smallest}, got {value}")
            if value > REPEATS:
                raise ValueError(f"{name} must be <= {REPEATS:,}, got {value:,}; time fewer")


@torch.inference_mode()
def measure_latency(
    *,
    model_dir: Path | str,
    compute: Compute,
    title: str | None = None,
    ids: np.ndarray,
    dataset: str,
    capacity: int,
    cases: Sequence[tuple[str, int]],
    latency: LatencyConfig,
) -> list[LatencyRecord]:
    """Time decoding by several methods in turns; return a record of each.

    Args:
        model_dir: a transformers model folder.
        compute: number type, device and threads.
        title: true name of the model, if its folder does not say it.
        ids: (N,) token ids of a text, N >= capacity; the first fill the caches.
        dataset: the true name of the text.
        capacity: tokens that every method holds while it is timed.
        cases: (method, n_sink) of each record; methods without sinks have 0.
        latency: how much is decoded.

    Raises:
        ValueError: for any mistake in the above.
    """
    with _bench(model_dir, compute, title, ids, dataset, capacity) as bench:
        if latency.compile:
            from streamlm.cache.compiled import compile_steps  # which loads torch's compiler

            compile_steps(bench.prepared)
        decoders = [
            make_decoder(find_method(name), n_sink, bench.plain, bench.prepared, bench.prompt)
            for name, n_sink in cases
        ]
        counts = [
            latency.recompute_tokens if decoder.recomputes else latency.timed_tokens for decoder in decoders
        ]
        for decoder, count in zip(decoders, counts, strict=True):
            time_steps(decoder, min(latency.warmup_tokens, count))
        times: list[list[list[float]]] = [[] for _ in cases]  # of case, run, token
        with progress(latency.runs, "run") as bar:
            for _ in range(latency.runs):
                for decoder, count, runs in zip(decoders, counts, times, strict=True):
                    runs.append(time_steps(decoder, count))
                bar.update()
        return [
            {
                **bench.record,  # type: ignore[typeddict-item]
                "method": name,
                "n_sink": n_sink,
                "window_size": capacity - n_sink,
                "protocol": PROTOCOL,
                "decoded": {**asdict(latency), "timed_tokens": count},
                "step_ms": describe_times(runs),
                **_describe_step(decoder),
                "kv_bytes": held_bytes(decoder.cache),
                "step_peak_bytes": measure_rise(partial(time_steps, decoder, 1), bench.plain.device),
            }
            for (name, n_sink), decoder, count, runs in zip(cases, decoders, counts, times, strict=True)
        ]


@torch.inference_mode()
def measure_long_run(
    *,
    model_dir: Path | str,
    compute: Compute,
    title: str | None = None,
    ids: np.ndarray,
    dataset: str,
    cfg: StreamConfig,
    tokens: int,
) -> Record:
    """Time one long run of `streaming` against young streams; return its record, with the trend of the ratio.

    Between its tokens, those of a second stream are timed, which starts again every `YOUNG_TOKENS`: whatever
    slows the machine meets both, and what the length of a stream costs is left.

    Args:
        cfg: of both caches.
        tokens: that are decoded after a full cache; the others are those of `measure_latency`.
    """
    with _bench(model_dir, compute, title, ids, dataset, cfg.capacity) as bench:
        old, young = (
            make_decoder(METHODS["streaming"], cfg.n_sink, bench.plain, bench.prepared, bench.prompt)
            for _ in range(2)
        )
        assert isinstance(young.cache, SinkCache)
        begin = young.cache.state_dict()
        step_ms = np.empty((2, tokens))  # of the long stream, of the young ones
        with progress(tokens, "token") as bar:
            for i in range(tokens):
                if i % YOUNG_TOKENS == 0:
                    young.cache = SinkCache(bench.prepared.config, cfg.n_sink, cfg.window_size)
                    young.cache.load_state_dict(begin)
                pair = (old, young) if i % 2 else (young, old)
                times = {decoder: time_steps(decoder, 1)[0] for decoder in pair}
                step_ms[:, i] = times[old], times[young]
                bar.update()
        return {
            **bench.record,
            "method": "streaming",
            **asdict(cfg),
            "protocol": PROTOCOL,
            "decoded": {"timed_tokens": tokens},
            **_describe_long_run(step_ms, cfg.capacity),
            "kv_bytes": held_bytes(old.cache),
        }


def _describe_step(decoder: Decoder) -> Record:
    """Return the cache's own share of a step; of a compiled one, which has no parts, what compiling took."""
    if isinstance(decoder.cache, SinkCache) and decoder.cache._compile_sec:
        return {"cache_ms": None, "compile_sec": decoder.cache._compile_sec}
    return {"cache_ms": measure_cache(decoder)}


def _describe_long_run(step_ms: np.ndarray, capacity: int) -> dict[str, Any]:
    """Return medians along the run, and their trend, from times (2, N) of the old and the young stream."""
    parts = np.array_split(step_ms, min(LONG_RUN_PARTS, step_ms.shape[1]), axis=1)
    seen = capacity + np.cumsum([part.shape[1] for part in parts])
    medians, control = np.transpose([np.median(part, axis=1) for part in parts])
    return {
        "tokens_seen": seen.tolist(),  # at the end of each part of the run
        "step_ms": {
            "median": float(np.median(step_ms[0])),
            "p95": _p95(step_ms[0]),
            "parts": medians.tolist(),
            "young_parts": control.tolist(),
        },
        "trend_percent_per_1000_tokens": trend(100 * medians / control, seen / 1000),
    }


def describe_times(runs: Sequence[Sequence[float]]) -> Timing:
    """Return median and 95th percentile over all tokens, and the runs' medians, in ms."""
    everything = [ms for run in runs for ms in run]
    medians = [float(np.median(run)) for run in runs]
    return {
        "median": float(np.median(everything)),
        "p95": _p95(everything),
        "runs": medians,
        "spread": [min(medians), max(medians)],
    }


def _p95(times: Sequence[float] | np.ndarray) -> float:
    return float(np.quantile(times, 0.95))


@dataclass(frozen=True)
class _Bench:
    plain: PreTrainedModel
    prepared: PreTrainedModel  # the same weights
    prompt: Tensor  # (1, capacity)
    record: Record


@contextmanager
def _bench(
    model_dir: Path | str, compute: Compute, title: str | None, ids: np.ndarray, dataset: str, capacity: int
) -> Iterator[_Bench]:
    """Load the model, plain and prepared, and begin the record."""
    if len(ids) < capacity:
        raise ValueError(f"{len(ids)} tokens do not fill a cache of {capacity}; take a longer text")
    with torch.inference_mode(False):  # tensors that are born in it cannot be compiled with
        opened = open_model(model_dir, compute, title=title, prepared=False)
        plain, twin = opened.model, share_weights(opened.model)
    check_ids(ids, opened.vocab_size)
    prompt = torch.as_tensor(ids[None, :capacity], dtype=torch.int64, device=plain.device)
    record = {
        "model": opened.title,
        "trained_length": opened.trained_length,
        "dataset": dataset,
        "capacity": capacity,
        "tokens": {"count": capacity, "sha256": hash_ids(ids[:capacity])},
        "measured_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "environment": opened.environment(__file__),
    }
    with prepare(twin) as prepared:
        yield _Bench(plain, prepared, prompt, record)


def share_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Return a second model on the same weights."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
