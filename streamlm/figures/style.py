"""How every figure looks: style, colours, the lines below it, and how it reaches the disk."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

from streamlm.config import METHODS, Method
from streamlm.records.files import atomic_path
from streamlm.records.types import Record
from streamlm.summaries.main import describe_setting
from streamlm.summaries.tables import GROUPS, Row, as_text, shown_columns

Style = dict[str, Any]  # keyword arguments of a matplotlib artist

# Figures are drawn at the size at which they are printed: one panel fills a column of a two-column page, two
# stand side by side. Shrunk to the 5.5 inches of a one-column page, the smallest letters still have 5 points.
COLUMN = 3.45  # inches
PAGE = 2 * COLUMN
SMALL = 6.5  # points; nothing is written smaller

RC_PARAMS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 7.5, "axes.titlesize": 8, "axes.labelsize": 7.5, "figure.titlesize": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "legend.frameon": False, "legend.handlelength": 2.6,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#e2e2e2", "grid.linewidth": 0.5,
    "axes.linewidth": 0.7, "xtick.major.width": 0.7, "ytick.major.width": 0.7,
    "hatch.linewidth": 0.6, "errorbar.capsize": 2, "lines.linewidth": 1.2, "lines.markersize": 4,
    "text.parse_math": False,  # the $ of a name is a letter
    "pdf.fonttype": 42,  # letters as letters: journals refuse matplotlib's usual Type 3
}  # fmt: skip

# Colours of Okabe and Ito, which colour-blind readers tell apart; hatches, markers and lines do so in grey.
GREY, INK, RULE = "#777777", "#444444", "#999999"
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = (
    "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9",
)  # fmt: skip
HATCHES = ("", "....", "////", "xxxx", "----", "\\\\")

LINE_PATTERNS = ("-", ":", "--", "-.")  # of one method at several sizes
LINE_STYLES: list[Style] = [
    {"color": color, "marker": marker, "linestyle": pattern}
    for color, marker, pattern in zip((BLUE, VERMILION, GREEN), "os^", ("-", "--", "-."), strict=True)
]
OUR_STYLES: dict[str, Style] = {  # beside kvpress
    "dense": {"color": GREY, "marker": "D", "linestyle": "--"},
    "streamlm": {"color": BLUE, "marker": "o", "linestyle": "-", "linewidth": 2, "zorder": 3},
    "streamlm_dense_prefill": {"color": BLUE, "marker": "o", "linestyle": ":", "markerfacecolor": "white"},
}
DENSE_STYLE: Style = {"color": INK, "linestyle": (0, (6, 2)), "linewidth": 0.9, "zorder": 0.9}
LIMIT_STYLE: Style = {"color": RULE, "linestyle": ":", "linewidth": 0.8, "zorder": 0.9}
BAND_STYLE: Style = {"color": "#ededed", "zorder": 0.5}
UNSEEN_STYLE: Style = {"color": "#f2f2f2"}
PEAK_STYLE: Style = {"linestyle": ":", "markerfacecolor": "white"}
REST_STYLE: Style = {"color": INK, "linestyle": ":", "marker": ""}  # of what is left beside a line
MAP_COLOURS = {"logits": "viridis_r", "weights": "Greys"}  # darker is more, in grey as in colour
ERROR_STYLE: Style = {"color": "black", "linewidth": 0.8}
SMALL_STYLE: Style = {"fontsize": SMALL, "va": "top"}
NUMBER_STYLE: Style = {
    "ha": "center", "va": "bottom", "fontsize": SMALL, "xytext": (0, 2), "textcoords": "offset points",
    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5},  # or grid lines would strike it
}  # fmt: skip


def bar_style(style: Style, hatch: str) -> Style:
    """Return how bars of what `style` draws as a line are filled."""
    return {"facecolor": style["color"], "hatch": hatch, "edgecolor": "white", "linewidth": 0}


def band_style(style: Style) -> Style:
    """Return how the interval around a line is filled."""
    return {"color": style["color"], "alpha": 0.18, "linewidth": 0, "zorder": 0.6}


def method_style(method: Method) -> Style:
    """Return how lines of a method are drawn."""
    return {"color": method.color, "marker": method.marker, "linestyle": method.linestyle}


def method_bar(method: Method) -> Style:
    """Return how bars of a method are filled."""
    return bar_style(method_style(method), method.hatch)


def distinct_styles() -> Iterator[Style]:
    """Yield styles of lines without end: `LINE_STYLES`, then others; of 36, no two are equal."""
    yield from LINE_STYLES
    colors = cycle((ORANGE, PURPLE, SKY, "#000000"))
    markers, patterns = cycle("vDPX*<>hd"), cycle(LINE_PATTERNS)
    for color, marker, pattern in zip(colors, markers, patterns, strict=False):
        yield {"color": color, "marker": marker, "linestyle": pattern}


def case_styles(cases: Iterable[tuple[str, str]]) -> dict[str, Style]:
    """Return how each method and press is drawn, by its title; a case is a name and a title."""
    others = islice(distinct_styles(), len(LINE_STYLES), None)
    return {
        title: method_style(METHODS[name]) if name in METHODS else next(others)
        for name, title in dict.fromkeys(cases)
    }


def styles_of(labels: Sequence[str]) -> dict[str, Style]:
    """Return how each method beside kvpress is drawn; any two differ in marker or line."""
    colors = cycle((VERMILION, GREEN, ORANGE, PURPLE, SKY, "#000000"))
    markers, patterns = cycle("s^vDPX*<>"), cycle(("-", "--", "-."))
    others = (
        {"color": color, "marker": marker, "linestyle": pattern}
        for color, marker, pattern in zip(colors, markers, patterns, strict=False)
    )
    return {label: OUR_STYLES.get(label) or next(others) for label in labels}


def error_arms(values: Sequence[float], intervals: Sequence[Sequence[float]]) -> np.ndarray:
    """Return the lengths (2, N) of error bars that span `intervals`."""
    low, high = np.transpose(intervals)
    # A percentile interval need not contain its mean, and matplotlib refuses a negative length.
    return np.maximum([values - low, high - values], 0)


def as_square(rows: list[list[float]]) -> np.ndarray:
    """Return rows over keys 0 .. t as a square, NaN where a key is hidden."""
    square = np.full((len(rows), len(rows)), np.nan)
    for query, row in enumerate(rows):
        square[query, : len(row)] = row
    return square


def draw_map(
    axes: Axes, square: np.ndarray, kind: str, limits: tuple[float, float], ylabel: str = "query"
) -> AxesImage:
    """Draw mean attention (T, T) of a `kind` in `MAP_COLOURS`; in a grid, outer panels alone are labelled."""
    low, high = limits
    image = axes.imshow(square, cmap=MAP_COLOURS[kind], vmin=low, vmax=high, interpolation="nearest")
    axes.grid(False)
    axes.set(xlabel="key", ylabel=ylabel)
    place = axes.get_subplotspec()
    if place is not None:
        axes.xaxis.label.set_visible(place.is_last_row())
        axes.yaxis.label.set_visible(place.is_first_col())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True))
    return image


# Plain numbers within a decade, from few to many.
LOG_TICKS = ((1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9))


def use_log_scale(axes: Axes) -> None:
    """Make the y axis logarithmic, with the fewest plain numbers of which three are in view."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)))
    for subs in LOG_TICKS:
        ticks = np.outer(decades, subs)
        if np.sum((low <= ticks) & (ticks <= high)) >= 3:
            break
    axes.yaxis.set(major_locator=LogLocator(subs=subs), major_formatter=StrMethodFormatter("{x:,g}"))
    axes.minorticks_off()


