"""The loss of the twins while they are trained."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D

from streamlm.config import TWINS
from streamlm.figures.entry import Figure, Records
from streamlm.figures.style import COLUMN, LINE_STYLES, RC_PARAMS, band_style, finish
from streamlm.records.paper import TwinsRecord
from streamlm.records.types import Record
from streamlm.summaries.main import describe_setting
from streamlm.summaries.twins import seeds_of, twin_loss_rows


@matplotlib.rc_context(RC_PARAMS)
def plot_twin_losses(records: Sequence[Record]) -> Picture:
    """Return the loss of each twin over its steps, from a `collect_twins` record."""
    (record,) = records
    figure = Picture((COLUMN, 3.2))
    axes, handles = figure.subplots(), []
    for (twin, results), style in zip(seeds_of(record).items(), LINE_STYLES, strict=False):
        line = {**style, "marker": ""}
        losses = np.array([result["training_nats"] for result in results])  # (seeds, parts)
        steps = (1 + np.arange(losses.shape[1])) * results[0]["part"]
        axes.plot(steps, losses.mean(axis=0), **line)
        axes.fill_between(steps, losses.min(axis=0), losses.max(axis=0), **band_style(line))
        handles.append(Line2D([], [], **line, label=TWINS[twin]))
    axes.set(xlabel="steps", ylabel="loss, nats per byte", xlim=(0, None))
    training = record["training"]
    notes = [
        describe_setting(record),
        f"the mean of {results[0]['part']} steps, {training['batch']} contexts of "
        f"{record['trained_length']} bytes each; shaded: from the lowest to the highest of "
        f"{len(results)} seed{'s' * (len(results) > 1)}",
    ]
    finish(figure, FIGURE.title, handles, notes)
    return figure


FIGURE = Figure(
    title="Loss while training with and without a sink",
    short_title="Twins, trained",
    caption="""
Three small models that are trained alike: as usual, with a zero sink in every head, with a learnable sink
token before every context. **What to see**: whether a sink that is there from the beginning changes how well
a model learns.

**Measured** with small Llamas, trained here on bytes of {texts}, the same ones for each.""",
    records=Records("paper/twins.json", TwinsRecord),
    plot=plot_twin_losses,
    rows=twin_loss_rows,
)
