"""The record of positions in the text against positions in the cache, along a stream."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamlm.records.types import Record
from streamlm.stats import BootstrapConfig, block_bootstrap, paired_increase
from streamlm.summaries.main import Run, check_comparable, read_run
from streamlm.summaries.methods_along import PART, check_parts
from streamlm.summaries.tables import Row, spread


def collect_positions(
    in_cache: Sequence[Path | str], in_text: Sequence[Path | str], cfg: BootstrapConfig
) -> Record:
    """Return how much more a stream costs with positions in the text, for every geometry.

    Args:
        in_cache: paths of streaming runs over one stream, of different geometries.
        in_text: paths of runs with positions in the text; each is paired with the one of its geometry.
        cfg: of the bootstrap.

    Raises:
        ValueError: if they are not of one stream, model and machine, or too short, or a run has no partner.
    """
    partners = {_geometry(run): run for run in map(read_run, in_cache)}
    runs = list(map(read_run, in_text))
    check_comparable([run.record for run in (*partners.values(), *runs)])
    for run in runs:
        check_parts(run)
    if missing := [_geometry(run) for run in runs if _geometry(run) not in partners]:
        raise ValueError(f"no run with positions in the cache keeps {missing[0][0]}+{missing[0][1]}")
    first = runs[0].record
    shared = ("model", "trained_length", "dataset", "protocol", "confidence", "tokens", "environment")
    return {
        **{key: first[key] for key in shared},
        "part": PART,
        "rows": [_row(run, partners[_geometry(run)], cfg) for run in runs],
    }


def _geometry(run: Run) -> tuple[int, int]:
    return run.record["n_sink"], run.record["window_size"]


def _row(run: Run, partner: Run, cfg: BootstrapConfig) -> dict[str, Any]:
    """Return the differences of one pair: of every part, and before and past the trained length."""
    record, difference = run.record, run.losses.astype(np.float64) - partner.losses
    ends = np.arange(PART, len(difference) + 1, PART)
    parts = [block_bootstrap(difference[end - PART : end], cfg) for end in ends]
    trained = record["trained_length"] or len(difference)
    # The first part of those at the end of which every interval is above zero.
    n_apart = next((i for i, part in enumerate(reversed(parts)) if part.low <= 0), len(parts))
    stretches = {"within_trained": (record["capacity"], trained), "past_trained": (trained, len(difference))}
    return {
        **{key: record[key] for key in ("n_sink", "window_size", "capacity", "yarn") if key in record},
        "tokens_seen": ends.tolist(),
        "difference_nats": [part.mean for part in parts],
        "difference_interval": [[part.low, part.high] for part in parts],
        "apart_from": None if not n_apart else int(ends[-n_apart]) - PART,
        **{
            name: paired_increase(run.losses[start:stop], partner.losses[start:stop], cfg)
            if start < min(stop, len(difference))
            else None
            for name, (start, stop) in stretches.items()
        },
    }


def positions_label(row: Record) -> str:
    """Return what was compared in a row, in a few words."""
    stretched = f", stretched {row['yarn']:g} times (YaRN)" if "yarn" in row else ""
    return f"{row['n_sink']}+{row['window_size']}{stretched}"


def position_rows(records: Sequence[Record]) -> list[Row]:
    """Return every point: how much more a part of a stream costs with positions in the text."""
    keys = ("tokens_seen", "difference_nats", "difference_interval")
    return [
        {"text": record["dataset"], "kept": positions_label(row), "seen_tokens": seen}
        | spread("difference_nats", difference, interval)
        for record in records
        for row in record["rows"]
        for seen, difference, interval in zip(*(row[key] for key in keys), strict=True)
    ]


def position_summary(records: Sequence[Record]) -> list[Row]:
    """Return a row for every text and geometry: the cost before and past the trained length."""
    rows: list[Row] = []
    for record in records:
        for row in record["rows"]:
            cells: Row = {"text": record["dataset"], "kept": positions_label(row)}
            for name in ("within_trained", "past_trained"):
                increase = row[name] or {"nll_difference_nats": None, "nll_difference_interval": (None, None)}
                cells |= spread(
                    f"{name}_nats", increase["nll_difference_nats"], increase["nll_difference_interval"]
                )
            rows.append(cells | {"apart_from_tokens": row["apart_from"]})
    return rows
