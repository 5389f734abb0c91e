"""Beside kvpress: decoding token by token, the quality, the time, and what is still kept."""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.patches import Patch
from matplotlib.ticker import StrMethodFormatter

from streamlm.figures.entry import COMPARISONS, Figure
from streamlm.figures.style import (
    DENSE_STYLE,
    ERROR_STYLE,
    HATCHES,
    NUMBER_STYLE,
    PAGE,
    RC_PARAMS,
    Style,
    bar_style,
    error_arms,
    finish,
    label_line,
    styles_of,
)
from streamlm.presses.grammar import STREAMLM
from streamlm.records.types import Record
from streamlm.summaries.main import check_comparable
from streamlm.summaries.press_findings import describe_comparison, findings
from streamlm.summaries.presses import method_name
from streamlm.summaries.tables import Row, with_interval

BARS = (  # title, unit, key, interval
    ("Perplexity (lower is better)", "perplexity", "perplexity", "perplexity_interval"),
    ("Divergence from the dense distribution", "mean KL, nats", "kl_nats", "kl_nats_interval"),
    ("Time of a decoded token", "ms per token", "step_ms", None),
)


@matplotlib.rc_context(RC_PARAMS)
def plot_implementation_comparison(comparisons: Sequence[Record]) -> Picture:
    """Return the streaming decode: quality and time by text, equality, and what kvpress still holds."""
    check_comparable(comparisons, same_stream=False)
    decodings = [record["decoding"] for record in comparisons]
    styles = styles_of(list(decodings[0]["methods"]))
    n_bars = len(styles) * len(decodings)
    figure = Picture((max(PAGE, 1.1 + 0.35 * n_bars), 8.6))
    panels = list(figure.subplot_mosaic("AAA;BBB;CCC;DEF").values())
    for axes, (title, unit, key, interval) in zip(panels[:3], BARS, strict=True):
        _plot_bars(axes, decodings, styles, key, interval)
        axes.set(title=title, ylabel=unit)
    _plot_equality(panels[3], decodings, styles)
    n_sink, decoded = decodings[0]["n_sink"], decodings[0]["decoded"]
    n_recent = decoded["capacity"] - 1 - n_sink
    for axes, key, what in (
        (panels[4], "sinks", f"sinks, of {n_sink}"),
        (panels[5], "recent", f"recent, of {n_recent:,}"),
    ):
        _plot_survivors(axes, decodings[0], styles, key)
        axes.set(title=f"First layer: {what}", ylabel="tokens", xlabel="tokens decoded", ylim=(0, None))
    handles = [
        Patch(**bar_style(style, hatch), label=method_name(label))
        for (label, style), hatch in zip(styles.items(), cycle(HATCHES), strict=False)
    ]
    notes = [
        *describe_comparison(comparisons[0]),
        f"{comparisons[0]['dataset']}: {' '.join(findings(comparisons[0]))}",
    ]
    finish(figure, f"Decoding with {decoded['capacity']:,} entries kept", handles, notes)
    return figure


def _plot_bars(
    axes: Axes, decodings: Sequence[Record], styles: Mapping[str, Style], key: str, interval: str | None
) -> None:
    """Draw one value of every method, texts side by side."""
    width = 0.94 / len(styles)
    for i, ((label, style), hatch) in enumerate(zip(styles.items(), cycle(HATCHES), strict=False)):
        for j, decoding in enumerate(decodings):
            part, x = decoding["methods"][label], j + width * (i - (len(styles) - 1) / 2)
            axes.bar(x, part[key], 0.9 * width, **bar_style(style, hatch))
            top = part[key]
            if interval is not None:
                axes.errorbar(x, part[key], error_arms([part[key]], [part[interval]]), **ERROR_STYLE)
                top = max(top, *part[interval])
            axes.annotate(_number(part[key]), (x, top), **NUMBER_STYLE)
    axes.set_xticks(range(len(decodings)), [textwrap.fill(d["dataset"], 24) for d in decodings])
    axes.set(xlabel="text", ymargin=0.15, xlim=(-0.52, len(decodings) - 0.48))
    axes.set_ylim(0, None)
    axes.tick_params(axis="x", length=0)


def _number(value: float) -> str:
    """Return two to four digits."""
    return f"{value:.2g}" if value < 1 else f"{value:.{1 if value < 100 else 0}f}"


def _plot_equality(axes: Axes, decodings: Sequence[Record], styles: Mapping[str, Style]) -> None:
    """Draw the largest difference of any loss to streamlm's, by method and text."""
    labels = [label for label in styles if label.startswith("kvpress")]
    for label in labels:
        values = [decoding["methods"][label]["against_streamlm"]["largest_nats"] for decoding in decodings]
        x = np.arange(len(values)) + 0.2 * (labels.index(label) - (len(labels) - 1) / 2)
        axes.plot(x, np.maximum(values, 1e-9), **{**styles[label], "linestyle": "", "markersize": 6})
    axes.axhline(1e-4, **DENSE_STYLE)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # a power of ten would be a formula
    label_line(axes, 1e-4, "equal up to rounding below")
    width = max(8, 28 // len(decodings))  # characters of a name below a narrow panel
    axes.set_xticks(range(len(decodings)), [textwrap.fill(d["dataset"], width) for d in decodings])
    axes.set(title="Largest loss difference to streamlm", ylabel="nats", xlabel="text")
    axes.set(xlim=(-0.5, len(decodings) - 0.5))


def _plot_survivors(axes: Axes, decoding: Record, styles: Mapping[str, Style], key: str) -> None:
    for label, style in styles.items():
        held = decoding["methods"][label]["survivors"]
        if held is not None:
            x = held["interval"] * np.arange(1, len(held[key]) + 1)
            axes.plot(x, held[key], **{**style, "markevery": max(1, len(x) // 10)})


def implementation_comparison_rows(comparisons: Sequence[Record]) -> list[Row]:
    """Return what `plot_implementation_comparison` draws."""
    check_comparable(comparisons, same_stream=False)
    rows = []
    for record in comparisons:
        for label, entry in record["decoding"]["methods"].items():
            names = {"text": record["dataset"], "method": method_name(label)}
            rows.append(
                names
                | with_interval("perplexity", entry)
                | with_interval("kl_nats", entry)
                | {"step_ms": entry["step_ms"]}
                | {"largest_difference_nats": entry[f"against_{STREAMLM}"]["largest_nats"]}
            )
            held = entry["survivors"]
            if held is not None and record is comparisons[0]:
                rows += [
                    names
                    | {"decoded_tokens": i * held["interval"], "sinks_held": sinks, "recent_held": recent}
                    for i, (sinks, recent) in enumerate(zip(held["sinks"], held["recent"], strict=True), 1)
                ]
    return rows


FIGURE = Figure(
    title="streamlm and kvpress, decoding token by token",
    short_title="Beside kvpress: decoding",
    caption="""
streamlm and NVIDIA kvpress, decoding token by token with {comparison[capacity]} entries kept. kvpress is
its DecodingPress over StreamingLLMPress at an interval of ours (its own default is 512); "re-rotated" is
inside a KeyRerotationPress; "in order" keeps the entries in the order of the text, without rotation.
**What to see**: that re-rotated kvpress gives streamlm's losses up to rounding (middle right), and what
the others still keep of the sinks and of the recent tokens after some rounds of eviction (bottom).

**Measured** with {model} on {comparison[decode][tokens]} decoded tokens of {texts}, the methods in turns
on the same machine; the bottom row is of {first_text}.""",
    records=COMPARISONS,
    plot=plot_implementation_comparison,
    rows=implementation_comparison_rows,
)
