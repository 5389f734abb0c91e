"""Every number of a figure as rows, from the records that the figure is drawn from.

A row names its columns. A number with an interval stands in three: `x`, `x_low` and `x_high`; the last word
of a name is its unit where there is one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamlm.presses.grammar import OURS
from streamlm.records.types import Record
from streamlm.summaries.latency import check_timings, latency_ratio, streaming_of
from streamlm.summaries.main import ATTENTION_COSTS, METHOD_NAMES, check_comparable
from streamlm.summaries.presses import entry_at, method_name

Row = dict[str, Any]
CHANGE = "ppl_increase_percent"


@dataclass(frozen=True)
class Table:
    """What the table beside a figure is called, and how its rows come from the figure's records."""

    title: str
    rows: Callable[[Sequence[Record]], list[Row]]


def _with_interval(name: str, part: Mapping[str, Any] | None, key: str = "") -> Row:
    """Return a number and its interval under `name`; empty cells where there is no such part."""
    key = key or name
    return _spread(name, *(None, (None, None)) if part is None else (part[key], part[f"{key}_interval"]))


def _spread(name: str, value: float | None, spread: Sequence[float | None]) -> Row:
    return {name: value, f"{name}_low": spread[0], f"{name}_high": spread[1]}


def _mib(size: float | None) -> float | None:
    return None if size is None else size / 2**20


def _each_method(results: Sequence[Record]) -> Iterator[tuple[Row, Record]]:
    """Yield the first cells of a row, and the record's part about the method."""
    check_comparable(results, same_stream=False)
    for result in results:
        for method, part in result["methods"].items():
            names = {"text": result["dataset"], "method": METHOD_NAMES[method]}
            yield names | {"sinks": part["n_sink"], "window": part["window_size"]}, part


def main_comparison_rows(results: Sequence[Record]) -> list[Row]:
    """Return what `figures.plot_main_comparison` draws, from `collect_result` records."""
    return [
        names
        | _with_interval("perplexity", part["common"])
        | {
            "runtime_s": part["streaming"]["runtime_sec"],
            "speedup": part["metrics"]["speedup"],
            "kv_dropped_percent": 100 * part["metrics"]["compression_ratio"],
        }
        for names, part in _each_method(results)
    ]


def scheme_rows(results: Sequence[Record]) -> list[Row]:
    """Return what `scheme_figure.plot_schemes` writes, from `collect_result` records."""
    costs = {METHOD_NAMES[method]: cost for method, cost in ATTENTION_COSTS.items()}
    return [
        {**names, "attention": costs[names["method"]], **_with_interval("perplexity", part["common"])}
        for names, part in _each_method(results)
    ]


def results_summary_rows(results: Sequence[Record]) -> list[Row]:
    """Return what `figures.plot_results_summary` writes, from `collect_result` records."""
    return [
        names
        | _with_interval("perplexity", part["streaming"])
        | _with_interval("after_eviction", part["common"], "perplexity")
        | _with_interval("change_percent", part["common"], CHANGE)
        | {
            "runtime_s": part["streaming"]["runtime_sec"],
            "kv_dropped_percent": 100 * part["metrics"]["compression_ratio"],
        }
        for names, part in _each_method(results)
    ]


def ablation_rows(records: Sequence[Record]) -> list[Row]:
    """Return what the ablation figures draw, from the one `collect_ablation` record."""
    (ablation,) = records
    rows = []
    for text, dense in ablation["baseline"].items():
        rows.append({"text": text, "method": "dense", **_with_interval("perplexity", dense["common"])})
        for row in ablation["rows"]:
            if row["dataset"] == text:
                sizes = {"sinks": row["n_sink"], "window": row["window_size"], "capacity": row["capacity"]}
                rows.append(
                    {"text": text, "method": METHOD_NAMES["streaming" if row["n_sink"] else "window"]}
                    | sizes
                    | _with_interval("perplexity", row["common"])
                    | _with_interval("change_percent", row["common"], CHANGE)
                )
    return rows


def long_stream_rows(streams: Sequence[Record]) -> list[Row]:
    """Return every point that `figures.plot_long_stream` draws, from `collect_long_stream` records."""
    check_comparable(streams, same_stream=False)
    return [
        {
            "text": stream["dataset"],
            "method": METHOD_NAMES[row["method"]],
            "sinks": row["n_sink"],
            "window": row["window_size"],
            "seen_tokens": seen,
            **_spread("perplexity", perplexity, interval),
            "difference_nats": difference,
            "kv_mib": _mib(held),
        }
        for stream in streams
        for row in stream["rows"]
        for seen, perplexity, interval, difference, held in zip(
            *(row[key] for key in ("tokens_seen", "running_perplexity", "running_interval")),
            *(row[key] for key in ("part_difference_nats", "kv_bytes")),
            strict=True,
        )
    ]


def decoding_latency_rows(records: Sequence[Record]) -> list[Row]:
    """Return what `latency_figures.plot_decoding_latency` draws; the last record is the long run."""
    check_timings(records)
    *timed, long_run = records
    rows = []
    for record in timed:
        reference = streaming_of(timed, record["capacity"])
        ratio = None if reference is None else latency_ratio(record, reference)
        rise = record["step_peak_bytes"]
        rows.append(
            {
                "method": METHOD_NAMES[record["method"]],
                "sinks": record["n_sink"],
                "held_tokens": record["capacity"],
                **_spread("step_ms", record["step_ms"]["median"], record["step_ms"]["spread"]),
                **({} if ratio is None else _spread("times_streaming", ratio["ratio"], ratio["spread"])),
                "kv_mib": _mib(record["kv_bytes"]),
                "peak_mib": None if rise is None else _mib(record["kv_bytes"] + rise),
            }
        )
    return rows + list(_long_run_rows(long_run))


