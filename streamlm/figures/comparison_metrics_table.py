"""Beside kvpress: every number, under both protocols."""

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure as Picture

from streamlm.figures.entry import COMPARISONS, Figure
from streamlm.figures.style import RC_PARAMS, draw_table
from streamlm.records.types import Record
from streamlm.summaries.press_findings import describe_comparison, notes_on_presses
from streamlm.summaries.presses import comparison_rows


@matplotlib.rc_context(RC_PARAMS)
def plot_comparison_metrics_table(comparisons: Sequence[Record]) -> Picture:
    """Return the table of `comparison_rows` as a picture."""
    notes = [*describe_comparison(comparisons[0]), *notes_on_presses(comparisons[0])]
    return draw_table(FIGURE.title, comparison_rows(comparisons), 3, notes)


FIGURE = Figure(
    title="streamlm and kvpress at equal budgets",
    short_title="Beside kvpress in numbers",
    caption="""
streamlm beside NVIDIA kvpress in numbers, under both protocols. **What to see**: the last column, zero up
to rounding where two implementations compute the same; and what each costs in time and memory.

**Measured** with {model} on {texts} at {comparison[capacity]} entries.""",
    records=COMPARISONS,
    plot=plot_comparison_metrics_table,
    rows=comparison_rows,
)
