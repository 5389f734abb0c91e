"""How the losses of a text are computed under each method.

A method is scored in blocks under its own geometry, unless `SCORERS` has a function for it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from streamlm.cache.attention import QUERY_BLOCK
from streamlm.cache.sink_cache import SinkCache
from streamlm.config import Method, StreamConfig
from streamlm.measure.checkpoint import Checkpoint
from streamlm.measure.progress import progress
from streamlm.measure.scoring import CHUNK, draw_positions, recompute_losses, score_stream
from streamlm.records.types import Record
from streamlm.stats import BootstrapConfig, Correction, sample_difference

BLOCKS = f"scored in blocks: passes of {CHUNK} tokens, {QUERY_BLOCK} queries at a time"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be scored."""

    model: PreTrainedModel  # prepared for `SinkCache`
    ids: np.ndarray  # (N,) token ids of the stream
    method: Method
    asked: StreamConfig  # the geometry in the config
    bootstrap: BootstrapConfig
    kv_dtype: str | None = None  # of a quantised window
    yarn: float | None = None  # what the positions of the model were stretched by
    n_positions: int = 0  # of a method that is estimated from a sample
    checkpoint: Checkpoint | None = None

    @property
    def cfg(self) -> StreamConfig:
        """What the method keeps at equal memory."""
        return self.method.geometry(self.asked, len(self.ids))


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What one scoring gave: losses of every token, time, and memory at the end of the stream."""

    losses: np.ndarray  # (N-1,) nats
    tokens_per_sec: float
    kv_tokens: float  # in the mean over the layers
    kv_bytes: int
    runtime_sec: float | None  # None where only a sample of tokens was timed
    protocol: str = BLOCKS
    correction: Correction | None = None  # what the mean of the losses lacks
    layers: list[Record] = field(default_factory=list)  # what how many layers keep, see `describe_layers`
    sections: dict[str, Any] = field(default_factory=dict)  # more of the record


Scorer = Callable[[Task], Scored]


def score(task: Task) -> Scored:
    """Return the losses of a text under a method.

    Raises:
        ValueError: if a loss is not finite.
    """
    scored = SCORERS.get(task.method.name, score_in_blocks)(task)
    sample = scored.sections.get("recomputed", {"losses_nats": []})["losses_nats"]
    if not (np.isfinite(scored.losses).all() and np.isfinite(sample).all()):
        first = int(np.argmax(~np.isfinite(scored.losses))) + 1
        dtype = str(task.model.dtype).removeprefix("torch.")
        raise ValueError(
            f"the loss of token {first} is not finite: the weights in {task.model.config._name_or_path} are "
            f"damaged, or {dtype} is too narrow for this model"
        )
    return scored


def score_in_blocks(task: Task) -> Scored:
    """Score under sinks + window, with a progress bar: tokens, rate, perplexity so far, time left."""
    state = task.checkpoint
    with progress(len(task.ids) - 1, "token") as bar:

        def show(losses: np.ndarray) -> None:
            if not bar.n and state is not None:
                bar.initial = bar.n = state.restored  # or the rate would count what an earlier run did
            if not bar.disable:
                bar.set_postfix(perplexity=f"{np.exp(losses.mean(dtype=np.float64)):.2f}", refresh=False)
            bar.update(len(losses) - bar.n)

        begin = time.perf_counter()
        losses, cache = score_stream(
            task.model, task.ids, task.cfg, kv_dtype=task.kv_dtype, checkpoint=state, on_progress=show
        )
        seconds = time.perf_counter() - begin if state is None else state.elapsed()
    return Scored(
        losses=losses,
        runtime_sec=seconds,
        tokens_per_sec=len(losses) / seconds,
        kv_tokens=cache.mean_held,
        kv_bytes=cache.nbytes,
        layers=describe_layers(cache),
    )


def describe_layers(cache: SinkCache) -> list[Record]:
    """Return what layers keep, and how many layers keep that: a layer may have a window of its own."""
    return [
        {"layers": count, "n_sink": cfg.n_sink, "window_size": cfg.window_size}
        for cfg, count in cache.geometries
    ]


def estimate_recompute(task: Task) -> Scored:
    """Estimate a window that is computed from scratch for every token, from a seeded sample of tokens.

    One such token costs a pass over the whole window. The losses that are returned are those of the geometry
    that was asked; the mean paired difference at the sample is the correction.

    Source: arXiv:2309.17453, figure 1 (c), "sliding window with re-computation".
    """
    if task.n_positions < 1:
        raise ValueError(f"recompute is estimated at positions >= 1, got {task.n_positions}")
    capacity = task.cfg.capacity
    streamed = score_in_blocks(replace(task, method=replace(task.method, geometry=lambda cfg, _: cfg)))
    positions = draw_positions(len(task.ids), capacity, task.n_positions, task.bootstrap.seed)
    if not len(positions):  # nothing is evicted: all methods are the same
        return with_recomputed(task, streamed, positions, np.empty(0))
    with progress(len(positions), "position") as bar:
        begin = time.perf_counter()
        losses, cache = recompute_losses(
            task.model, task.ids, positions, capacity, on_progress=lambda n: bar.update(n - bar.n)
        )
        rate = len(positions) / (time.perf_counter() - begin)
    sampled = replace(
        streamed,
        runtime_sec=None,
        tokens_per_sec=rate,
        kv_tokens=cache.mean_held,
        kv_bytes=cache.nbytes,
        layers=describe_layers(cache),
    )
    return with_recomputed(task, sampled, positions, losses)


def with_recomputed(task: Task, scored: Scored, positions: np.ndarray, losses: np.ndarray) -> Scored:
    """Return what was scored with what a window from scratch gave at some positions, (M,) in nats."""
    capacity, difference = task.cfg.capacity, None
    if len(positions):
        spacing = (len(scored.losses) - capacity) / len(positions)
        apart = losses.astype(np.float64) - scored.losses[positions]
        difference = sample_difference(apart, spacing, task.bootstrap)
    section = {
        "paired_with": str(task.asked),
        "first_token": capacity,
        "positions": positions.tolist(),
        "losses_nats": losses.tolist(),
        "difference_nats": difference and difference.mean,
        "difference_interval": difference and [difference.low, difference.high],
    }
    correction = None if difference is None else Correction(capacity, difference)
    return replace(scored, correction=correction, sections={"recomputed": section})


# Methods that are more than a geometry of sinks + window, by name.
SCORERS: dict[str, Scorer] = {
    "recompute": estimate_recompute,
}
