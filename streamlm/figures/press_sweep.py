"""Beside kvpress: what each method keeps of a context, paired with streamlm at the same budget."""

import textwrap
from collections.abc import Iterator, Sequence

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D

from streamlm.figures.entry import COMPARISONS, Figure
from streamlm.figures.style import (
    DENSE_STYLE,
    PAGE,
    RC_PARAMS,
    Style,
    distinct_styles,
    error_arms,
    finish,
)
from streamlm.presses.grammar import OURS, STREAMLM, parse_press
from streamlm.records.types import Record
from streamlm.summaries.main import check_comparable, describe_setting
from streamlm.summaries.press_findings import few_blocks_notes, notes_on_presses
from streamlm.summaries.presses import entry_at, method_name
from streamlm.summaries.tables import CHANGE, Row, with_interval

PANELS = (  # heading, key of the paired difference
    ("Perplexity change against streamlm, %", CHANGE),
    ("Mean KL from dense, difference to streamlm, nats", "kl_difference_nats"),
)
LINE = 0.105  # inches of height for a mark


@matplotlib.rc_context(RC_PARAMS)
def plot_press_sweep(comparisons: Sequence[Record]) -> Picture:
    """Return paired differences to streamlm with their intervals: a row for each method and budget."""
    check_comparable(comparisons, same_stream=False)
    first = comparisons[0]
    budgets = _budgets(first)
    styles = dict(zip(budgets, distinct_styles(), strict=False))
    drawn = [label for label in _others(first) if not _is_random(first, label)]
    height = LINE * (len(budgets) + 1) * (1 + len(drawn))
    figure = Picture((PAGE, len(comparisons) * (height + 0.6) + 1.6))
    panels = figure.subplots(len(comparisons), len(PANELS), squeeze=False, sharey=True)
    for record, row in zip(comparisons, panels, strict=True):
        for axes, (heading, key) in zip(row, PANELS, strict=True):
            _plot_differences(axes, record, drawn, styles, key)
            axes.set(xlabel=textwrap.fill(heading, 38), ylabel="method")
        row[0].set_title(textwrap.fill(record["dataset"], 40), loc="left")
    handles: list[Artist] = [
        Line2D([], [], **_mark(style), label=f"{budget:,} entries kept") for budget, style in styles.items()
    ]
    finish(figure, FIGURE.title, handles, _notes(comparisons))
    return figure


def _budgets(record: Record) -> list[int]:
    """Return the budgets of a comparison, ascending."""
    return sorted(entry["capacity"] for entry in record["methods"][STREAMLM]["budgets"])


def _others(record: Record) -> Iterator[str]:
    """Yield the labels of the methods that were compared with streamlm."""
    for label, part in record["methods"].items():
        if label != STREAMLM and part["budgets"]:
            yield label


def _is_random(record: Record, label: str) -> bool:
    """Return whether a method is chance, which would stretch the axes: it goes to the notes."""
    return label not in OURS and parse_press(record["methods"][label]["method"]).name == "RandomPress"


def _dense_row(entry: Record) -> Record:
    """Return the differences of dense to streamlm, from streamlm's `entry`."""
    against = entry["against_dense"]
    nll = against["nll_difference_nats"], *reversed(against["nll_difference_interval"])
    return {
        CHANGE: 100 * (np.exp(-nll[0]) - 1),
        f"{CHANGE}_interval": [100 * (np.exp(-end) - 1) for end in nll[1:]],
        "kl_difference_nats": -against["kl_difference_nats"],
        "kl_difference_nats_interval": [-end for end in reversed(against["kl_difference_nats_interval"])],
    }


def _difference(record: Record, label: str, budget: int) -> Record:
    """Return the paired differences of a method, or dense, to streamlm at a budget."""
    entry = entry_at(record["methods"][STREAMLM if label == "dense" else label], budget)
    assert entry is not None
    return _dense_row(entry) if label == "dense" else entry[f"against_{STREAMLM}"]


def _mark(style: Style) -> Style:
    """Return a style without its line."""
    return {**style, "linestyle": ""}


