"""The ablation of the window size."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure as Picture

from streamlm.figures.ablation import plot_ablation
from streamlm.figures.entry import Figure, Records
from streamlm.records.types import AblationRecord, Record
from streamlm.summaries.main import ablation_rows


def plot_ablation_window_size(records: Sequence[Record]) -> Picture:
    """Return perplexity and its paired change against window size, from a `collect_ablation` record."""
    (ablation,) = records
    sinks = " or ".join(map(str, sorted({row["n_sink"] for row in ablation["rows"]})))
    at = {row["window_size"]: float(np.log2(row["window_size"])) for row in ablation["rows"]}
    x = ("window_size", "window size, tokens (the current one included)")
    title = f"Perplexity against window size, {sinks} sinks kept"
    return plot_ablation(ablation, title, x, at, ("n_sink", "{} sinks + window"))


FIGURE = Figure(
    title="Perplexity against window size",
    short_title="Window size",
    caption="""
Perplexity as the window grows, with {experiment[window_ablation][n_sink]} sinks kept. **What to see**:
above, at which window the curve enters the grey band of dense attention; below, what is still missing
there, paired token by token, with an interval that is narrow enough to judge by.

**Measured** with {model} on the first {n_tokens} tokens of {texts}; every window is judged on the same
tokens, those after the largest capacity.""",
    records=Records("streaming_llm/ablation_window_size.json", AblationRecord),
    plot=plot_ablation_window_size,
    rows=ablation_rows,
)
