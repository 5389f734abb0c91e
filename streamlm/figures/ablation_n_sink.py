"""The ablation of the number of sinks."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from streamlm.figures.ablation import plot_ablation
from streamlm.figures.entry import Figure, Records
from streamlm.figures.style import SMALL_STYLE
from streamlm.records.types import AblationRecord, Record
from streamlm.summaries.main import ablation_rows


def plot_ablation_n_sink(records: Sequence[Record]) -> Picture:
    """Return perplexity and its paired change against the number of sinks, from a `collect_ablation` record.

    Where the change without sinks dwarfs all else, it is off the scale and written instead.
    """
    (ablation,) = records
    rows = sorted(ablation["rows"], key=lambda row: row["capacity"])
    at = {n: float(i) for i, n in enumerate(sorted({row["n_sink"] for row in rows}))}
    title = "Perplexity against the number of sinks, at equal memory"
    x = ("n_sink", "sinks, tokens (window = capacity - sinks)")
    figure = plot_ablation(ablation, title, x, at, ("capacity", "capacity {} tokens"))
    for axes, text in zip(figure.axes[len(figure.axes) // 2 :], ablation["baseline"], strict=True):
        _zoom_past_no_sinks(axes, [row for row in rows if row["dataset"] == text])
    return figure


def _zoom_past_no_sinks(axes: Axes, rows: Sequence[Record]) -> None:
    """Leave out of the scale what lies far above the rows with sinks, and write its change instead."""
    key = "ppl_increase_percent"

    def span(rows: Sequence[Record]) -> tuple[float, float]:
        edges = [0.0] + [edge for row in rows for edge in row["common"][f"{key}_interval"]]
        return min(edges), max(edges)

    low, high = span([row for row in rows if row["n_sink"]])
    far = [row for row in rows if low < high < row["common"][f"{key}_interval"][0] - (high - low)]
    if far:
        low, high = span([row for row in rows if row not in far])
        axes.set_ylim(low - 0.1 * (high - low), high + 0.4 * (high - low))
        written = "".join(f"\n{row['capacity']}: {row['common'][key]:+,.0f} %" for row in far)
        axes.text(0.015, 0.98, f"off scale ↑{written}", transform=axes.transAxes, **SMALL_STYLE)


FIGURE = Figure(
    title="Perplexity against the number of sinks, at equal memory",
    short_title="Number of sinks",
    caption="""
Perplexity against the number of sinks, at equal memory: one more sink is one less window token.
**What to see**: the step from no sink to one, against everything right of it. If sinks were ordinary
tokens, the curves would be flat from the left on.

**Measured** with {model} on the first {n_tokens} tokens of {texts}, at capacities of {capacities} tokens;
every point is judged on the same tokens, those after the largest capacity.""",
    records=Records("streaming_llm/ablation_n_sink.json", AblationRecord),
    plot=plot_ablation_n_sink,
    rows=ablation_rows,
)
