"""Attention maps: mean logits and weights of layers over short sentences."""

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from streamlm.figures.entry import Figure, Records
from streamlm.figures.style import PAGE, RC_PARAMS, SMALL, as_square, draw_map, finish
from streamlm.records.paper import AttentionMapsRecord
from streamlm.records.types import Record
from streamlm.summaries.main import check_comparable, describe_setting
from streamlm.summaries.sink_mass import attention_map_rows

SHOWN = 6  # layers
KINDS = {"logits": "mean logit", "weights": "mean weight"}


@matplotlib.rc_context(RC_PARAMS)
def plot_attention_maps(records: Sequence[Record]) -> Picture:
    """Return maps of some layers, logits above weights, two rows for each text.

    Args:
        records: `measure_attention_maps` records, of one model and machine.
    """
    check_comparable(records, same_stream=False)
    n_layers = len(records[0]["layers"])
    shown = sorted({0, 1, *np.linspace(2, n_layers - 1, SHOWN - 2).round().astype(int)} & {*range(n_layers)})
    figure = Picture((PAGE, 0.9 + 2.75 * len(records)))
    panels = figure.subplots(2 * len(records), len(shown), squeeze=False, sharex=True, sharey=True)
    for number, record in enumerate(records):
        for (kind, label), row in zip(KINDS.items(), panels[2 * number :], strict=False):
            maps = [as_square(record["layers"][i][kind]) for i in shown]
            limits = (0.0, 1.0) if kind == "weights" else (float(np.nanmin(maps)), float(np.nanmax(maps)))
            for axes, drawn in zip(row, maps, strict=True):
                image = draw_map(axes, drawn, kind, limits)
            figure.colorbar(image, ax=row.tolist(), shrink=0.85, aspect=12, pad=0.01, label=label)
        for axes, i in zip(panels[2 * number], shown, strict=True):
            axes.set_title(_heading(record["layers"][i]), fontsize=SMALL)
        _name_text(panels[2 * number][0], record["dataset"])
    notes = [
        describe_setting(records[0]),
        f"{records[0]['protocol']}; the mean over sentences and heads. In percent: how much of the "
        "attention of the last token goes to the first",
    ]
    finish(figure, FIGURE.title, [], notes)
    return figure


def _heading(layer: Record) -> str:
    return f"layer {layer['layer']}: {100 * layer['first_token']:.0f} %"


def _name_text(axes: Axes, name: str) -> None:
    """Write the name of a text above the first of its panels."""
    heading = axes.annotate(
        textwrap.shorten(name, 100), (0, 1), (0, 14), xycoords="axes fraction", textcoords="offset points",
        ha="left", va="bottom", fontsize=RC_PARAMS["axes.titlesize"],
    )  # fmt: skip
    heading.set_in_layout(False)  # it may be wider than its panel


FIGURE = Figure(
    title="Attention maps of short sentences",
    short_title="Attention maps",
    caption="""
Mean attention of {paper[attention_maps][sentences]} sentences of {paper[attention_maps][sentence_tokens]}
tokens, some layers from the first to the last. **What to see**: in the first layers attention is local, a
band along the diagonal. Where a layer has a sink, the first column takes almost all, whatever its word is.

**Measured** with {model} on sentences of {texts}.""",
    records=Records("paper/{corpus}_attention_maps.json", AttentionMapsRecord),
    plot=plot_attention_maps,
    rows=attention_map_rows,
)
