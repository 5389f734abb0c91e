"""Beside kvpress: what each method keeps of a context, against the budget."""

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D

from streamlm.figures.entry import COMPARISONS, Figure
from streamlm.figures.style import (
    BAND_STYLE,
    COLUMN,
    DENSE_STYLE,
    RC_PARAMS,
    band_style,
    finish,
    styles_of,
    use_log_scale,
)
from streamlm.presses.grammar import STREAMLM
from streamlm.records.types import Record
from streamlm.summaries.main import check_comparable, describe_setting
from streamlm.summaries.presses import few_blocks_notes, method_name, refusals
from streamlm.summaries.tables import Row, with_interval


@matplotlib.rc_context(RC_PARAMS)
def plot_press_sweep(comparisons: Sequence[Record]) -> Picture:
    """Return perplexity and divergence from dense against the budget, a line for each method."""
    check_comparable(comparisons, same_stream=False)
    first = comparisons[0]
    methods = {label: part for label, part in first["methods"].items() if part["budgets"]}
    styles = styles_of(list(methods))
    figure = Picture((COLUMN * len(comparisons), 5.6))
    for record, column in zip(
        comparisons, figure.subplots(2, len(comparisons), squeeze=False).T, strict=True
    ):
        perplexity, divergence = column
        perplexity.axhspan(*record["dense"]["perplexity_interval"], **BAND_STYLE)
        perplexity.axhline(record["dense"]["perplexity"], **DENSE_STYLE)
        for label, style in styles.items():
            entries = sorted(record["methods"][label]["budgets"], key=lambda entry: entry["capacity"])
            for axes, key in ((perplexity, "perplexity"), (divergence, "kl_nats")):
                sizes = [e["capacity"] for e in entries]
                axes.plot(sizes, [e[key] for e in entries], **style)
                if label == STREAMLM:
                    edges = np.transpose([e[f"{key}_interval"] for e in entries])
                    axes.fill_between(sizes, *edges, **band_style(style))
        perplexity.set(title=textwrap.fill(record["dataset"], 40), ylabel="perplexity")
        divergence.set(title="Divergence from the dense distribution", ylabel="mean KL, nats")
        for axes in column:
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.minorticks_off()
            axes.set_xlabel("entries kept of the context, tokens")
            use_log_scale(axes)
    handles: list[Artist] = [
        Line2D([], [], **style, label=method_name(label, methods[label]["method"]))
        for label, style in styles.items()
    ]
    handles.append(Line2D([], [], **DENSE_STYLE, label="dense"))
    contexts = first["contexts"]
    notes = [
        describe_setting(first),
        f"{contexts['contexts']} x {contexts['context_tokens']:,} tokens of each text, cut once; the next "
        f"{contexts['scored_tokens']:,} are scored. streamlm stays within the budget, all others grow by "
        "what is scored",
        f"shaded interval: {100 * first['confidence']:g} % moving-block bootstrap, within this text, "
        f"of dense (grey) and {STREAMLM} (blue)",
        *few_blocks_notes(first),
        *refusals(first),
    ]
    finish(figure, FIGURE.title, handles, notes)
    return figure


def press_sweep_rows(comparisons: Sequence[Record]) -> list[Row]:
    """Return what `plot_press_sweep` draws, from `collect_comparison` records."""
    check_comparable(comparisons, same_stream=False)
    rows = []
    for record in comparisons:
        text = {"text": record["dataset"]}
        rows.append(text | {"method": "dense"} | with_interval("perplexity", record["dense"]))
        rows += [
            text
            | {"method": method_name(label, part["method"]), "kept_tokens": entry["capacity"]}
            | with_interval("perplexity", entry)
            | with_interval("kl_nats", entry)
            for label, part in record["methods"].items()
            for entry in part["budgets"]
        ]
    return rows


FIGURE = Figure(
    title="What each method keeps of a context, at equal budgets",
    short_title="Beside kvpress: budgets",
    caption="""
How well a context survives when it is cut once to a budget, by streamlm and by the presses of NVIDIA
kvpress. **What to see**: how far each curve is from dense at an equal budget; below, the divergence of the
predicted distribution, which also shows what perplexity averages away. Only streamlm stays within its
budget while the text goes on.

**Measured** with {model} on {comparison[contexts]} x {comparison[context_tokens]:,} tokens of {texts},
scored on the {comparison[scored_tokens]} tokens after each. Shaded: intervals of dense and streamlm.""",
    records=COMPARISONS,
    plot=plot_press_sweep,
    rows=press_sweep_rows,
)
