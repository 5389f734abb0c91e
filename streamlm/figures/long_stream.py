"""The long stream: perplexity, loss against the largest cache, and memory along the way."""

import textwrap
from collections.abc import Sequence
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D

from streamlm.config import METHODS, as_asked
from streamlm.figures.entry import Figure, Records
from streamlm.figures.style import (
    COLUMN,
    DENSE_STYLE,
    LINE_PATTERNS,
    RC_PARAMS,
    Style,
    band_style,
    finish,
    label_limit,
    method_style,
    scale_perplexity,
    show_tokens_seen,
    use_log_scale,
)
from streamlm.records.types import LongStreamRecord, Record
from streamlm.summaries.main import check_comparable, describe_setting, kept_text
from streamlm.summaries.tables import Row, mib, spread


@matplotlib.rc_context(RC_PARAMS)
def plot_long_stream(streams: Sequence[Record]) -> Picture:
    """Return perplexity, loss against the largest cache and memory along a stream, a column for each text.

    Args:
        streams: `collect_long_stream` records, of one model and machine.
    """
    check_comparable(streams, same_stream=False)
    figure = Picture((COLUMN * len(streams), 6.6))
    reference = _size(streams[0]["rows"][-1])
    styles = _style_rows(streams[0]["rows"])
    panels = figure.subplots(3, len(streams), squeeze=False)
    for stream, column in zip(streams, panels.T, strict=True):
        perplexity, difference, memory = column
        difference.axhline(0, **DENSE_STYLE)
        low, high = np.transpose(stream["rows"][-1]["running_interval"])
        perplexity.fill_between(
            stream["rows"][-1]["tokens_seen"], low, high, **band_style(method_style(METHODS["streaming"]))
        )
        for row, style in zip(stream["rows"], styles.values(), strict=True):
            x = row["tokens_seen"]
            perplexity.plot(x, row["running_perplexity"], **style)
            if row is not stream["rows"][-1]:
                difference.plot(x, row["part_difference_nats"], **style)
            memory.plot(x, [size / 2**20 for size in row["kv_bytes"]], **style)
        trained = stream["trained_length"]
        for axes in column:
            show_tokens_seen(axes, trained)
        if trained is not None:
            label_limit(memory, trained, f"trained to {trained:,}")
        scale_perplexity(perplexity)
        use_log_scale(memory)
        perplexity.set(title=textwrap.fill(stream["dataset"], 40), ylabel="perplexity so far")
        difference.set(
            ylabel=f"loss - loss of {reference}, nats", title=f"Each {stream['part']} tokens, paired"
        )
        memory.set(ylabel="keys and values, MiB", title="Memory")
    handles = [Line2D([], [], **style, label=label) for label, style in styles.items()]
    counts = [stream["tokens"]["count"] for stream in streams]
    dense = streams[0]["rows"][0]["tokens_seen"][-1]
    notes = [
        describe_setting(streams[0]),
        f"{' / '.join(f'{n:,}' for n in dict.fromkeys(counts))} tokens of each text, dense and window only "
        f"to {dense:,}; {streams[0]['protocol']}",
        f"shaded: {100 * streams[0]['confidence']:g} % interval of {reference}, within this text; "
        "differences are paired, so that it does not count for them",
    ]
    finish(figure, FIGURE.title, handles, notes)
    return figure


def _style_rows(rows: Sequence[Record]) -> dict[str, Style]:
    """Return the style of every row by its label: a method keeps its colour, sizes differ in the line."""
    styles, patterns = {}, cycle(LINE_PATTERNS)
    for row in reversed(rows):  # the largest cache gets the solid line
        method = METHODS[row["method"]]
        style = {**method_style(method), "marker": ""}
        if method.geometry is as_asked:
            style["linestyle"] = next(patterns)
        styles[f"{method.title}: {_size(row)}"] = style
    return dict(reversed(styles.items()))


def _size(row: Record) -> str:
    kept = kept_text(row, METHODS[row["method"]])
    return "all tokens" if kept == "all" else kept


def long_stream_rows(streams: Sequence[Record]) -> list[Row]:
    """Return every point that `plot_long_stream` draws, from `collect_long_stream` records."""
    check_comparable(streams, same_stream=False)
    keys = ("tokens_seen", "running_perplexity", "running_interval", "part_difference_nats", "kv_bytes")
    return [
        {
            "text": stream["dataset"],
            "method": METHODS[row["method"]].title,
            "sinks": row["n_sink"],
            "window": row["window_size"],
            "seen_tokens": seen,
            **spread("perplexity", perplexity, interval),
            "difference_nats": difference,
            "kv_mib": mib(kv_bytes),
        }
        for stream in streams
        for row in stream["rows"]
        for seen, perplexity, interval, difference, kv_bytes in zip(*(row[key] for key in keys), strict=True)
    ]


FIGURE = Figure(
    title="Perplexity along a stream far past the trained length",
    short_title="Long stream",
    caption="""
A stream far past the length that the model was trained to (dotted). **What to see**: above, whether
perplexity stays level; in the middle, where a method breaks: the loss of every stretch minus that of the
largest streaming cache, on the same tokens; below, that the memory of streaming does not grow.

**Measured** with {model} ({long[dtype]}) on {long[max_eval_tokens]:,} tokens of {texts}; dense and
window-only go as far as {long[baseline_tokens]:,}. Shaded: the interval of the largest streaming cache.""",
    records=Records("streaming_llm/{corpus}_long_stream.json", LongStreamRecord),
    plot=plot_long_stream,
    rows=long_stream_rows,
)
