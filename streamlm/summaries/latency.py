"""What latency records say of each other: ratios, tables, and the summary in words."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from streamlm.config import METHODS
from streamlm.records.fields import check_record
from streamlm.records.types import LatencyRecord, Record
from streamlm.summaries.escape import escape_markdown
from streamlm.summaries.main import COMPARABLE, describe_setting
from streamlm.summaries.tables import Row, as_markdown, interval_text, mib, spread

SAME_MACHINE: dict[str, Callable[[Record], Any]] = {
    **{what: COMPARABLE[what] for what in ("model", "dtype", "device", "processor", "thread count")},
    "core count": lambda record: record["environment"]["cores"],
    "versions of packages": lambda record: record["environment"]["packages"],
}


def check_timings(records: Sequence[Record]) -> None:
    """Raise ValueError unless all were timed with one model on one machine with the same software."""
    for record in records[1:]:
        for what, of in SAME_MACHINE.items():
            if of(record) != of(records[0]):
                raise ValueError(
                    f"the latencies of {name_of(records[0])} and {name_of(record)} cannot be compared, "
                    f"their {what} differs: {of(records[0])!r} and {of(record)!r}; remove the records that "
                    "are not of this machine and run again"
                )


def name_of(record: Record) -> str:
    """Return method, capacity and sinks of a latency record in few words."""
    sinks = f" with {record['n_sink']} sinks" if record["n_sink"] else ""
    return f"{METHODS[record['method']].title} at {record['capacity']}{sinks}"


def describe_decoding(record: Record) -> str:
    """Return what was decoded after, and whether its steps were compiled."""
    compiled = (
        "; the steps of streaming and window only are compiled" if record["decoded"].get("compile") else ""
    )
    return f"greedy decoding after a full cache on {record['dataset']}{compiled}"


def latency_ratio(record: Record, reference: Record) -> dict[str, Any]:
    """Return how many times the reference's time per token `record` takes, with its spread.

    Records of one job were timed in turns: their ratio is taken within each turn, and the spread is that of
    the turns. Of other records it is what the smallest and largest medians of their runs allow.

    Raises:
        ValueError: if they are not of one machine.
    """
    check_timings([record, reference])
    ours, theirs = np.array(record["step_ms"]["runs"]), np.array(reference["step_ms"]["runs"])
    in_turns = record["measured_at"] == reference["measured_at"] and len(ours) == len(theirs)
    ratios = ours / theirs if in_turns else np.array([ours.min() / theirs.max(), ours.max() / theirs.min()])
    middle = np.median(ratios) if in_turns else np.median(ours) / np.median(theirs)
    return {
        "ratio": float(middle),
        "spread": [float(ratios.min()), float(ratios.max())],
        "in_turns": in_turns,
    }


def comparison_line(record: Record, reference: Record) -> str:
    """Return in words what two latency records say of each other."""
    found = latency_ratio(record, reference)
    low, high = found["spread"]
    verdict = "no difference can be seen" if low <= 1 <= high else "they differ by more than their spread"
    times = interval_text(record["step_ms"]["median"], record["step_ms"]["spread"])
    reference_times = interval_text(reference["step_ms"]["median"], reference["step_ms"]["spread"])
    return (
        f"{times} ms against {reference_times} ms: {interval_text(found['ratio'], found['spread'])} times; "
        f"{verdict}{'' if found['in_turns'] else ' (timed one after the other, not in turns)'}"
    )


def same_setting(records: Sequence[Record], reference: Record) -> Record:
    """Return the record of the same method, capacity and sinks as `reference`.

    Raises:
        ValueError: if there is none, or `reference` is not a latency record.
    """
    check_record(reference, LatencyRecord, "the baseline")
    keys = ("method", "capacity", "n_sink")
    for record in records:
        if all(record[key] == reference[key] for key in keys):
            return record
    raise ValueError(f"the baseline is of {name_of(reference)}, which was not measured now; ask for it too")


def confidence_of(runs: int) -> float:
    """Return how sure it is that the range of so many runs' medians encloses their true median.

    Source: each run lies above or below it with equal chance; David, Order Statistics, section 7.1.
    """
    return 1 - 2.0 ** (1 - runs)


def latency_rows(records: Sequence[Record]) -> list[Row]:
    """Return the table of decoding, one row per record."""
    rows = []
    for record in sorted(records, key=_order):
        reference = streaming_of(records, record["capacity"])
        ratio = None if reference is None else latency_ratio(record, reference)
        rise = record["step_peak_bytes"]
        rows.append(
            {
                "held_tokens": record["capacity"],
                "method": METHODS[record["method"]].title,
                "sinks": record["n_sink"],
                **spread("step_ms", record["step_ms"]["median"], record["step_ms"]["spread"]),
                "p95_ms": record["step_ms"]["p95"],
                "cache_ms": record["cache_ms"],
                **({} if ratio is None else spread("times_streaming", ratio["ratio"], ratio["spread"])),
                "kv_mib": mib(record["kv_bytes"]),
                "rise_mib": mib(rise),
                "peak_mib": None if rise is None else mib(record["kv_bytes"] + rise),
            }
        )
    return rows


def _order(record: Record) -> tuple[int, int, int]:
    return record["capacity"], list(METHODS).index(record["method"]), record["n_sink"]


def streaming_of(records: Sequence[Record], capacity: int) -> Record | None:
    """Return the first streaming record at a capacity, if there is one."""
    found = (r for r in records if r["method"] == "streaming" and r["capacity"] == capacity)
    return next(found, None)


def speedups(records: Sequence[Record], method: str) -> dict[int, dict[str, Any]]:
    """Return how many times the time of streaming a method takes, by capacity."""
    found = [record for record in sorted(records, key=_order) if record["method"] == method]
    pairs = ((record, streaming_of(records, record["capacity"])) for record in found)
    return {r["capacity"]: latency_ratio(r, reference) for r, reference in pairs if reference is not None}


def latency_summary(records: Sequence[Record], long_run: Record) -> str:
    """Return `decoding_latency_summary.md`: what a decoded token costs, and how that compares with the paper.

    Raises:
        ValueError: if the records are not of one machine.
    """
    check_timings([*records, long_run])
    first, runs = records[0], len(records[0]["step_ms"]["runs"])
    trend, times = long_run["trend_percent_per_1000_tokens"], long_run["step_ms"]
    parts = [
        "# What a decoded token costs",
        escape_markdown(f"{describe_setting(first)}; {describe_decoding(first)}."),
        "Milliseconds are the median of all tokens, brackets the smallest and the largest of the medians of "
        f"{runs} runs, which enclose the true one with {confidence_of(runs):.0%} confidence. The methods of "
        "one size took turns, and ratios are taken within a turn. *KV* is what stays between two tokens, "
        "*rise* what a step needs on top of it, both measured, the weights not counted.",
        as_markdown(latency_rows(records)),
        "## What it says",
        *(_against(records, method) for method in ("recompute", "dense")),
        f"**One run of {long_run['decoded']['timed_tokens']} tokens** at {long_run['capacity']} held: "
        f"{times['median']:.1f} ms a token. Against young streams decoded beside it, the cost changes by "
        f"{trend['slope']:+.1f} [{trend['low']:+.1f}, {trend['high']:+.1f}] % per 1,000 tokens: "
        f"{_flatness(trend)}.",
    ]
    return "\n\n".join(parts) + "\n"


def _flatness(trend: Record) -> str:
    if trend["low"] <= 0 <= trend["high"]:
        return "flat in the length of the stream, as far as this run can tell"
    return "not flat, by more than the interval of the trend"


# Section 4.5 and figure 10 of arXiv:2309.17453, Llama-2 on one A6000.
CLAIMS = {
    "recompute": "The paper: streaming is up to 22.2 times as fast as re-computation of the window, more so "
    "the larger the cache.",
    "dense": "The paper times no dense cache.",
}


def _against(records: Sequence[Record], method: str) -> str:
    """Return a paragraph: streaming against a method, and whether that is what the paper found."""
    found = speedups(records, method)
    ratios_text = ", ".join(
        f"{interval_text(ratio['ratio'], ratio['spread'])} at {size}" for size, ratio in found.items()
    )
    line = f"**{METHODS[method].title.capitalize()} / streaming**: {ratios_text}. {CLAIMS[method]}"
    if len(found) < 2:
        return line
    ratios = [ratio["ratio"] for ratio in found.values()]
    if method == "recompute":
        grows = bool(np.all(np.diff(ratios) > 0))
        return f"{line} Here it {'grows' if grows else 'does not always grow'} with the cache."
    own = {
        r["capacity"]: r["step_ms"]["median"] for r in sorted(records, key=_order) if r["method"] == method
    }
    (small, first), (large, last) = next(iter(own.items())), list(own.items())[-1]
    return (
        f"{line} A dense token {'became' if last > first else 'did not become'} dearer with its context: "
        f"{first:.1f} ms with {small} tokens, {last:.1f} ms with {large}; streaming stays at the cost of its "
        "own size. With as many tokens, both read the same weights, keys and values, which is most of a "
        "step; what streaming saves is copying them when they grow."
    )
