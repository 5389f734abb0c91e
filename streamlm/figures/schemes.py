"""The schemes: which keys a query sees, what that costs, and what it gives."""

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure as Picture

from streamlm.config import METHODS, Method, StreamConfig
from streamlm.figures.entry import RESULTS, Figure
from streamlm.figures.style import PAGE, RC_PARAMS, SMALL_STYLE, UNSEEN_STYLE, describe, finish
from streamlm.records.types import Record
from streamlm.summaries.main import check_comparable, each_method, kept_text
from streamlm.summaries.tables import Row, with_interval

SKETCH = 14  # tokens
DRAWN = StreamConfig(n_sink=2, window_size=5)


def sketch_of(method: Method) -> np.ndarray:
    """Return which keys the queries of a short text see: (SKETCH, SKETCH) bool, a row for each query.

    Of the window with re-computation it is what the last token costs: the square of its window.
    It is `attention.streaming_mask` without torch, which drawing must not load; a test compares them.
    """
    query, key = np.indices((SKETCH, SKETCH))
    if method.sketch is not None:
        seen: np.ndarray = method.sketch(query, key, DRAWN, SKETCH)
        return seen
    cfg = method.geometry(DRAWN, SKETCH)
    return (key <= query) & ((query - key < cfg.window_size) | (key < cfg.n_sink))


@matplotlib.rc_context(RC_PARAMS)
def plot_schemes(results: Sequence[Record]) -> Picture:
    """Return a sketch of every method above its cost and its perplexities, from `collect_result` records."""
    check_comparable(results, same_stream=False)
    methods = [METHODS[name] for name in results[0]["methods"]]
    figure = Picture((PAGE / 4 * max(4, len(methods)), 2.6 + 0.24 * len(results)))
    for axes, method in zip(figure.subplots(1, len(methods), squeeze=False).flat, methods, strict=True):
        _draw_sketch(axes, method)
        kept = kept_text(results[0]["methods"][method.name], method)
        lines = [f"attention: {method.cost}", f"kept: {kept}", "perplexity:"]
        for result in results:
            common = result["methods"][method.name]["common"]
            value = "n/a" if common is None else f"{common['perplexity']:,.2f}"
            lines += textwrap.wrap(f"{result['dataset']}: {value}", 33)
        axes.text(0, -0.04, "\n".join(lines), transform=axes.transAxes, **SMALL_STYLE)
        axes.set_title(method.title, loc="left")
    aside = (
        f"sketched: {DRAWN.n_sink} sinks, a window of {DRAWN.window_size}, {SKETCH} tokens, re-computation "
        "for the last of them"
    )
    notes = describe(results[0], [result["tokens"]["count"] for result in results], aside)[:2]
    notes.append("T tokens of text, C entries kept; perplexity is of the tokens after the first eviction")
    finish(figure, "The schemes: the keys (across) that each query (down) attends to", [], notes)
    return figure


def _draw_sketch(axes: Axes, method: Method) -> None:
    colours = ListedColormap([UNSEEN_STYLE["color"], method.color])
    axes.pcolormesh(sketch_of(method)[::-1], cmap=colours, edgecolors="white", linewidth=0.8, vmin=0, vmax=1)
    axes.set_aspect("equal")
    axes.axis("off")


def scheme_rows(results: Sequence[Record]) -> list[Row]:
    """Return what `plot_schemes` writes, from `collect_result` records."""
    costs = {method.title: method.cost for method in METHODS.values()}
    return [
        {**names, "attention": costs[names["method"]], **with_interval("perplexity", part["common"])}
        for names, part in each_method(results)
    ]


FIGURE = Figure(
    title="The schemes: what attention costs and what it gives",
    short_title="Schemes",
    caption="""
Which earlier tokens (across) a token (down) attends to under each method, what that costs over a text, and
the perplexity that was measured. **What to see**: streaming attends to as few tokens as the window alone,
but keeps the first ones; compare its perplexity with dense, which costs the square of the text, and with
window only, which costs the same.

**Measured** with {model} on the first {n_tokens} tokens of {texts}; the sketches show fewer tokens than
were kept. Costs as in figure 1 of arXiv:2309.17453.""",
    records=RESULTS,
    plot=plot_schemes,
    rows=scheme_rows,
)
