"""StreamEval: right answers by the distance of what is asked for."""

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D

from streamlm.figures.entry import Figure, Records
from streamlm.figures.style import (
    COLUMN,
    LIMIT_STYLE,
    RC_PARAMS,
    Style,
    case_styles,
    error_arms,
    finish,
)
from streamlm.records.paper import StreamEvalRecord
from streamlm.records.types import Record
from streamlm.summaries.main import describe_setting
from streamlm.summaries.tasks import beyond_notes, case_name, refusals, stream_eval_rows

MEASURES = {"chosen": "chosen among {candidates} values", "exact": "written digit by digit"}


@matplotlib.rc_context(RC_PARAMS)
def plot_stream_eval(records: Sequence[Record]) -> Picture:
    """Return right answers over the distance: a column for each measure, a row for each capacity.

    Args:
        records: one, of `measure_stream_eval`.
    """
    (record,) = records
    styles = case_styles([(row["method"], case_name(row)) for row in record["rows"]])
    dense = [row for row in record["rows"] if row["method"] == "dense"]
    capacities = sorted({row["capacity"] for row in record["rows"] if row not in dense})
    figure = Picture((2 * COLUMN, 1.4 + 2.1 * len(capacities)))
    panels = figure.subplots(len(capacities), 2, squeeze=False, sharex=True, sharey=True)
    for capacity, line in zip(capacities, panels, strict=True):
        rows = [*dense, *(row for row in record["rows"] if row["capacity"] == capacity)]
        for (measure, title), axes in zip(MEASURES.items(), line, strict=True):
            _plot_rows(axes, rows, measure, styles)
            axes.set(xlabel="tokens back", ylabel="right answers, %", ylim=(-4, 104))
            axes.set_title(f"{capacity} tokens kept: {title.format(**record['task'])}")
            axes.axvline(capacity, **LIMIT_STYLE)
    handles = [Line2D([], [], **style, label=name) for name, style in styles.items()]
    finish(figure, FIGURE.title, handles, [describe_setting(record), *_notes(record)])
    return figure


def _plot_rows(axes: Axes, rows: Sequence[Record], measure: str, styles: dict[str, Style]) -> None:
    for row in rows:
        shares = [100 * at[f"{measure}_share"] for at in row["distances"]]
        intervals = [[100 * end for end in at[f"{measure}_interval"]] for at in row["distances"]]
        axes.errorbar(
            [at["tokens_back"] for at in row["distances"]],
            shares,
            yerr=error_arms(shares, intervals),
            **styles[case_name(row)],
            elinewidth=0.6,
        )


def _notes(record: Record) -> list[str]:
    task, asked = record["task"], [at["asked"] for at in record["rows"][0]["distances"]]
    counts = f"{min(asked)} to {max(asked)}" if min(asked) < max(asked) else f"{asked[0]}"
    notes = [
        f"{task['lines']} lines, a question every {task['every']}, {counts} questions at each distance; "
        f"dotted: the tokens kept; error bars: {100 * record['confidence']:g} % intervals (Wilson)"
    ]
    titles = {measure: title.format(**task) for measure, title in MEASURES.items()}
    beyond = beyond_notes(record, titles, "distances", lambda at: f"{at['distance']} lines back")
    return [*notes, *beyond, *refusals(record)]


FIGURE = Figure(
    title="StreamEval: what can still be asked",
    short_title="StreamEval",
    caption="""
Lines of a word and a number, and after every {paper[stream_eval][every]} of them an earlier word, whose
number is to follow. **What to see**: streaming answers as long as the line is in its cache, and not beyond.
A cache of sinks and a window keeps a model fluent; it remembers nothing that it has dropped. A press of
kvpress reads all that was before a question and then chooses what to keep, not knowing what is asked.

**Measured** with {model}. Left: the right value is the likeliest of {paper[stream_eval][candidates]} of the
stream, which does not depend on how the model writes. Right: greedy decoding writes all its digits.""",
    records=Records("paper/stream_eval.json", StreamEvalRecord),
    plot=plot_stream_eval,
    rows=stream_eval_rows,
)