def scale_perplexity(axes: Axes) -> None:
    """Take a logarithmic axis where perplexities span a factor of five or more."""
    low, high = axes.dataLim.intervaly
    if high >= 5 * low:
        use_log_scale(axes)


def describe(record: Record, counts: Sequence[int], aside: str) -> list[str]:
    """Return the lines that say what was measured, on what, and what the intervals mean."""
    tokens = " / ".join(f"{count:,}" for count in dict.fromkeys(counts))
    intervals = f"intervals: {100 * record['confidence']:g} % moving-block bootstrap, within this text"
    return [describe_setting(record), f"{tokens} tokens of each text; {aside}", intervals]


def label_line(axes: Axes, height: float, text: str) -> None:
    """Write what a level line is, at its right end and just above it."""
    axes.annotate(
        text, (1, height), (0, 1.5), xycoords=("axes fraction", "data"), textcoords="offset points",
        ha="right", va="bottom", fontsize=SMALL,
    )  # fmt: skip


def label_limit(axes: Axes, place: float, text: str, height: float = 0.5) -> None:
    """Write what an upright line is, at a part of its height, on the side where there is more room."""
    low, high = axes.get_xlim()
    left = place > (low + high) / 2
    axes.annotate(
        text, (place, height), (-3 if left else 3, 0), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha="right" if left else "left", va="center", fontsize=SMALL,
    )  # fmt: skip


def show_tokens_seen(axes: Axes, trained: int | None = None) -> None:
    """Label the x axis of a stream; draw the length that a model was trained to, if there is one."""
    axes.set(xlabel="tokens seen", xlim=(0, None))
    axes.xaxis.set(major_locator=MaxNLocator(4), major_formatter=StrMethodFormatter("{x:,.0f}"))
    if trained is not None:
        axes.axvline(trained, **LIMIT_STYLE)


