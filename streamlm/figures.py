"""Figures drawn from records: nothing is computed here but places on paper."""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, ScalarFormatter

from streamlm.records import Record, atomic_path
from streamlm.summary import METHOD_NAMES, RESULT_HEADERS, describe_setting, interval_text, result_rows

Look = dict[str, Any]  # keyword arguments of a matplotlib artist

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 8.5, "axes.titlesize": 9, "axes.labelsize": 8.5, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "legend.handlelength": 2.6,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#e2e2e2", "grid.linewidth": 0.6,
    "hatch.linewidth": 0.7, "errorbar.capsize": 2.5, "lines.linewidth": 1.4, "lines.markersize": 4.5,
}  # fmt: skip

# Colours of Okabe and Ito, which colour-blind readers tell apart; hatches and markers do so in grey.
BAR_LOOKS: dict[str, Look] = {
    "dense": {"facecolor": "#b5b5b5"},
    "window": {"facecolor": "#e69f00", "hatch": "////", "edgecolor": "white", "linewidth": 0},
    "streaming": {"facecolor": "#0072b2", "hatch": "....", "edgecolor": "white", "linewidth": 0},
}
LINE_LOOKS: list[Look] = [
    {"color": color, "marker": marker, "linestyle": style}
    for color, marker, style in zip(("#0072b2", "#d55e00", "#009e73"), "os^", ("-", "--", "-."), strict=True)
]
DENSE_LOOK: Look = {"color": "#444444", "linestyle": (0, (6, 2)), "linewidth": 1.0, "zorder": 0.9}
BAND_LOOK: Look = {"color": "#ededed", "zorder": 0.5}
NUMBER_LOOK: Look = {
    "ha": "center", "va": "bottom", "fontsize": 7.5, "xytext": (0, 2.5), "textcoords": "offset points",
    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.6},  # or grid lines would strike it
}  # fmt: skip

# Title, unit, where the value stands in a record's part about one method, and by what to multiply it.
PANELS = (
    ("Perplexity after the first eviction (lower is better)", "perplexity", "common", "perplexity", 1),
    ("Time to score the text", "runtime, s", "streaming", "runtime_sec", 1),
    ("Scoring speed against dense (above 1 is faster)", "speed-up, times", "metrics", "speedup", 1),
    ("Memory saved at the end of the text", "KV entries dropped, %", "metrics", "compression_ratio", 100),
)


@matplotlib.rc_context(STYLE)
def plot_main_comparison(results: Sequence[Record]) -> Figure:
    """Return perplexity, time, speed-up and memory by text and method, from `collect_result` records."""
    figure = Figure((max(9.0, 3.5 * len(results)), 7.2))
    methods = [method for method in METHOD_NAMES if method in results[0]["methods"]]
    name_width = (figure.get_figwidth() / 2 - 0.8) / len(results)  # inches
    names = [textwrap.fill(result["dataset"], int(name_width / 0.085)) for result in results]
    for axes, (title, unit, section, key, factor) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        if key == "speedup":
            axes.axhline(1, **DENSE_LOOK)  # numbers stand above: a dash beside one would read as a minus
        for i, method in enumerate(methods):
            for j, result in enumerate(results):
                place = j + 0.8 * ((i + 0.5) / len(methods) - 0.5)
                part = result["methods"][method][section] or {}  # null where nothing was evicted
                bar = axes.bar(place, factor * (part.get(key) or 0), 0.74 / len(methods), **BAR_LOOKS[method])
                _write_value(axes, place, bar[0].get_height(), part, key)
        axes.set(title=title, ylabel=unit, xlabel="text", xlim=(-0.5, len(results) - 0.5))
        axes.set_xticks(range(len(results)), names)
        axes.tick_params(axis="x", length=0)
        axes.set(ymargin=0.12, ylim=(0, None))
    handles = [Patch(**BAR_LOOKS[method], label=_label_method(method, results)) for method in methods]
    aside = f"{results[0]['protocol']}; runtime and speed-up are of this scoring, not of decoding"
    notes = _describe(results[0], [result["tokens"]["count"] for result in results], aside)
    _finish(figure, "What keeping fewer KV entries costs and saves", handles, notes)
    return figure


def _write_value(axes: Axes, place: float, height: float, part: Record, key: str) -> None:
    """Write a bar's value above it and draw its interval, if it has one; "n/a" if it has no value."""
    digits = 4 if 0 < height < 0.1 else 2 if height < 100 else 1 if height < 1000 else 0
    text = "n/a" if part.get(key) is None else f"{height:,.{digits}f}"
    interval = part.get(f"{key}_interval", [])
    if interval:
        axes.errorbar(place, height, _arms([height], [interval]), color="black", linewidth=0.9)
    axes.annotate(text, (place, max(height, key == "speedup", *interval)), **NUMBER_LOOK)


