"""Figures of the comparison with kvpress, from `collect_comparison` records."""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from streamlm.figures.style import (
    BAND_LOOK,
    COLUMN,
    DENSE_LOOK,
    ERROR_LOOK,
    HATCHES,
    NUMBER_LOOK,
    PAGE,
    STYLE,
    Look,
    band_look,
    bar_look,
    draw_table,
    error_arms,
    finish,
    label_line,
    looks_of,
    use_log_scale,
)
from streamlm.presses.grammar import OURS
from streamlm.records.types import Record
from streamlm.summaries.main import check_comparable, describe_setting, few_blocks
from streamlm.summaries.presses import (
    COMPARISON_HEADERS,
    comparison_rows,
    findings,
    method_name,
    refusals,
)


@matplotlib.rc_context(STYLE)
def plot_press_sweep(comparisons: Sequence[Record]) -> Figure:
    """Return perplexity and divergence from dense against the budget, a line for each method."""
    check_comparable(comparisons, same_stream=False)
    first = comparisons[0]
    methods = {label: part for label, part in first["methods"].items() if part["budgets"]}
    looks = looks_of(list(methods))
    figure = Figure((COLUMN * len(comparisons), 5.6))
    for record, column in zip(
        comparisons, figure.subplots(2, len(comparisons), squeeze=False).T, strict=True
    ):
        perplexity, divergence = column
        perplexity.axhspan(*record["dense"]["perplexity_interval"], **BAND_LOOK)
        perplexity.axhline(record["dense"]["perplexity"], **DENSE_LOOK)
        for label, look in looks.items():
            entries = sorted(record["methods"][label]["budgets"], key=lambda entry: entry["capacity"])
            for axes, key in ((perplexity, "perplexity"), (divergence, "kl_nats")):
                sizes = [e["capacity"] for e in entries]
                axes.plot(sizes, [e[key] for e in entries], **look)
                if label == OURS[0]:
                    edges = np.transpose([e[f"{key}_interval"] for e in entries])
                    axes.fill_between(sizes, *edges, **band_look(look))
        perplexity.set(title=textwrap.fill(record["dataset"], 40), ylabel="perplexity")
        divergence.set(title="Divergence from the dense distribution", ylabel="mean KL, nats")
        for axes in column:
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.minorticks_off()
            axes.set_xlabel("entries kept of the context, tokens")
            use_log_scale(axes)
    handles: list[Artist] = [
        Line2D([], [], **look, label=method_name(label, methods[label]["method"]))
        for label, look in looks.items()
    ]
    handles.append(Line2D([], [], **DENSE_LOOK, label="dense"))
    contexts = first["contexts"]
    notes = [
        describe_setting(first),
        f"{contexts['contexts']} x {contexts['context_tokens']:,} tokens of each text, cut once; the next "
        f"{contexts['scored_tokens']:,} are scored. Streamlm holds the budget throughout, all others grow by "
        "what is scored",
        f"shaded interval: {100 * first['confidence']:g} % moving-block bootstrap, within this text, "
        f"of dense (grey) and {OURS[0]} (blue)",
        *_few_blocks(first),
        *refusals(first),
    ]
    finish(figure, "What each method keeps of a context, at equal budgets", handles, notes)
    return figure


@matplotlib.rc_context(STYLE)
def plot_comparison_metrics_table(comparisons: Sequence[Record]) -> Figure:
    """Return the table of `comparison_rows` as a picture."""
    check_comparable(comparisons, same_stream=False)
    notes = [*_describe(comparisons[0]), *refusals(comparisons[0])]
    title = "streamlm and kvpress at equal budgets"
    return draw_table(title, COMPARISON_HEADERS, comparison_rows(comparisons), 2, notes)


def _describe(record: Record) -> list[str]:
    contexts, decoded = record["contexts"], record["decoding"]["decoded"]
    return [
        describe_setting(record),
        f"cut once: {contexts['contexts']} x {contexts['context_tokens']:,} tokens of each text, the next "
        f"{contexts['scored_tokens']:,} scored; decoded: {decoded['tokens']:,} tokens, one by one, in turns",
        f"{record['n_sink']} sinks; intervals: {100 * record['confidence']:g} % moving-block bootstrap, "
        "within this text",
        *_few_blocks(record, record["decoding"]["methods"]["dense"]),
    ]


def _few_blocks(*parts: Record) -> list[str]:
    counts = [part.get("dense", part)["interval_blocks"] for part in parts]
    told = " and ".join(f"{count:.3g}" for count in counts)
    return [f"{note}: here they are {told}" for note in [few_blocks(counts)] if note]


