"""Retrieval: right answers by task and by what is kept."""

from collections.abc import Sequence
from string import ascii_uppercase

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from streamlm.figures.entry import Figure, Records
from streamlm.figures.style import MAP_COLOURS, PAGE, RC_PARAMS, SMALL, finish
from streamlm.records.paper import RetrievalRecord
from streamlm.records.types import Record
from streamlm.summaries.main import describe_setting
from streamlm.summaries.tasks import beyond_notes, case_name, refusals, retrieval_rows

MEASURES = {"chosen": "Chosen among {candidates} values, %", "exact": "Written token by token, %"}
DARK = 0.5  # share from which a number is written in white


@matplotlib.rc_context(RC_PARAMS)
def plot_retrieval(records: Sequence[Record]) -> Picture:
    """Return a map for each measure: a row for each method at each capacity, a column for each task.

    Args:
        records: one, of `measure_retrieval`.
    """
    (record,) = records
    rows = record["rows"]
    figure = Picture((PAGE, 2.2 + 0.2 * len(rows)))
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    for (measure, title), axes in zip(MEASURES.items(), panels, strict=True):
        shares = np.array([[at[f"{measure}_share"] for at in row["tasks"]] for row in rows])
        axes.imshow(shares, cmap=MAP_COLOURS["weights"], vmin=0, vmax=1, aspect="auto")
        axes.grid(visible=False)
        _write_numbers(axes, shares)
        axes.set_title(title.format(**record["task"]), loc="left")
        axes.set_xticks(range(len(shares[0])), ascii_uppercase[: len(shares[0])])
        axes.set(xlabel="task", ylabel="method, tokens kept")
    panels[0].set_yticks(range(len(rows)), map(_row_name, rows))
    finish(figure, FIGURE.title, [], [describe_setting(record), *_notes(record)])
    return figure


def _row_name(row: Record) -> str:
    return case_name(row) if row["method"] == "dense" else f"{case_name(row)}, {row['capacity']}"


def _write_numbers(axes: Axes, shares: np.ndarray) -> None:
    for (y, x), share in np.ndenumerate(shares):
        colour = "white" if share >= DARK else "black"
        axes.text(x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=SMALL, color=colour)


def _notes(record: Record) -> list[str]:
    tasks = record["rows"][0]["tasks"]
    lengths = [at["tokens"] for at in tasks]
    asked = sorted({at["asked"] for at in tasks})
    notes = [
        "; ".join(f"{letter} {at['task']}" for letter, at in zip(ascii_uppercase, tasks, strict=False)),
        f"texts of {min(lengths)} to {max(lengths)} tokens, {asked[0]} to {asked[-1]} questions of each "
        f"task; a guess among {record['task']['candidates']} values is right in "
        f"{100 / record['task']['candidates']:.0f} % of them. The table has intervals (Wilson), which take "
        "questions on one text as independent",
    ]
    titles = {
        measure: title.format(**record["task"]).removesuffix(", %") for measure, title in MEASURES.items()
    }
    return [*notes, *beyond_notes(record, titles, "tasks", lambda at: str(at["task"])), *refusals(record)]


FIGURE = Figure(
    title="Retrieval: what can still be found",
    short_title="Retrieval",
    caption="""
Tasks in the manner of RULER: numbers hidden in noise and in {last_text}, chains of names, a count, and an
instruction at the beginning of a conversation. **What to see**: the first row is what the model can do at
all. A window has lost what lies before it, with sinks or without. A press has read everything and chosen
what to keep before it knows the question. Where the first row is pale, this model cannot do the task.

**Measured** with {model}, {tasks[samples]} texts of each task; answers are chosen among
{tasks[candidates]} values, or written.""",
    records=Records("tasks/retrieval.json", RetrievalRecord),
    plot=plot_retrieval,
    rows=retrieval_rows,
)
