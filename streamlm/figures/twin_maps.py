"""Where the twins look: mean attention of every layer."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Picture

from streamlm.config import TWINS
from streamlm.figures.entry import Figure, Records
from streamlm.figures.style import PAGE, RC_PARAMS, SMALL, as_square, draw_map, finish
from streamlm.records.paper import TwinsRecord
from streamlm.records.types import Record
from streamlm.summaries.main import describe_setting
from streamlm.summaries.twins import seeds_of, twin_map_rows

SHOWN = 6  # layers


@matplotlib.rc_context(RC_PARAMS)
def plot_twin_maps(records: Sequence[Record]) -> Picture:
    """Return mean weights of some layers, a row for each twin of the first seed.

    Args:
        records: one, of `collect_twins`.
    """
    (record,) = records
    twins = {twin: results[0] for twin, results in seeds_of(record).items()}
    n_layers = min(len(twin["layers"]) for twin in twins.values())
    shown = sorted({*np.linspace(0, n_layers - 1, min(SHOWN, n_layers)).round().astype(int)})
    figure = Picture((PAGE, 0.9 + 1.55 * len(twins)))
    panels = figure.subplots(len(twins), len(shown), squeeze=False, sharex=True, sharey=True)
    for (twin, result), row in zip(twins.items(), panels, strict=True):
        for axes, i in zip(row, shown, strict=True):
            layer = result["layers"][i]
            image = draw_map(axes, as_square(layer["weights"]), "weights", (0, 1), f"{TWINS[twin]}\nquery")
            axes.set_title(_heading(layer), fontsize=SMALL)
    figure.colorbar(image, ax=panels.ravel().tolist(), shrink=0.5, aspect=20, pad=0.01, label="mean weight")
    contexts = record["contexts"]
    notes = [
        describe_setting(record),
        f"the first {contexts['tokens']} bytes of {contexts['count']:,} contexts, read alone; the mean over "
        f"contexts and heads, seed {result['seed']}. In percent: how much of the attention of the last byte "
        "goes to the first, and to the zero sink",
    ]
    finish(figure, FIGURE.title, [], notes)
    return figure


def _heading(layer: Record) -> str:
    beside = f", zero sink {100 * layer['zero_sink']:.0f} %" if layer["zero_sink"] > 1e-3 else ""
    return f"layer {layer['layer']}: {100 * layer['first_token']:.0f} %{beside}"


FIGURE = Figure(
    title="Attention maps of models trained with and without a sink",
    short_title="Twins, attention maps",
    caption="""
Mean attention of three small models that are trained alike: as usual, with a zero sink in every head, with a
learnable sink token before every context. **What to see**: whether the first column takes more than its
share, and what the zero sink takes from it.

**Measured** with small Llamas, trained here, on bytes of {texts} that none was trained on.""",
    records=Records("paper/twins.json", TwinsRecord),
    plot=plot_twin_maps,
    rows=twin_map_rows,
)
