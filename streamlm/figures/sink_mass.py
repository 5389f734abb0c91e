"""How much attention the sinks get: by layer, along a stream, and what they are worth."""

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from streamlm.config import METHODS
from streamlm.figures.entry import Figure, Records
from streamlm.figures.style import (
    COLUMN,
    DENSE_STYLE,
    RC_PARAMS,
    REST_STYLE,
    SMALL,
    Style,
    band_style,
    describe,
    distinct_styles,
    error_arms,
    finish,
    method_style,
    show_tokens_seen,
)
from streamlm.records.paper import SinkMassRecord
from streamlm.records.types import Record
from streamlm.summaries.main import check_comparable
from streamlm.summaries.sink_mass import sink_mass_rows


@matplotlib.rc_context(RC_PARAMS)
def plot_sink_mass(records: Sequence[Record]) -> Picture:
    """Return shares by layer, along a stream, and the ablation of sinks, a column for each text.

    Args:
        records: `collect_sink_mass` records, of one model and machine.
    """
    check_comparable(records, same_stream=False)
    figure = Picture((COLUMN * len(records), 6.8))
    styles = {name: method_style(METHODS[name]) | {"markersize": 2.5} for name in records[0]["methods"]}
    for record, column in zip(records, figure.subplots(3, len(records), squeeze=False).T, strict=True):
        by_layer, along, ablation = column
        by_layer.set_title(textwrap.fill(record["dataset"], 40))
        _plot_layers(by_layer, record, styles)
        _plot_along(along, record, styles["streaming"])
        _plot_ablation(ablation, record)
    handles = [Line2D([], [], **style, label=METHODS[name].title) for name, style in styles.items()]
    if (n_sink := records[0]["sizes"]["n_sink"]) > 1:
        handles.append(Line2D([], [], **REST_STYLE, label=f"tokens 1 to {n_sink - 1} together"))
    counts = [record["tokens"]["count"] for record in records]
    finish(figure, FIGURE.title, handles, describe(records[0], counts, records[0]["protocol"]))
    return figure


def _plot_layers(axes: Axes, record: Record, styles: dict[str, Style]) -> None:
    for name, layers in record["methods"].items():
        first = [100 * layer["share"][0] for layer in layers]
        low, high = 100 * np.transpose([layer["share_interval"][0] for layer in layers])
        axes.plot(range(len(layers)), first, **styles[name])
        axes.fill_between(range(len(layers)), low, high, **band_style(styles[name]))
        if len(layers[0]["share"]) > 1:
            others = [100 * sum(layer["share"][1:]) for layer in layers]
            axes.plot(range(len(layers)), others, **REST_STYLE | {"color": styles[name]["color"]})
    axes.set(xlabel="layer", ylabel="attention on token 0, %", ylim=(-2, 100))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _plot_along(axes: Axes, record: Record, style: Style) -> None:
    along = record["along"]
    low, high = 100 * np.transpose(along["share_interval"])
    axes.plot(along["tokens_seen"], [100 * share for share in along["share"]], **style)
    axes.fill_between(along["tokens_seen"], low, high, **band_style(style))
    title = f"Streaming with {record['sizes']['n_sink']} sinks, over all layers and heads"
    axes.set(title=title, ylabel="attention on the sinks, %", ylim=(0, None))
    show_tokens_seen(axes)


def _plot_ablation(axes: Axes, record: Record) -> None:
    """Draw what each number of sinks costs; what is off the scale is in the ablation's own figure."""
    key, rows = "ppl_increase_percent", [row for row in record["ablation"] if row["n_sink"]]
    axes.axhline(0, **DENSE_STYLE)
    places = {n: i for i, n in enumerate(sorted({row["n_sink"] for row in rows}))}
    capacities = sorted({row["capacity"] for row in rows})
    for capacity, style in zip(capacities, distinct_styles(), strict=False):
        points = sorted((row for row in rows if row["capacity"] == capacity), key=lambda row: row["n_sink"])
        values = [row["common"][key] for row in points]
        arms = error_arms(values, [row["common"][f"{key}_interval"] for row in points])
        x = [places[row["n_sink"]] for row in points]
        axes.errorbar(x, values, arms, elinewidth=0.8, **style, label=f"capacity {capacity}")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.35 * (high - low))  # room for the legend
    axes.legend(fontsize=SMALL, loc="upper center", ncols=2)
    without = [row["common"][key] for row in record["ablation"] if not row["n_sink"]]
    title = "Change against dense"
    if without:
        title += f"; without sinks {' to '.join(dict.fromkeys(f'{x:+,.0f}' for x in sorted(without)))} %"
    axes.set(title=title, xlabel="sinks, tokens", ylabel="change of perplexity, %")
    axes.set_xticks([*places.values()], [*map(str, places)])


FIGURE = Figure(
    title="How much attention the sinks get",
    short_title="Sink mass",
    caption="""
Above, how much of its attention a layer gives to the first token, and dotted to the next
{paper[sink_mass][n_sink]} less one together; in the middle, that it stays so along a stream far past the
trained length; below, what each number of sinks costs. **What to see**: if one token takes all that sinks
get, one sink is enough, and below the curve is flat from 1 on.

**Measured** with {model} ({paper[sink_mass][dtype]}) after contexts of
{paper[sink_mass][context_tokens]:,} tokens of {texts}; streaming keeps
{paper[sink_mass][capacity]} tokens.""",
    records=Records("paper/{corpus}_sink_mass.json", SinkMassRecord),
    plot=plot_sink_mass,
    rows=sink_mass_rows,
)