BARS = (  # title, unit, key, interval
    ("Perplexity (lower is better)", "perplexity", "perplexity", "perplexity_interval"),
    ("Divergence from the dense distribution", "mean KL, nats", "kl_nats", "kl_nats_interval"),
    ("Time of a decoded token", "ms per token", "step_ms", None),
)


@matplotlib.rc_context(STYLE)
def plot_implementation_comparison(comparisons: Sequence[Record]) -> Figure:
    """Return the streaming decode: quality and time by text, equality, and what kvpress still holds."""
    check_comparable(comparisons, same_stream=False)
    decodings = [record["decoding"] for record in comparisons]
    looks = looks_of(list(decodings[0]["methods"]))
    n_bars = len(looks) * len(decodings)
    figure = Figure((max(PAGE, 1.1 + 0.58 * n_bars), 7.4))
    panels = figure.subplots(3, 2).flat
    for axes, (title, unit, key, interval) in zip(panels[:3], BARS, strict=True):
        _plot_bars(axes, decodings, looks, key, interval)
        axes.set(title=title, ylabel=unit)
    _plot_equality(panels[3], decodings, looks)
    n_sink, decoded = decodings[0]["n_sink"], decodings[0]["decoded"]
    n_recent = decoded["capacity"] - 1 - n_sink
    for axes, key, what in (
        (panels[4], "sinks", f"sinks held, of {n_sink}"),
        (panels[5], "recent", f"recent tokens held, of {n_recent:,}"),
    ):
        _plot_survivors(axes, decodings[0], looks, key)
        axes.set(title=f"First layer: {what}", ylabel="tokens", xlabel="tokens decoded", ylim=(0, None))
    handles = [
        Patch(**bar_look(look, hatch), label=method_name(label))
        for (label, look), hatch in zip(looks.items(), cycle(HATCHES), strict=False)
    ]
    notes = [*_describe(comparisons[0]), f"{comparisons[0]['dataset']}: {' '.join(findings(comparisons[0]))}"]
    finish(figure, f"Decoding with {decoded['capacity']:,} entries held", handles, notes)
    return figure


def _plot_bars(
    axes: Axes, decodings: Sequence[Record], looks: Mapping[str, Look], key: str, interval: str | None
) -> None:
    """Draw one value of every method, texts side by side."""
    width = 0.94 / len(looks)
    for i, ((label, look), hatch) in enumerate(zip(looks.items(), cycle(HATCHES), strict=False)):
        for j, decoding in enumerate(decodings):
            part, place = decoding["methods"][label], j + width * (i - (len(looks) - 1) / 2)
            axes.bar(place, part[key], 0.9 * width, **bar_look(look, hatch))
            top = part[key]
            if interval is not None:
                axes.errorbar(place, part[key], error_arms([part[key]], [part[interval]]), **ERROR_LOOK)
                top = max(top, *part[interval])
            axes.annotate(_number(part[key]), (place, top), **NUMBER_LOOK)
    axes.set_xticks(range(len(decodings)), [textwrap.fill(d["dataset"], 24) for d in decodings])
    axes.set(xlabel="text", ymargin=0.15, xlim=(-0.52, len(decodings) - 0.48))
    axes.set_ylim(0, None)
    axes.tick_params(axis="x", length=0)


def _number(value: float) -> str:
    """Return two to four digits."""
    return f"{value:.2g}" if value < 1 else f"{value:.{1 if value < 100 else 0}f}"


def _plot_equality(axes: Axes, decodings: Sequence[Record], looks: Mapping[str, Look]) -> None:
    """Draw the largest difference of any loss to streamlm's, by method and text."""
    labels = [label for label in looks if label.startswith("kvpress")]
    for label in labels:
        values = [decoding["methods"][label]["against_streamlm"]["largest_nats"] for decoding in decodings]
        places = np.arange(len(values)) + 0.2 * (labels.index(label) - (len(labels) - 1) / 2)
        axes.plot(places, np.maximum(values, 1e-9), **{**looks[label], "linestyle": "", "markersize": 6})
    axes.axhline(1e-4, **DENSE_LOOK)
    axes.set_yscale("log")
    label_line(axes, 1e-4, "equal up to rounding below")
    axes.set_xticks(range(len(decodings)), [textwrap.fill(d["dataset"], 24) for d in decodings])
    axes.set(title="Largest difference of a loss to streamlm's", ylabel="nats", xlabel="text")
    axes.set(xlim=(-0.5, len(decodings) - 0.5))


def _plot_survivors(axes: Axes, decoding: Record, looks: Mapping[str, Look], key: str) -> None:
    for label, look in looks.items():
        held = decoding["methods"][label]["survivors"]
        if held is not None:
            x = held["interval"] * np.arange(1, len(held[key]) + 1)
            axes.plot(x, held[key], **{**look, "markevery": max(1, len(x) // 10)})
