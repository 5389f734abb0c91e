"""How every figure looks: style, colours, the lines below it, and how it reaches the disk."""

import textwrap
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, StrMethodFormatter

from streamlm.records import Record, atomic_path
from streamlm.summary import describe_setting

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
    "recompute": {"facecolor": "#009e73", "hatch": "xxxx", "edgecolor": "white", "linewidth": 0},
    "streaming": {"facecolor": "#0072b2", "hatch": "....", "edgecolor": "white", "linewidth": 0},
}
METHOD_LOOKS: dict[str, Look] = {
    "dense": {"color": "#777777", "marker": "D", "linestyle": "--"},
    "window": {"color": "#e69f00", "marker": "^", "linestyle": "-."},
    "recompute": {"color": "#009e73", "marker": "s", "linestyle": "-"},
    "streaming": {"color": "#0072b2", "marker": "o", "linestyle": "-"},
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


def error_arms(values: Sequence[float], intervals: Sequence[Sequence[float]]) -> np.ndarray:
    """Return the lengths (2, N) of error bars that span `intervals`."""
    low, high = np.transpose(intervals)
    # A percentile interval need not contain its mean, and matplotlib refuses a negative length.
    return np.maximum([values - low, high - values], 0)


def use_log_scale(axes: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers at 1, 2 and 5 of every decade, more in a short one."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1, 2, 5) if high >= 5 * low else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    axes.yaxis.set(major_locator=LogLocator(subs=subs), major_formatter=StrMethodFormatter("{x:,g}"))
    axes.minorticks_off()


def describe(record: Record, counts: Sequence[int], aside: str) -> list[str]:
    """Return the lines that say what was measured, on what, and what the intervals mean."""
    tokens = " / ".join(f"{count:,}" for count in dict.fromkeys(counts))
    intervals = f"intervals: {100 * record['confidence']:g} % moving-block bootstrap, within this text"
    return [describe_setting(record), f"{tokens} tokens of each text; {aside}", intervals]


def finish(figure: Figure, title: str, handles: Sequence[Artist], notes: Sequence[str]) -> None:
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


def draw_table(
    title: str, headers: Sequence[str], rows: Sequence[Sequence[str]], n_words: int, notes: Sequence[str]
) -> Figure:
    """Return a table as a picture: the first `n_words` columns are words, the others numbers.

    What stands in the first column is written once, over as many rows as it holds for.
    """
    chars = [20, *(max(12, *map(len, column)) for column in [*zip(*rows, strict=True)][1:])]
    heads = [textwrap.fill(head, width) for head, width in zip(headers, chars, strict=True)]
    edges = np.cumsum([0.0, *(0.077 * width + 0.2 for width in chars)])  # this and all below in inches
    top, bottom = -0.32 - 0.17 * max(head.count("\n") for head in heads), 0.3 * len(rows)
    figure = Figure((edges[-1] + 0.3, bottom - top + 1.2))
    axes = figure.subplots()
    axes.set(xlim=(0, edges[-1]), ylim=(bottom, top))
    axes.axis("off")
    first = [r for r in range(len(rows)) if r == 0 or rows[r][0] != rows[r - 1][0]]
    for c, (left, right) in enumerate(pairwise(edges)):
        x, side = (left + 0.1, "left") if c < n_words else (right - 0.1, "right")
        axes.text(x, -0.1, heads[c], ha=side, va="bottom", ma=side, weight="bold")
        for r in range(len(rows)) if c else first:
            axes.text(x, 0.3 * r + 0.09, textwrap.fill(rows[r][c], chars[c]), ha=side, va="top")
    for y, width in {**{0.3 * r: 0.5 for r in first}, top: 1.4, 0: 0.9, bottom: 1.4}.items():
        axes.axhline(y, color="black", linewidth=width, clip_on=False)
    finish(figure, title, [], notes)
    return figure


def save_figure(target: Path | str, figure: Figure) -> None:
    """Write a figure as PNG, whole or not at all; the same figure gives the same bytes."""
    with atomic_path(target) as path, matplotlib.rc_context(STYLE):
        figure.savefig(path, format="png", dpi=200, metadata={"Software": None})