def finish(figure: Figure, title: str, handles: Sequence[Artist], notes: Sequence[str]) -> None:
    """Put a title and one legend above the panels, and notes below them."""
    width, height = figure.get_size_inches()
    title = textwrap.fill(title, int(width * 12.5))
    footer = "\n".join(textwrap.fill(note, int(18.5 * (width - 0.2))) for note in notes)
    columns = _legend_columns([str(handle.get_label()) for handle in handles], width)
    legend_rows = -(-len(handles) // columns)
    head = 0.2 + 0.15 * (1 + title.count("\n"))
    above, below = head + 0.17 * legend_rows, 0.12 + 0.128 * (1 + footer.count("\n"))
    figure.text(
        0.5,
        1 - 0.1 / height,
        title,
        ha="center",
        va="top",
        fontsize=RC_PARAMS["figure.titlesize"],
        weight="bold",
    )
    figure.text(0.1 / width, 0.06 / height, footer, ha="left", va="bottom", fontsize=SMALL, color=INK)
    if handles:
        place = (0.5, 1 - (head - 0.08) / height)
        figure.legend(handles=handles, ncols=columns, loc="upper center", bbox_to_anchor=place)
    room = (0, below / height, 1, 1 - (above + below) / height)
    figure.set_layout_engine(ConstrainedLayoutEngine(rect=room, h_pad=0.07, w_pad=0.07))


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """Return the most columns of a legend that fit into a width in inches."""
    for columns in range(len(labels), 1, -1):
        longest = [max(map(len, column)) for column in np.array_split(labels, columns)]
        if sum(0.57 + 0.06 * length for length in longest) <= width:
            n_rows = -(-len(labels) // columns)
            return -(-len(labels) // n_rows)  # as even as so many rows allow
    return 1


def draw_table(title: str, table: Sequence[Row], n_words: int, notes: Sequence[str]) -> Figure:
    """Return a table as a picture: the first `n_words` columns are words, the others numbers.

    What a group of rows shares, in the columns `GROUPS`, is written once, below a line.
    """
    headers, rows = as_text(table)
    chars = [20, *(max(12, *map(len, column)) for column in [*zip(*rows, strict=True)][1:])]
    heads = [textwrap.fill(head, width) for head, width in zip(headers, chars, strict=True)]
    edges = np.cumsum([0.0, *(0.069 * width + 0.18 for width in chars)])  # this and all below in inches
    top, bottom = -0.32 - 0.17 * max(head.count("\n") for head in heads), 0.3 * len(rows)
    figure = Figure((edges[-1] + 0.3, bottom - top + 1.2))
    axes = figure.subplots()
    axes.set(xlim=(0, edges[-1]), ylim=(bottom, top))
    axes.axis("off")
    n_groups = sum(name in GROUPS for name in shown_columns(table))
    # Of each group column, the rows in which a new group starts.
    starts = [
        [r for r in range(len(rows)) if r == 0 or rows[r][: c + 1] != rows[r - 1][: c + 1]]
        for c in range(n_groups)
    ]
    for c, (left, right) in enumerate(pairwise(edges)):
        x, side = (left + 0.1, "left") if c < n_words else (right - 0.1, "right")
        axes.text(x, -0.1, heads[c], ha=side, va="bottom", ma=side, weight="bold")
        for r in starts[c] if c < n_groups else range(len(rows)):
            axes.text(x, 0.3 * r + 0.09, textwrap.fill(rows[r][c], chars[c]), ha=side, va="top")
    for y, width in {**{0.3 * r: 0.5 for r in starts[-1]}, top: 1.4, 0: 0.9, bottom: 1.4}.items():
        axes.axhline(y, color="black", linewidth=width, clip_on=False)
    finish(figure, title, [], notes)
    return figure


# A mark by which commands know a figure of ours, in place of what would differ.
MARKS: dict[str, dict[str, str | None]] = {
    "pdf": {"Creator": "streamlm", "Producer": None, "CreationDate": None},
    "png": {"Software": "streamlm"},
}


def save_figure(target: Path | str, figure: Figure, suffix: str | None = None) -> None:
    """Write a figure as its suffix says, whole or not at all; the same figure gives the same bytes.

    Args:
        target: the file.
        figure: what is drawn.
        suffix: that of the target if not given.

    Raises:
        ValueError: if the suffix is neither .png nor .pdf.
    """
    kind = (Path(target).suffix if suffix is None else suffix).removeprefix(".")
    if kind not in MARKS:
        raise ValueError(f"a figure is written as .png or .pdf, got {target}")
    with atomic_path(target) as path, matplotlib.rc_context(RC_PARAMS):
        figure.savefig(path, format=kind, dpi=300, metadata=MARKS[kind])


def save_figures(targets: Sequence[Path | str], figure: Figure) -> None:
    """Write a figure to every target, as `save_figure` does."""
    for target in targets:
        save_figure(target, figure)
