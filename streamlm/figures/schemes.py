"""The figure of the four schemes: which keys a query sees, what that costs, and what it gives."""

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from streamlm.figures.style import METHOD_LOOKS, PAGE, SMALL_LOOK, STYLE, UNSEEN_LOOK, describe, finish
from streamlm.records.types import Record
from streamlm.summaries.main import ATTENTION_COSTS, METHOD_NAMES, check_comparable

SKETCH = 14  # tokens
N_SINK, WINDOW = 2, 5  # as drawn


def sketch_of(method: str) -> np.ndarray:
    """Return which keys the queries of a short text see: (SKETCH, SKETCH) bool, a row for each query.

    Of the window encoded anew it is what one token costs: the square of its window, for the last query.
    It is `attention.streaming_mask` without torch, which drawing must not load; a test holds them together.
    """
    query, key = np.indices((SKETCH, SKETCH))
    causal, behind = key <= query, query - key
    if method == "recompute":
        return causal & (key >= SKETCH - N_SINK - WINDOW)
    within = {"dense": SKETCH, "window": N_SINK + WINDOW, "streaming": WINDOW}[method]
    seen: np.ndarray = causal & ((behind < within) | ((key < N_SINK) & (method == "streaming")))
    return seen


@matplotlib.rc_context(STYLE)
def plot_schemes(results: Sequence[Record]) -> Figure:
    """Return a sketch of every method above its cost and its perplexities, from `collect_result` records."""
    check_comparable(results, same_stream=False)
    methods = [method for method in METHOD_NAMES if method in results[0]["methods"]]
    figure = Figure((PAGE, 2.6 + 0.24 * len(results)))
    for axes, method in zip(figure.subplots(1, len(methods), squeeze=False).flat, methods, strict=True):
        _draw_sketch(axes, method)
        kept = _kept(results[0]["methods"][method], method)
        lines = [f"attention: {ATTENTION_COSTS[method]}", kept, "perplexity:"]
        for result in results:
            common = result["methods"][method]["common"]
            value = "n/a" if common is None else f"{common['perplexity']:,.2f}"
            lines += textwrap.wrap(f"{result['dataset']}: {value}", 33)
        axes.text(0, -0.04, "\n".join(lines), transform=axes.transAxes, **SMALL_LOOK)
        axes.set_title(METHOD_NAMES[method], loc="left")
    aside = (
        f"sketched: {N_SINK} sinks, a window of {WINDOW}, {SKETCH} tokens, re-encoding for the last of them"
    )
    notes = describe(results[0], [result["tokens"]["count"] for result in results], aside)[:2]
    notes.append("T tokens of text, C entries kept; perplexity is of the tokens after the first eviction")
    finish(figure, "Four schemes: the keys (across) that each query (down) attends to", [], notes)
    return figure


def _draw_sketch(axes: Axes, method: str) -> None:
    colours = ListedColormap([UNSEEN_LOOK["color"], METHOD_LOOKS[method]["color"]])
    axes.pcolormesh(sketch_of(method)[::-1], cmap=colours, edgecolors="white", linewidth=0.8, vmin=0, vmax=1)
    axes.set_aspect("equal")
    axes.axis("off")


def _kept(part: Record, method: str) -> str:
    return "kept: all" if method == "dense" else f"kept: {part['n_sink']}+{part['window_size']:,}"
