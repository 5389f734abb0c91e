"""The loss of every method along a stream."""

import textwrap
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D

from streamlm.config import METHODS
from streamlm.figures.entry import Figure, Records
from streamlm.figures.style import (
    COLUMN,
    RC_PARAMS,
    band_style,
    describe,
    finish,
    label_limit,
    method_style,
    show_tokens_seen,
)
from streamlm.records.paper import MethodsAlongRecord
from streamlm.records.types import Record
from streamlm.summaries.main import check_comparable, kept_text
from streamlm.summaries.tables import Row, spread


@matplotlib.rc_context(RC_PARAMS)
def plot_methods_along(records: Sequence[Record]) -> Picture:
    """Return the mean loss of every stretch of a stream, a column for each text and a row for each model.

    Args:
        records: `collect_methods_along` records, all texts of a model together.
    """
    rows = _by_model(records)
    n_texts = max(map(len, rows.values()))
    figure = Picture((COLUMN * n_texts, 0.8 + 2.6 * len(rows)))
    panels = figure.subplots(len(rows), n_texts, squeeze=False)
    for (model, streams), row in zip(rows.items(), panels, strict=True):
        for record, axes in zip(streams, row, strict=False):
            _plot_stream(axes, record)
            named = [model, record["dataset"]] if len(rows) > 1 else [record["dataset"]]
            axes.set_title("\n".join(textwrap.fill(name, 40) for name in named))
        for axes in row[len(streams) :]:
            axes.axis("off")
    first = records[0]
    handles = [
        Line2D([], [], **method_style(METHODS[row["method"]]), label=_label(row)) for row in first["rows"]
    ]
    counts = [record["tokens"]["count"] for record in records]
    sampled = [row["sampled"] for row in first["rows"] if row["sampled"]]
    aside = f"a point is {first['part']:,} of them"
    if sampled:
        aside += f"; re-computation from {sampled[0]} tokens"
    finish(figure, FIGURE.title, handles, describe(first, counts, aside))
    return figure


def _by_model(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records by the name of their model; a model's own must be comparable."""
    rows: dict[str, list[Record]] = {}
    for record in records:
        rows.setdefault(record["model"], []).append(record)
    for streams in rows.values():
        check_comparable(streams, same_stream=False)
    return rows


def _plot_stream(axes: Axes, record: Record) -> None:
    for row in record["rows"]:
        style, (low, high) = method_style(METHODS[row["method"]]), zip(*row["nll_interval"], strict=True)
        axes.plot(row["tokens_seen"], row["nll_nats"], **style)
        axes.fill_between(row["tokens_seen"], low, high, **band_style(style))
    axes.set_ylabel("loss (log perplexity), nats")
    trained = record["trained_length"]
    show_tokens_seen(axes, trained)
    if trained is not None:
        label_limit(axes, trained, f"trained to {trained:,}", height=0.05)


def _label(row: Record) -> str:
    method = METHODS[row["method"]]
    return f"{method.title}, {kept_text(row, method)}"


def methods_along_rows(records: Sequence[Record]) -> list[Row]:
    """Return every point that `plot_methods_along` draws."""
    keys = ("tokens_seen", "nll_nats", "nll_interval")
    return [
        {"model": record["model"], "text": record["dataset"], "method": METHODS[row["method"]].title}
        | {"kept": kept_text(row, METHODS[row["method"]]), "seen_tokens": seen}
        | spread("loss_nats", nll, interval)
        for record in records
        for row in record["rows"]
        for seen, nll, interval in zip(*(row[key] for key in keys), strict=True)
    ]


FIGURE = Figure(
    title="The loss of every method along a stream",
    short_title="Methods along the stream",
    caption="""
The mean loss of every stretch of a stream. **What to see**: the window fails where its first tokens are
evicted, dense where the stream is longer than any text that the model was trained on (dotted). Streaming
does neither, and is as good as a window that is computed from scratch for every token.

**Measured** with {models} ({long[dtype]}) on {long[max_eval_tokens]:,} tokens of {texts}; dense and
window-only go as far as {long[baseline_tokens]:,}. Re-computation is estimated from a sample of the tokens
of every stretch, paired with streaming; shaded: the {confidence} % interval of a stretch.""",
    records=Records("paper/{corpus}_methods_along.json", MethodsAlongRecord, of_models=True),
    plot=plot_methods_along,
    rows=methods_along_rows,
)
