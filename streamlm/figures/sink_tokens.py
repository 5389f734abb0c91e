"""What the sinks have to be, as a table."""

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure as Picture

from streamlm.figures.entry import Figure, Records
from streamlm.figures.style import RC_PARAMS, describe, draw_table
from streamlm.records.paper import SinkTokensRecord
from streamlm.records.types import Record
from streamlm.summaries.main import check_comparable
from streamlm.summaries.sink_mass import sink_token_rows


@matplotlib.rc_context(RC_PARAMS)
def plot_sink_tokens(records: Sequence[Record]) -> Picture:
    """Return the table of `sink_token_rows` as a picture, from `measure_sink_tokens` records."""
    check_comparable(records, same_stream=False)
    first = records[0]
    aside = (
        f"judged on the tokens from {first['first_token']:,} on; the change is paired with the stream's own "
        "first tokens as sinks"
    )
    notes = describe(first, [record["tokens"]["count"] for record in records], aside)
    return draw_table(FIGURE.title, sink_token_rows(records), 3, notes)


FIGURE = Figure(
    title="What the sinks have to be",
    short_title="What sinks are",
    caption="""
The same stream with sinks of several kinds, at equal memory. **What to see**: whether line feeds or random
tokens serve as well as the first tokens of the text. If so, a sink is a place and not a meaning. The last
row of a text has no sinks at all.

**Measured** with {model} on the first {n_tokens} tokens of {texts}.""",
    records=Records("paper/{corpus}_sink_tokens.json", SinkTokensRecord),
    plot=plot_sink_tokens,
    rows=sink_token_rows,
)
