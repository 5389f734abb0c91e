"""The figure of decoding latency: time, ratios and memory by cache size, and one long run."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from streamlm.figures.style import (
    DENSE_LOOK,
    METHOD_LOOKS,
    NUMBER_LOOK,
    PAGE,
    PEAK_LOOK,
    SMALL,
    SMALL_LOOK,
    STYLE,
    error_arms,
    finish,
    use_log_scale,
)
from streamlm.records.types import Record
from streamlm.summaries.latency import check_timings, confidence_of, speedups, streaming_of
from streamlm.summaries.main import METHOD_NAMES, describe_setting

MIB = 2**20


@matplotlib.rc_context(STYLE)
def plot_decoding_latency(records: Sequence[Record], long_run: Record) -> Figure:
    """Return time per token, its ratio to streaming, memory, and the times along one long run.

    Of several streaming records of one capacity the first is drawn.

    Raises:
        ValueError: if the records are not of one machine.
    """
    check_timings([*records, long_run])
    lines = lines_of(records)
    figure = Figure((PAGE, 5.8))
    times, ratios, memory, along = figure.subplots(2, 2).flat
    _plot_times(times, lines)
    _plot_ratios(ratios, records)
    _plot_memory(memory, lines)
    _plot_long_run(along, long_run)
    sizes = sorted({record["capacity"] for record in records})
    for axes in (times, ratios, memory):
        axes.set_xscale("log", base=2)
        axes.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
        axes.xaxis.set(major_locator=FixedLocator(sizes), major_formatter=StrMethodFormatter("{x:.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("tokens held (dense: tokens in the context)")
    handles: list[Artist] = [
        Line2D([], [], **METHOD_LOOKS[method], label=_label(method, lines[method])) for method in lines
    ]
    runs = len(records[0]["step_ms"]["runs"])
    notes = [
        f"{describe_setting(records[0])}; greedy decoding on {records[0]['dataset']}; memory without weights",
        f"medians of all tokens; bars: least and most of the medians of {runs} runs in turns "
        f"({confidence_of(runs):.0%} confidence), ratios within a turn",
    ]
    finish(figure, "What a decoded token costs at a full cache", handles, notes)
    return figure


def lines_of(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records that are drawn, by method and ascending capacity."""
    sizes = sorted({record["capacity"] for record in records})
    lines = {
        method: sorted((r for r in records if r["method"] == method), key=lambda r: r["capacity"])
        for method in METHOD_NAMES
    }
    streaming = [record for size in sizes if (record := streaming_of(records, size)) is not None]
    return {**lines, "streaming": streaming}


def _label(method: str, records: Sequence[Record]) -> str:
    if method != "streaming":
        return METHOD_NAMES[method]
    return f"streaming ({records[0]['n_sink']} sinks + window)"


def _plot_times(axes: Axes, lines: dict[str, list[Record]]) -> None:
    for method, records in lines.items():
        values = [record["step_ms"]["median"] for record in records]
        spans = error_arms(values, [record["step_ms"]["spread"] for record in records])
        axes.errorbar([r["capacity"] for r in records], values, spans, elinewidth=0.8, **METHOD_LOOKS[method])
    use_log_scale(axes)
    axes.set(title="Time per token", ylabel="ms per token")


def _plot_ratios(axes: Axes, records: Sequence[Record]) -> None:
    axes.axhline(1, **DENSE_LOOK)
    for method in ("recompute", "dense"):
        found = speedups(records, method)
        values = [ratio["ratio"] for ratio in found.values()]
        spans = error_arms(values, [ratio["spread"] for ratio in found.values()])
        axes.errorbar([*found], values, spans, elinewidth=0.8, **METHOD_LOOKS[method])
        for size, ratio in found.items():
            place, look = (size, ratio["spread"][1]), NUMBER_LOOK
            if method == "dense":
                place, look = (size, ratio["spread"][0]), NUMBER_LOOK | {"xytext": (0, -2), "va": "top"}
            axes.annotate(f"{ratio['ratio']:.3g}x", place, **look)
    axes.margins(y=0.15)
    use_log_scale(axes)
    axes.set(title="How many times the time of streaming", ylabel="time / time of streaming")


def _plot_memory(axes: Axes, lines: dict[str, list[Record]]) -> None:
    for method, records in lines.items():
        sizes = [record["capacity"] for record in records]
        kept = np.array([record["kv_bytes"] for record in records]) / MIB
        if kept.all():  # re-encoding keeps nothing
            axes.plot(sizes, kept, **METHOD_LOOKS[method])
        if all(record["step_peak_bytes"] is not None for record in records):
            rise = np.array([record["step_peak_bytes"] for record in records]) / MIB
            axes.plot(sizes, kept + rise, **METHOD_LOOKS[method] | PEAK_LOOK)
    use_log_scale(axes)
    axes.set(title="Memory kept (filled) and peak of a step (hollow)", ylabel="keys and values, MiB")


def _plot_long_run(axes: Axes, record: Record) -> None:
    """Draw the long stream and the young ones beside it."""
    trend, times = record["trend_percent_per_1000_tokens"], record["step_ms"]
    for key, look, label in (
        ("young_parts", DENSE_LOOK, "young streams beside it"),
        ("parts", METHOD_LOOKS["streaming"] | {"markersize": 2.5}, "this stream"),
    ):
        axes.plot(record["tokens_seen"], times[key], **look, label=label)
    axes.set_ylim(0, 1.45 * max(*times["parts"], *times["young_parts"]))
    axes.set(
        title=f"One run of {record['decoded']['timed_tokens']:,} tokens, {record['capacity']:,} held",
        xlabel="tokens seen",
        ylabel="ms per token",
    )
    axes.legend(loc="lower left", ncols=2, fontsize=SMALL, columnspacing=1)
    told = f"ratio: {trend['slope']:+.1f} [{trend['low']:+.1f}, {trend['high']:+.1f}] % per 1,000 tokens"
    axes.text(0.02, 0.97, told, transform=axes.transAxes, **SMALL_LOOK)