def _label_method(method: str, results: Sequence[Record]) -> str:
    """Return a method's name with what it keeps, sinks + window."""
    parts = [result["methods"][method] for result in results]
    sizes = dict.fromkeys(f"{part['n_sink']}+{part['window_size']}" for part in parts)
    return f"{METHOD_NAMES[method]}: {'all' if method == 'dense' else ' / '.join(sizes)} tokens"


@matplotlib.rc_context(STYLE)
def plot_ablation_window_size(ablation: Record) -> Figure:
    """Return perplexity and its paired change against window size, from a `collect_ablation` record."""
    sinks = " or ".join(map(str, sorted({row["n_sink"] for row in ablation["rows"]})))
    places = {row["window_size"]: float(np.log2(row["window_size"])) for row in ablation["rows"]}
    x = ("window_size", "window size, tokens (the current one included)")
    title = f"Perplexity against window size, {sinks} sinks kept"
    return _plot_ablation(ablation, title, x, places, ("n_sink", "{} sinks + window"))


@matplotlib.rc_context(STYLE)
def plot_ablation_n_sink(ablation: Record) -> Figure:
    """Return perplexity and its paired change against the number of sinks, from a `collect_ablation` record.

    Where the change without sinks dwarfs all else, it is off the scale and written instead.
    """
    rows = sorted(ablation["rows"], key=lambda row: row["capacity"])
    places = {n: float(i) for i, n in enumerate(sorted({row["n_sink"] for row in rows}))}
    title = "Perplexity against the number of sinks, at equal memory"
    x = ("n_sink", "sinks, tokens (window = capacity - sinks)")
    figure = _plot_ablation(ablation, title, x, places, ("capacity", "capacity {} tokens"))
    for axes, text in zip(figure.axes[len(figure.axes) // 2 :], ablation["baseline"], strict=True):
        _zoom_past_no_sinks(axes, [row for row in rows if row["dataset"] == text])
    return figure


def _zoom_past_no_sinks(axes: Axes, rows: Sequence[Record]) -> None:
    """Leave out of the scale what lies far above the rows with sinks, and write its change instead."""
    key = "ppl_increase_percent"

    def span(rows: Sequence[Record]) -> tuple[float, float]:
        edges = [0.0] + [edge for row in rows for edge in row["common"][f"{key}_interval"]]
        return min(edges), max(edges)

    low, high = span([row for row in rows if row["n_sink"]])
    far = [row for row in rows if low < high < row["common"][f"{key}_interval"][0] - (high - low)]
    if far:
        low, high = span([row for row in rows if row not in far])
        axes.set_ylim(low - 0.1 * (high - low), high + 0.4 * (high - low))
        written = "".join(f"\n{row['capacity']}: {row['common'][key]:+,.0f} %" for row in far)
        axes.text(0.015, 0.98, f"off scale ↑{written}", va="top", fontsize=7, transform=axes.transAxes)


def _plot_ablation(
    ablation: Record, title: str, x: tuple[str, str], places: Mapping[int, float], line: tuple[str, str]
) -> Figure:
    """Return two panels per text; `x` and `line` are a key and its label, `places` the x of each value."""
    texts, rows = ablation["baseline"], ablation["rows"]
    figure = Figure((max(6.0, 4.4 * len(texts)), 6.4))
    looks = dict(zip(sorted({row[line[0]] for row in rows}), cycle(LINE_LOOKS), strict=False))
    for (upper, lower), text in zip(figure.subplots(2, len(texts), squeeze=False).T, texts, strict=True):
        dense = texts[text]["common"]
        upper.axhspan(*dense["perplexity_interval"], **BAND_LOOK)
        upper.axhline(dense["perplexity"], **DENSE_LOOK)
        lower.axhline(0, **DENSE_LOOK)
        for i, (value, look) in enumerate(looks.items()):
            points = [row for row in rows if row["dataset"] == text and row[line[0]] == value]
            points.sort(key=lambda row: row[x[0]])
            aside = 0.14 * (i - (len(looks) - 1) / 2)  # or error bars would hide one another
            where = [places[row[x[0]]] + aside for row in points]
            for axes, key in ((upper, "perplexity"), (lower, "ppl_increase_percent")):
                values = [row["common"][key] for row in points]
                arms = _arms(values, [row["common"][f"{key}_interval"] for row in points])
                axes.errorbar(where, values, arms, elinewidth=0.9, **look)
        written = interval_text(dense["perplexity"], dense["perplexity_interval"])
        upper.set(title=f"{textwrap.fill(text, 48)}\ndense: {written}", ylabel="perplexity")
        lower.set(title="Change against dense, paired token by token", ylabel="change of perplexity, %")
        for axes in (upper, lower):
            axes.set_xticks([*places.values()], [*map(str, places)])
            axes.set(xlabel=x[1], xlim=(min(places.values()) - 0.5, max(places.values()) + 0.5))
        _scale_perplexity(upper)
    handles: list[Artist] = [Line2D([], [], **looks[value], label=line[1].format(value)) for value in looks]
    handles += [Line2D([], [], **DENSE_LOOK, label="dense"), Patch(**BAND_LOOK, label="interval of dense")]
    counts = [ablation["first_token"] + text["common"]["scored"] + 1 for text in texts.values()]
    notes = _describe(ablation, counts, f"judged on the tokens from {ablation['first_token']:,} on")
    _finish(figure, title, handles, notes)
    return figure


def _arms(values: Sequence[float], intervals: Sequence[Sequence[float]]) -> np.ndarray:
    """Return the lengths (2, N) of error bars that span `intervals`."""
    low, high = np.transpose(intervals)
    # A percentile interval need not contain its mean, and matplotlib refuses a negative length.
    return np.maximum([values - low, high - values], 0)


def _scale_perplexity(axes: Axes) -> None:
    """Take a logarithmic axis where perplexities span a factor of five or more."""
    low, high = axes.dataLim.intervaly
    if high >= 5 * low:
        axes.set_yscale("log")
        axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter=ScalarFormatter())
        axes.minorticks_off()


@matplotlib.rc_context(STYLE)
def plot_results_summary(results: Sequence[Record]) -> Figure:
    """Return the table of `result_rows` as a picture, from `collect_result` records."""
    rows = result_rows(results)
    chars = [20, *(max(12, *map(len, column)) for column in [*zip(*rows, strict=True)][1:])]
    heads = [textwrap.fill(head, width) for head, width in zip(RESULT_HEADERS, chars, strict=True)]
    edges = np.cumsum([0.0, *(0.077 * width + 0.2 for width in chars)])  # this and all below in inches
    top, bottom = -0.32 - 0.17 * max(head.count("\n") for head in heads), 0.3 * len(rows)
    figure = Figure((edges[-1] + 0.3, bottom - top + 1.2))
    axes = figure.subplots()
    axes.set(xlim=(0, edges[-1]), ylim=(bottom, top))
    axes.axis("off")
    first = [r for r in range(len(rows)) if r == 0 or rows[r][0] != rows[r - 1][0]]
    for c, (left, right) in enumerate(pairwise(edges)):
        x, side = (left + 0.1, "left") if c < 3 else (right - 0.1, "right")  # words, then numbers
        axes.text(x, -0.1, heads[c], ha=side, va="bottom", ma=side, weight="bold")
        for r in range(len(rows)) if c else first:  # a text is named once, over as many rows as it takes
            axes.text(x, 0.3 * r + 0.09, textwrap.fill(rows[r][c], chars[c]), ha=side, va="top")
    for y, width in {**{0.3 * r: 0.5 for r in first}, top: 1.4, 0: 0.9, bottom: 1.4}.items():
        axes.axhline(y, color="black", linewidth=width, clip_on=False)
    notes = _describe(results[0], [result["tokens"]["count"] for result in results], results[0]["protocol"])
    _finish(figure, "The main comparison in numbers", [], notes)
    return figure


def _describe(record: Record, counts: Sequence[int], aside: str) -> list[str]:
    """Return the lines that say what was measured, on what, and what the intervals mean."""
    tokens = " / ".join(f"{count:,}" for count in dict.fromkeys(counts))
    intervals = f"intervals: {100 * record['confidence']:g} % moving-block bootstrap, within this text"
    return [describe_setting(record), f"{tokens} tokens of each text; {aside}", intervals]


def _finish(figure: Figure, title: str, handles: Sequence[Artist], notes: Sequence[str]) -> None:
    """Put a title and one legend above the panels, and notes below them."""
    width, height = figure.get_size_inches()
    footer = "\n".join(textwrap.fill(note, int(width * 18.5)) for note in notes)
    legend_width = sum(0.5 + 0.075 * len(str(handle.get_label())) for handle in handles)
    legend_rows = int(np.ceil(legend_width / width))
    above, below = 0.42 + 0.2 * legend_rows, 0.15 + 0.14 * (1 + footer.count("\n"))
    figure.text(0.5, 1 - 0.12 / height, title, ha="center", va="top", fontsize=11, weight="bold")
    figure.text(0.12 / width, 0.08 / height, footer, ha="left", va="bottom", fontsize=7, color="#444444")
    if handles:
        columns, place = -(-len(handles) // legend_rows), (0.5, 1 - 0.33 / height)
        figure.legend(handles=handles, ncols=columns, loc="upper center", bbox_to_anchor=place)
    room = (0, below / height, 1, 1 - (above + below) / height)
    figure.set_layout_engine(ConstrainedLayoutEngine(rect=room, h_pad=0.1, w_pad=0.12))


def save_figure(target: Path | str, figure: Figure) -> None:
    """Write a figure as PNG, whole or not at all; the same figure gives the same bytes."""
    with atomic_path(target) as path, matplotlib.rc_context(STYLE):
        figure.savefig(path, format="png", dpi=200, metadata={"Software": None})
