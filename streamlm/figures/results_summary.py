"""The main comparison as a table."""

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure as Picture

from streamlm.figures.entry import RESULTS, Figure
from streamlm.figures.style import RC_PARAMS, describe, draw_table
from streamlm.records.types import Record
from streamlm.summaries.main import result_rows


@matplotlib.rc_context(RC_PARAMS)
def plot_results_summary(results: Sequence[Record]) -> Picture:
    """Return the table of `result_rows` as a picture, from `collect_result` records."""
    notes = describe(results[0], [result["tokens"]["count"] for result in results], results[0]["protocol"])
    return draw_table(FIGURE.title, result_rows(results), 3, notes)


FIGURE = Figure(
    title="The main comparison in numbers",
    short_title="Main comparison in numbers",
    caption="""
The main comparison (main_comparison.png_) in numbers. **What to see**: *change against dense* is paired
token by token, so its interval is far narrower than those of the perplexities. If it contains 0, this text
shows no difference.

**Measured** with {model} on the first {n_tokens} tokens of {texts}.""",
    records=RESULTS,
    plot=plot_results_summary,
    rows=result_rows,
)
