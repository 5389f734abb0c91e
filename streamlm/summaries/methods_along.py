"""The record of every method along a stream: loss by stretches, re-computation from a sample of each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamlm.records.types import Record
from streamlm.stats import BootstrapConfig, Correction, Interval, block_bootstrap, sample_difference
from streamlm.summaries.long_stream import check_prefix
from streamlm.summaries.main import Run, read_run

PART = 2048  # tokens of a point of a curve: 16 blocks of the bootstrap


def collect_methods_along(paths: Sequence[Path | str], cfg: BootstrapConfig) -> Record:
    """Return the mean loss of every stretch of a stream under every method.

    Args:
        paths: of run records of one text; all but the last may be over its beginning only.
        cfg: of the bootstrap.

    Raises:
        ValueError: if they are not of one text, model and machine, or too short.

    Source: arXiv:2309.17453, figure 3, whose log perplexity is the mean loss.
    """
    runs = [read_run(path) for path in paths]
    for run in runs:
        check_prefix(run, runs[-1])
        check_parts(run)
    shared = ("model", "trained_length", "dataset", "protocol", "confidence", "tokens", "environment")
    return {
        **{key: runs[-1].record[key] for key in shared},
        "part": PART,
        "rows": [_row(run, cfg) for run in runs],
    }


def check_parts(run: Run) -> None:
    """Raise ValueError if a stream is too short for one point of a curve."""
    if len(run.losses) < PART:
        raise ValueError(
            f"{run.record['method']} scored {len(run.losses):,} tokens of {run.record['dataset']}, and a "
            f"point takes {PART:,}; take more tokens (long_stream in the config)"
        )


def _row(run: Run, cfg: BootstrapConfig) -> dict[str, Any]:
    record, ends = run.record, range(PART, len(run.losses) + 1, PART)
    points = [_mean_loss(run, end - PART, end, cfg) for end in ends]
    return {
        **{key: record[key] for key in ("method", "n_sink", "window_size", "capacity")},
        "sampled": len(record["recomputed"]["positions"]) if "recomputed" in record else None,
        "tokens_seen": [*ends],
        "nll_nats": [point.mean for point in points],
        "nll_interval": [[point.low, point.high] for point in points],
    }


def _mean_loss(run: Run, start: int, stop: int, cfg: BootstrapConfig) -> Interval:
    """Return the mean loss of queries `start` to `stop` - 1; where it is sampled, by those drawn there.

    Raises:
        ValueError: if none was drawn where losses differ.
    """
    mean, sample = block_bootstrap(run.losses[start:stop], cfg), run.record.get("recomputed")
    if sample is None or stop <= sample["first_token"]:
        return mean
    positions, losses = np.array(sample["positions"]), np.array(sample["losses_nats"])
    drawn = (positions >= start) & (positions < stop)
    if not drawn.any():
        raise ValueError(f"no token from {start:,} to {stop:,} was recomputed; recompute at more positions")
    apart = losses[drawn] - run.losses[positions[drawn]]
    difference = sample_difference(apart, (stop - start) / len(apart), cfg)
    return mean + Correction(sample["first_token"], difference).over(start, stop)
