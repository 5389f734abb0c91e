"""Batches: speed and memory of decoding by the rows of a batch."""

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from streamlm.figures.entry import Figure, Records
from streamlm.figures.style import COLUMN, PAGE, RC_PARAMS, case_styles, error_arms, finish, use_log_scale
from streamlm.records.types import BatchesRecord, Record
from streamlm.summaries.main import describe_setting
from streamlm.summaries.tables import mib
from streamlm.summaries.tasks import batch_rows, case_name, rates, refusals


@matplotlib.rc_context(RC_PARAMS)
def plot_batches(records: Sequence[Record]) -> Picture:
    """Return tokens per second, and the bytes of the cache, over the rows of a batch.

    Args:
        records: one, of `measure_batches`.
    """
    (record,) = records
    styles = case_styles([(row["method"], case_name(row)) for row in record["rows"]])
    figure = Picture((PAGE, COLUMN))
    speed, memory = figure.subplots(1, 2)
    for name, style in styles.items():
        rows = [row for row in record["rows"] if case_name(row) == name]
        sizes = [row["batch"] for row in rows]
        values = [row["tokens_per_sec"] for row in rows]
        speed.errorbar(sizes, values, error_arms(values, list(map(rates, rows))), elinewidth=0.8, **style)
        memory.plot(sizes, [mib(row["kv_bytes"]) for row in rows], **style)
    speed.set(title="Speed", ylabel="tokens per second, all rows")
    memory.set(title="Memory", ylabel="keys and values, MiB")
    for axes in (speed, memory):
        _scale(axes, sorted({row["batch"] for row in record["rows"]}))
    handles = [Line2D([], [], **style, label=name) for name, style in styles.items()]
    decoded = record["decoded"]
    notes = [
        f"{describe_setting(record)}; after {decoded['context_tokens']:,} tokens, dense attends to all, the "
        f"others to {decoded['capacity']:,}",
        f"medians of {decoded['runs']} runs of {decoded['timed_tokens']} tokens in turns; bars: the slowest "
        "and the fastest run",
        *refusals(record),
    ]
    finish(figure, FIGURE.title, handles, notes)
    return figure


def _scale(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set(major_locator=FixedLocator(sizes), major_formatter=StrMethodFormatter("{x:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("rows of the batch")
    use_log_scale(axes)


FIGURE = Figure(
    title="What a decoded token costs in a batch",
    short_title="Batches",
    caption="""
Decoding in batches, after {tasks[batches][context_tokens]:,} tokens of context in every row. **What to see**:
rows share one reading of the weights, so that more of them give more tokens per second, until attention and
memory take over. Dense gets there first: its keys and values grow with the context, the others' do not. A
press leaves as many entries as streaming holds, and grows again with every token; here it is cut back.

**Measured** with {model} on {first_text}; each row has the same context.""",
    records=Records("tasks/batches.json", BatchesRecord),
    plot=plot_batches,
    rows=batch_rows,
)
