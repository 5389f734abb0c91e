"""The record of a stream far past the trained length: loss, perplexity and memory along the way."""

from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from streamlm.records.types import Record
from streamlm.stats import BootstrapConfig, after_token, paired_increase
from streamlm.summaries.main import COMPARABLE, Run, read_run

PART = 512  # tokens between two points of a curve


def collect_long_stream(paths: Sequence[Path | str], cfg: BootstrapConfig) -> Record:
    """Return how the runs over one text do along it; the last of them is what the others are paired with.

    Args:
        paths: of run records of one text; all but the last may be over its beginning only.
        cfg: of the bootstrap.

    Raises:
        ValueError: if they are not of one text, model and machine.
    """
    runs = [read_run(path) for path in paths]
    reference = runs[-1]
    for run in runs:
        check_prefix(run, reference)
    shared = ("model", "trained_length", "dataset", "protocol", "confidence", "tokens", "environment")
    return {
        **{key: reference.record[key] for key in shared},
        "part": PART,
        "rows": [_row(run, reference, cfg) for run in runs],
    }


def check_prefix(run: Run, reference: Run) -> None:
    """Raise ValueError unless a run is over the beginning of another's text, as that one is measured."""
    for what in ("model", "protocol", "dtype", "device", "processor", "thread count"):
        of = COMPARABLE[what]
        if of(run.record) != of(reference.record):
            raise ValueError(
                f"the runs along {reference.record['dataset']} cannot be compared, their {what} differs: "
                f"{of(reference.record)!r} and {of(run.record)!r}; measure both on the same machine"
            )
    if run.record["dataset"] != reference.record["dataset"] or len(run.losses) > len(reference.losses):
        raise ValueError(f"{run.record['dataset']} is not the beginning of {reference.record['dataset']}")


def _row(run: Run, reference: Run, cfg: BootstrapConfig) -> dict[str, Any]:
    """Return the curves of one run, a value for the end of every part, and its numbers after key lengths."""
    record, losses = run.record, run.losses.astype(np.float64)
    ends = np.arange(PART, len(losses) + 1, PART)
    totals = np.cumsum(losses)[ends - 1]
    same = reference.losses[: len(losses)].astype(np.float64)
    held = np.minimum(ends, record["capacity"])
    tail = record["trained_length"] or 0
    past = after_token(losses, tail, cfg)
    if past is not None:
        past |= paired_increase(losses[tail:], same[tail:], cfg)
    kept = ("method", "n_sink", "window_size", "capacity", "streaming")
    return {
        **{key: record[key] for key in kept},
        "tokens_seen": ends.tolist(),
        "running_perplexity": np.exp(totals / ends).tolist(),
        "running_interval": running_interval(losses, ends, cfg).tolist(),
        "part_difference_nats": (np.diff(totals - np.cumsum(same)[ends - 1], prepend=0) / PART).tolist(),
        "kv_bytes": (held * record["streaming"]["kv_bytes"] / record["streaming"]["kv_tokens"]).tolist(),
        "past_trained_length": past,
    }


def running_interval(losses: np.ndarray, ends: np.ndarray, cfg: BootstrapConfig) -> np.ndarray:
    """Return the intervals (M, 2) of the perplexity of the first `ends` tokens.

    A bootstrap at every point of a stream of millions would take hours. The mean of means of blocks that do
    not overlap has the same error, from one pass; with fewer than two blocks it is not known, and the
    interval has no width.

    Args:
        losses: (N,) in nats.
        ends: (M,) counts of tokens, at most N.
        cfg: block length and confidence.

    Source: batch means; Law, Simulation Modeling and Analysis, section 9.5.3.
    """
    totals = np.cumsum(losses)[ends - 1]
    n_blocks = len(losses) // cfg.block
    blocks = losses[: n_blocks * cfg.block].reshape(n_blocks, cfg.block).mean(axis=1) - losses.mean()
    counts = np.arange(1, n_blocks + 1)
    variances = (np.cumsum(blocks**2) - np.cumsum(blocks) ** 2 / counts) / np.maximum(counts - 1, 1)
    errors = np.concatenate(([0.0], np.sqrt(np.maximum(variances, 0) / counts)))[ends // cfg.block]
    arms = NormalDist().inv_cdf((1 + cfg.confidence) / 2) * errors
    intervals: np.ndarray = np.exp(totals / ends + np.stack((-arms, arms))).T
    return intervals
