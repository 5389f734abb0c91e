"""The cost of a decoded token: time, ratios and memory by cache size, and one long run."""

from collections.abc import Iterator, Sequence

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from streamlm.config import METHODS
from streamlm.figures.entry import Figure, Records
from streamlm.figures.style import (
    DENSE_STYLE,
    NUMBER_STYLE,
    PAGE,
    PEAK_STYLE,
    RC_PARAMS,
    SMALL,
    SMALL_STYLE,
    error_arms,
    finish,
    method_style,
    use_log_scale,
)
from streamlm.records.types import LongRunRecord, Record
from streamlm.summaries.latency import (
    check_timings,
    confidence_of,
    describe_decoding,
    latency_rows,
    speedups,
    streaming_of,
)
from streamlm.summaries.main import describe_setting
from streamlm.summaries.tables import Row, spread

MIB = 2**20


@matplotlib.rc_context(RC_PARAMS)
def plot_decoding_latency(records: Sequence[Record]) -> Picture:
    """Return time per token, its ratio to streaming, memory, and the times along one long run.

    Of several streaming records of one capacity the first is drawn; the last record is the long run.

    Raises:
        ValueError: if the records are not of one machine.
    """
    check_timings(records)
    *timed, long_run = records
    lines = lines_of(timed)
    figure = Picture((PAGE, 5.8))
    times, ratios, memory, along = figure.subplots(2, 2).flat
    _plot_times(times, lines)
    _plot_ratios(ratios, timed)
    _plot_memory(memory, lines)
    _plot_long_run(along, long_run)
    sizes = sorted({record["capacity"] for record in timed})
    for axes in (times, ratios, memory):
        axes.set_xscale("log", base=2)
        axes.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
        axes.xaxis.set(major_locator=FixedLocator(sizes), major_formatter=StrMethodFormatter("{x:.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("tokens kept (dense: tokens in the context)")
    handles: list[Artist] = [
        Line2D([], [], **method_style(METHODS[name]), label=_label(name, lines[name])) for name in lines
    ]
    runs = len(timed[0]["step_ms"]["runs"])
    notes = [
        f"{describe_setting(timed[0])}; {describe_decoding(timed[0])}; memory without weights",
        f"medians of all tokens; bars: smallest and largest of the medians of {runs} runs in turns "
        f"({confidence_of(runs):.0%} confidence), ratios within a turn",
    ]
    finish(figure, FIGURE.title, handles, notes)
    return figure


def lines_of(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records that are drawn, by method and ascending capacity."""
    sizes = sorted({record["capacity"] for record in records})
    lines = {
        method: sorted((r for r in records if r["method"] == method), key=lambda r: r["capacity"])
        for method in METHODS
        if any(record["method"] == method for record in records)
    }
    streaming = [record for size in sizes if (record := streaming_of(records, size)) is not None]
    return {**lines, "streaming": streaming}


def _label(method: str, records: Sequence[Record]) -> str:
    if method != "streaming":
        return METHODS[method].title
    return f"streaming ({records[0]['n_sink']} sinks + window)"


def _plot_times(axes: Axes, lines: dict[str, list[Record]]) -> None:
    for method, records in lines.items():
        values = [record["step_ms"]["median"] for record in records]
        spans = error_arms(values, [record["step_ms"]["spread"] for record in records])
        axes.errorbar(
            [r["capacity"] for r in records], values, spans, elinewidth=0.8, **method_style(METHODS[method])
        )
    use_log_scale(axes)
    axes.set(title="Time per token", ylabel="ms per token")


def _plot_ratios(axes: Axes, records: Sequence[Record]) -> None:
    axes.axhline(1, **DENSE_STYLE)
    for method in ("recompute", "dense"):
        found = speedups(records, method)
        values = [ratio["ratio"] for ratio in found.values()]
        spans = error_arms(values, [ratio["spread"] for ratio in found.values()])
        axes.errorbar([*found], values, spans, elinewidth=0.8, **method_style(METHODS[method]))
        for size, ratio in found.items():
            at, style = (size, ratio["spread"][1]), NUMBER_STYLE
            if method == "dense":
                at, style = (size, ratio["spread"][0]), NUMBER_STYLE | {"xytext": (0, -2), "va": "top"}
            axes.annotate(f"{ratio['ratio']:.3g}x", at, **style)
    axes.margins(y=0.15)
    use_log_scale(axes)
    axes.set(title="How many times the time of streaming", ylabel="time / time of streaming")


def _plot_memory(axes: Axes, lines: dict[str, list[Record]]) -> None:
    for method, records in lines.items():
        sizes = [record["capacity"] for record in records]
        kept = np.array([record["kv_bytes"] for record in records]) / MIB
        if kept.all():  # re-computation keeps nothing
            axes.plot(sizes, kept, **method_style(METHODS[method]))
        if all(record["step_peak_bytes"] is not None for record in records):
            rise = np.array([record["step_peak_bytes"] for record in records]) / MIB
            axes.plot(sizes, kept + rise, **method_style(METHODS[method]) | PEAK_STYLE)
    use_log_scale(axes)
    axes.set(title="Memory kept (filled) and peak of a step (hollow)", ylabel="keys and values, MiB")


def _plot_long_run(axes: Axes, record: Record) -> None:
    """Draw the long stream and the young ones beside it."""
    trend, times = record["trend_percent_per_1000_tokens"], record["step_ms"]
    for key, style, label in (
        ("young_parts", DENSE_STYLE, "young streams beside it"),
        ("parts", method_style(METHODS["streaming"]) | {"markersize": 2.5}, "this stream"),
    ):
        axes.plot(record["tokens_seen"], times[key], **style, label=label)
    axes.set_ylim(0, 1.45 * max(*times["parts"], *times["young_parts"]))
    axes.set(
        title=f"One run of {record['decoded']['timed_tokens']:,} tokens, {record['capacity']:,} kept",
        xlabel="tokens seen",
        ylabel="ms per token",
    )
    axes.legend(loc="lower left", ncols=2, fontsize=SMALL, columnspacing=1)
    line = f"ratio: {trend['slope']:+.1f} [{trend['low']:+.1f}, {trend['high']:+.1f}] % per 1,000 tokens"
    axes.text(0.02, 0.97, line, transform=axes.transAxes, **SMALL_STYLE)


def decoding_latency_rows(records: Sequence[Record]) -> list[Row]:
    """Return what `plot_decoding_latency` draws; the last record is the long run."""
    check_timings(records)
    *timed, long_run = records
    return latency_rows(timed) + list(_long_run_rows(long_run))


def _long_run_rows(record: Record) -> Iterator[Row]:
    sizes = {"sinks": record["n_sink"], "held_tokens": record["capacity"]}
    for name, key in (("one long run", "parts"), ("young streams beside it", "young_parts")):
        for seen, step_ms in zip(record["tokens_seen"], record["step_ms"][key], strict=True):
            yield {"method": name, **sizes, "seen_tokens": seen, "step_ms": step_ms}
    trend = record["trend_percent_per_1000_tokens"]
    change = spread("change_per_1000_tokens_percent", trend["slope"], (trend["low"], trend["high"]))
    yield {"method": "long run against young streams", **sizes, **change}


FIGURE = Figure(
    title="What a decoded token costs at a full cache",
    short_title="Cost of a decoded token",
    caption="""
What a decoded token costs when every method keeps as many tokens. **What to see**: re-computation of the
window costs more the larger it is, a streaming token hardly does; a dense cache of the same size costs
about the same, but it grows with the text. Below right, one long run beside young ones: level if the cost
does not depend on how much was read.

**Measured** with {model}, greedy decoding after a full cache on {first_text}; the methods took
{latency[runs]} turns, whiskers reach from the smallest to the largest of their medians. Memory without the
weights.""",
    records=Records("decoding_latency_long_run.json", LongRunRecord, before="decoding_latency_*_sink*.json"),
    plot=plot_decoding_latency,
    rows=decoding_latency_rows,
)