def _long_run_rows(record: Record) -> Iterator[Row]:
    sizes = {"sinks": record["n_sink"], "held_tokens": record["capacity"]}
    for name, key in (("one long run", "parts"), ("young streams beside it", "young_parts")):
        for seen, step_ms in zip(record["tokens_seen"], record["step_ms"][key], strict=True):
            yield {"method": name, **sizes, "seen_tokens": seen, "step_ms": step_ms}
    trend = record["trend_percent_per_1000_tokens"]
    change = _spread("change_per_1000_tokens_percent", trend["slope"], (trend["low"], trend["high"]))
    yield {"method": "long run against young streams", **sizes, **change}


def press_sweep_rows(comparisons: Sequence[Record]) -> list[Row]:
    """Return what `comparison_figures.plot_press_sweep` draws, from `collect_comparison` records."""
    check_comparable(comparisons, same_stream=False)
    rows = []
    for record in comparisons:
        text = {"text": record["dataset"]}
        rows.append(text | {"method": "dense"} | _with_interval("perplexity", record["dense"]))
        rows += [
            text
            | {"method": method_name(label, part["method"]), "kept_tokens": entry["capacity"]}
            | _with_interval("perplexity", entry)
            | _with_interval("kl_nats", entry)
            for label, part in record["methods"].items()
            for entry in part["budgets"]
        ]
    return rows


def implementation_comparison_rows(comparisons: Sequence[Record]) -> list[Row]:
    """Return what `comparison_figures.plot_implementation_comparison` draws."""
    check_comparable(comparisons, same_stream=False)
    rows = []
    for record in comparisons:
        for label, entry in record["decoding"]["methods"].items():
            names = {"text": record["dataset"], "method": method_name(label)}
            rows.append(
                names
                | _with_interval("perplexity", entry)
                | _with_interval("kl_nats", entry)
                | {"step_ms": entry["step_ms"]}
                | {"largest_difference_nats": entry[f"against_{OURS[0]}"]["largest_nats"]}
            )
            held = entry["survivors"]
            if held is not None and record is comparisons[0]:
                rows += [
                    names
                    | {"decoded_tokens": i * held["interval"], "sinks_held": sinks, "recent_held": recent}
                    for i, (sinks, recent) in enumerate(zip(held["sinks"], held["recent"], strict=True), 1)
                ]
    return rows


def comparison_metrics_rows(comparisons: Sequence[Record]) -> list[Row]:
    """Return what `comparison_figures.plot_comparison_metrics_table` writes."""
    check_comparable(comparisons, same_stream=False)
    rows = []
    for record in comparisons:
        cut = {"dense": ("dense", record["dense"])} | {
            label: (method_name(label, part["method"]), entry_at(part, record["capacity"]))
            for label, part in record["methods"].items()
        }
        decoded = {
            label: (method_name(label), entry) for label, entry in record["decoding"]["methods"].items()
        }
        for protocol, methods in (("cut once", cut), ("decoded", decoded)):
            names = {"text": record["dataset"], "protocol": protocol}
            rows += [names | {"method": name} | _metrics(entry) for name, entry in methods.values()]
    return rows


def _metrics(entry: Record | None) -> Row:
    """Return the measured cells of a method; none if it cannot work on the model."""
    if entry is None:
        return {}
    return {
        **_with_interval("perplexity", entry),
        **_with_interval("change_percent", entry.get("against_dense"), CHANGE),
        **_with_interval("kl_nats", entry),
        "same_first_percent": 100 * entry["top1_agreement"],
        "prefill_s": entry["prefill_sec"],
        "step_ms": entry["step_ms"],
        "kv_mib": _mib(entry["kv_bytes"]),
        "kv_at_end_mib": _mib(entry.get("kv_bytes_at_end", entry["kv_bytes"])),
        "largest_difference_nats": entry.get(f"against_{OURS[0]}", {}).get("largest_nats"),
    }


TABLES = {
    "schemes": Table("Four schemes: what attention costs and what it gives", scheme_rows),
    "main_comparison": Table("What keeping fewer KV entries costs and saves", main_comparison_rows),
    "results_summary": Table("The main comparison in numbers", results_summary_rows),
    "ablation_window_size": Table("Perplexity against window size", ablation_rows),
    "ablation_n_sink": Table("Perplexity against the number of sinks, at equal memory", ablation_rows),
    "long_stream": Table("Perplexity along a stream far past the trained length", long_stream_rows),
    "decoding_latency": Table("What a decoded token costs at a full cache", decoding_latency_rows),
    "press_sweep": Table("What each method keeps of a context, at equal budgets", press_sweep_rows),
    "implementation_comparison": Table(
        "streamlm and kvpress, decoding token by token", implementation_comparison_rows
    ),
    "comparison_metrics_table": Table("streamlm and kvpress at equal budgets", comparison_metrics_rows),
}