def _plot_differences(
    axes: Axes, record: Record, drawn: Sequence[str], styles: dict[int, Style], key: str
) -> None:
    """Draw one difference of dense and of every method, from above, with its interval at every budget."""
    axes.axvline(0, **DENSE_STYLE)
    labels = ["dense", *drawn]
    for i, (budget, style) in enumerate(styles.items()):
        rows = [_difference(record, label, budget) for label in labels]
        values = [row[key] for row in rows]
        heights = np.arange(len(labels)) + (i - (len(styles) - 1) / 2) / (len(styles) + 1)
        arms = error_arms(values, [row[f"{key}_interval"] for row in rows])
        axes.errorbar(values, heights, xerr=arms, elinewidth=0.8, capsize=1.2, **_mark(style))
    parts = record["methods"]
    names = ["dense", *(method_name(label, parts[label]["method"]) for label in drawn)]
    axes.set_yticks(range(len(names)), map(_wrapped, names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.grid(axis="y", visible=False)


def _wrapped(name: str) -> str:
    """Return the name of a method in lines, broken at spaces and before arguments."""
    return textwrap.fill(name.replace("(", "( "), 30, break_long_words=False).replace("( ", "(")


def _notes(comparisons: Sequence[Record]) -> list[str]:
    """Return the lines below the figure."""
    first = comparisons[0]
    contexts = first["contexts"]
    notes = [
        describe_setting(first),
        f"{contexts['contexts']} x {contexts['context_tokens']:,} tokens of each text, cut once; the next "
        f"{contexts['scored_tokens']:,} of each are scored. streamlm stays within the budget while it reads; "
        "the others read the whole context first, and grow by what is scored",
        f"intervals: {100 * first['confidence']:g} % moving-block bootstrap of differences on the same "
        "tokens, within this text; left of the line: better than streamlm",
        *few_blocks_notes(first),
        *notes_on_presses(first),
    ]
    for record in comparisons:
        for label in _others(record):
            if _is_random(record, label):
                notes.append(_random_note(record, label))
    return notes


def _random_note(record: Record, label: str) -> str:
    """Return what a press that chooses at random gave, in words."""
    rows = [(budget, _difference(record, label, budget)) for budget in _budgets(record)]
    parts = [
        f"{budget:,} kept: {row[CHANGE]:+.1f} %, {row['kl_difference_nats']:+.3f} nats"
        for budget, row in rows
    ]
    name = method_name(label, record["methods"][label]["method"])
    return f"not drawn, {name}, {record['dataset']}: {'; '.join(parts)}"


def press_sweep_rows(comparisons: Sequence[Record]) -> list[Row]:
    """Return what `plot_press_sweep` draws, from `collect_comparison` records, and what it rests on."""
    check_comparable(comparisons, same_stream=False)
    rows = []
    for record in comparisons:
        for label in ("dense", STREAMLM, *_others(record)):
            part = record["methods"].get(label, {})
            for budget in _budgets(record):
                scores = record["dense"] if label == "dense" else entry_at(part, budget)
                difference = None if label == STREAMLM else _difference(record, label, budget)
                rows.append(
                    {"text": record["dataset"], "method": method_name(label, part.get("method", ""))}
                    | {"kept_tokens": budget}
                    | with_interval("perplexity", scores)
                    | with_interval("kl_nats", scores)
                    | with_interval("change_to_streamlm_percent", difference, CHANGE)
                    | with_interval("kl_difference_nats", difference)
                )
    return rows


FIGURE = Figure(
    title="What each method keeps of a context, beside streamlm at equal budgets",
    short_title="Beside kvpress: budgets",
    caption="""
How well a context survives when it is cut once to a budget, by the presses of NVIDIA kvpress and by our
eviction after a dense prefill, against streamlm, which stays within the budget while it reads.
**What to see**: whether an interval lies left of the line: then the method is better than streamlm on the
same tokens. Left, perplexity; right, the divergence of the predicted distribution from dense, which also
shows what perplexity averages away.

**Measured** with {model} on up to {comparison[contexts]} x {comparison[context_tokens]:,} tokens of {texts},
scored on the {comparison[scored_tokens]} tokens after each. Intervals are of paired differences.""",
    records=COMPARISONS,
    plot=plot_press_sweep,
    rows=press_sweep_rows,
)
