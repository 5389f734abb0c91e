"""What the twins lose with fewer sinks."""

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure as Picture

from streamlm.figures.entry import Figure, Records
from streamlm.figures.style import RC_PARAMS, draw_table
from streamlm.records.paper import TwinsRecord
from streamlm.records.types import Record
from streamlm.summaries.main import describe_setting
from streamlm.summaries.twins import seeds_of, twin_sink_rows


@matplotlib.rc_context(RC_PARAMS)
def plot_twin_sinks(records: Sequence[Record]) -> Picture:
    """Return the table of `twin_sink_rows` as a picture, from a `collect_twins` record."""
    (record,) = records
    n_seeds = max(map(len, seeds_of(record).values()))
    notes = [
        describe_setting(record),
        f"perplexity per byte on {record['tokens']['scored']:,} bytes that no twin was trained on, after the "
        f"first eviction; in brackets: the lowest and the highest of {n_seeds} seed{'s' * (n_seeds > 1)}",
        f"changes are paired with the largest number of sinks; in brackets: from the lowest to the highest "
        f"end of the seeds' {100 * record['confidence']:g} % intervals",
    ]
    return draw_table(FIGURE.title, twin_sink_rows(records), 2, notes)


FIGURE = Figure(
    title="Fewer sinks, of models trained with and without one",
    short_title="Twins, fewer sinks",
    caption="""
Three small models that are trained alike: as usual, with a zero sink in every head, with a learnable sink
token before every context. **What to see**: what each loses without any sink, and whether one learnable token
is enough.

**Measured** with small Llamas, trained here on bytes of {texts}; the last
{paper[pretraining][scored_bytes]:,} of each are scored, and none of these was trained on.""",
    records=Records("paper/twins.json", TwinsRecord),
    plot=plot_twin_sinks,
    rows=twin_sink_rows,
)
