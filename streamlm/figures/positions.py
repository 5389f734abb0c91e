"""Positions in the text against positions in the cache, along a stream."""

import textwrap
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D

from streamlm.figures.entry import Figure, Records
from streamlm.figures.style import (
    COLUMN,
    DENSE_STYLE,
    RC_PARAMS,
    band_style,
    describe,
    distinct_styles,
    finish,
    label_limit,
    show_tokens_seen,
)
from streamlm.records.paper import PositionsRecord
from streamlm.records.types import Record
from streamlm.summaries.main import check_comparable
from streamlm.summaries.positions import position_rows, positions_label


@matplotlib.rc_context(RC_PARAMS)
def plot_positions(records: Sequence[Record]) -> Picture:
    """Return the cost of positions in the text along streams: whole, and before the trained length.

    Args:
        records: `collect_positions` records, of one model and machine.
    """
    check_comparable(records, same_stream=False)
    figure = Picture((COLUMN * len(records), 5.2))
    panels = figure.subplots(2, len(records), squeeze=False)
    styles = dict(zip(map(positions_label, records[0]["rows"]), distinct_styles(), strict=False))
    for record, (whole, before) in zip(records, panels.T, strict=True):
        trained, near = record["trained_length"], []
        for row, style in zip(record["rows"], styles.values(), strict=True):
            low, high = zip(*row["difference_interval"], strict=True)
            for axes in (whole, before):
                axes.plot(row["tokens_seen"], row["difference_nats"], **style)
                axes.fill_between(row["tokens_seen"], low, high, **band_style(style))
            ends = zip(row["tokens_seen"], low, high, strict=True)
            near += [edge for end, *edges in ends if trained is None or end <= trained for edge in edges]
        for axes in (whole, before):
            axes.axhline(0, **DENSE_STYLE)
            axes.set_ylabel("loss, text - cache, nats")
            show_tokens_seen(axes, trained if axes is whole else None)
        whole.set_title(textwrap.fill(record["dataset"], 40))
        before.set_title("The same, before the trained length" if trained else "The same")
        if trained is not None:
            label_limit(whole, trained, f"trained to {trained:,}", height=0.93)
            margin = 0.1 * (max(near, default=1) - min(near, default=0))
            before.set(xlim=(0, trained), ylim=(min(near, default=0) - margin, max(near, default=1) + margin))
    handles = [Line2D([], [], **style, label=label) for label, style in styles.items()]
    counts = [record["tokens"]["count"] for record in records]
    finish(
        figure,
        FIGURE.title,
        handles,
        describe(records[0], counts, f"a point is {records[0]['part']:,} of them"),
    )
    return figure


FIGURE = Figure(
    title="What positions in the text cost, against positions in the cache",
    short_title="Positions",
    caption="""
Sinks and window are the same, and only the distance of the sinks differs: as far as in the cache, or as far
as in the text. **What to see**: above zero, positions in the text are worse. Below, how soon that is so
before the stream is longer than any text the model was trained on (dotted); above, what follows.

**Measured** with {model} ({long[dtype]}) on {long[max_eval_tokens]:,} tokens of {texts}. Every point is a
stretch of the stream, paired token by token; shaded: its {confidence} % interval.""",
    records=Records("paper/{corpus}_positions.json", PositionsRecord),
    plot=plot_positions,
    rows=position_rows,
)
