"""Figures drawn from records: nothing is computed here but places on paper."""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from streamlm.figures.style import (
    BAND_LOOK,
    BAR_LOOKS,
    COLUMN,
    DENSE_LOOK,
    ERROR_LOOK,
    LIMIT_LOOK,
    LINE_LOOKS,
    METHOD_LOOKS,
    NUMBER_LOOK,
    PAGE,
    SIZE_STYLES,
    SMALL_LOOK,
    STYLE,
    Look,
    band_look,
    describe,
    draw_table,
    error_arms,
    finish,
    label_limit,
    use_log_scale,
)
from streamlm.records.types import Record
from streamlm.summaries.main import (
    METHOD_NAMES,
    RESULT_HEADERS,
    check_comparable,
    describe_setting,
    interval_text,
    result_rows,
)

# Title, unit, where the value stands in a record's part about one method, and by what to multiply it.
PANELS = (
    ("Perplexity after the first eviction (lower is better)", "perplexity", "common", "perplexity", 1),
    ("Time to score the text", "runtime, s", "streaming", "runtime_sec", 1),
    ("Scoring speed against dense (above 1 is faster)", "speed-up, times", "metrics", "speedup", 1),
    ("Memory saved at the end of the text", "KV entries dropped, %", "metrics", "compression_ratio", 100),
)


@matplotlib.rc_context(STYLE)
def plot_main_comparison(results: Sequence[Record]) -> Figure:
    """Return perplexity, time, speed-up and memory by text and method, from `collect_result` records."""
    methods = [method for method in METHOD_NAMES if method in results[0]["methods"]]
    figure = Figure((max(PAGE, 0.95 + 0.74 * len(methods) * len(results)), 5.6))
    name_width = (figure.get_figwidth() / 2 - 0.7) / len(results)  # inches
    names = [textwrap.fill(result["dataset"], int(name_width / 0.066)) for result in results]
    for axes, (title, unit, section, key, factor) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        if key == "speedup":
            axes.axhline(1, **DENSE_LOOK)  # numbers stand above: a dash beside one would read as a minus
        for i, method in enumerate(methods):
            for j, result in enumerate(results):
                place = j + 0.8 * ((i + 0.5) / len(methods) - 0.5)
                part = result["methods"][method][section] or {}  # null where nothing was evicted
                bar = axes.bar(place, factor * (part.get(key) or 0), 0.74 / len(methods), **BAR_LOOKS[method])
                _write_value(axes, place, bar[0].get_height(), part, key)
        axes.set(title=title, ylabel=unit, xlabel="text", xlim=(-0.5, len(results) - 0.5))
        axes.set_xticks(range(len(results)), names)
        axes.tick_params(axis="x", length=0)
        axes.set(ymargin=0.15, ylim=(0, None))
    handles = [Patch(**BAR_LOOKS[method], label=_label_method(method, results)) for method in methods]
    aside = f"{results[0]['protocol']}; runtime and speed-up are of this scoring, not of decoding"
    notes = describe(results[0], [result["tokens"]["count"] for result in results], aside)
    finish(figure, "What keeping fewer KV entries costs and saves", handles, notes)
    return figure


def _write_value(axes: Axes, place: float, height: float, part: Record, key: str) -> None:
    """Write a bar's value above it and draw its interval, if it has one; "n/a" if it has no value."""
    digits = 3 if 0 < height < 0.1 else 2 if height < 100 else 1 if height < 1000 else 0
    text = "n/a" if part.get(key) is None else f"{height:,.{digits}f}"
    interval = part.get(f"{key}_interval", [])
    if interval:
        axes.errorbar(place, height, error_arms([height], [interval]), **ERROR_LOOK)
    axes.annotate(text, (place, max(height, key == "speedup", *interval)), **NUMBER_LOOK)


def _label_method(method: str, results: Sequence[Record]) -> str:
    """Return a method's name with what it keeps, sinks + window."""
    parts = [result["methods"][method] for result in results]
    sizes = dict.fromkeys(f"{part['n_sink']}+{part['window_size']}" for part in parts)
    return f"{METHOD_NAMES[method]}: {'all' if method == 'dense' else ' / '.join(sizes)} tokens"


@matplotlib.rc_context(STYLE)
def plot_ablation_window_size(ablation: Record) -> Figure:
    """Return perplexity and its paired change against window size, from a `collect_ablation` record."""
    sinks = " or ".join(map(str, sorted({row["n_sink"] for row in ablation["rows"]})))
    places = {row["window_size"]: float(np.log2(row["window_size"])) for row in ablation["rows"]}
    x = ("window_size", "window size, tokens (the current one included)")
    title = f"Perplexity against window size, {sinks} sinks kept"
    return _plot_ablation(ablation, title, x, places, ("n_sink", "{} sinks + window"))


@matplotlib.rc_context(STYLE)
def plot_ablation_n_sink(ablation: Record) -> Figure:
    """Return perplexity and its paired change against the number of sinks, from a `collect_ablation` record.

    Where the change without sinks dwarfs all else, it is off the scale and written instead.
    """
    rows = sorted(ablation["rows"], key=lambda row: row["capacity"])
    places = {n: float(i) for i, n in enumerate(sorted({row["n_sink"] for row in rows}))}
    title = "Perplexity against the number of sinks, at equal memory"
    x = ("n_sink", "sinks, tokens (window = capacity - sinks)")
    figure = _plot_ablation(ablation, title, x, places, ("capacity", "capacity {} tokens"))
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
        axes.text(0.015, 0.98, f"off scale ↑{written}", transform=axes.transAxes, **SMALL_LOOK)


def _plot_ablation(
    ablation: Record, title: str, x: tuple[str, str], places: Mapping[int, float], line: tuple[str, str]
) -> Figure:
    """Return two panels per text; `x` and `line` are a key and its label, `places` the x of each value."""
    texts, rows = ablation["baseline"], ablation["rows"]
    figure = Figure((COLUMN * len(texts), 5.0))
    looks = dict(zip(sorted({row[line[0]] for row in rows}), cycle(LINE_LOOKS), strict=False))
    for (upper, lower), text in zip(figure.subplots(2, len(texts), squeeze=False).T, texts, strict=True):
        dense = texts[text]["common"]
        upper.axhspan(*dense["perplexity_interval"], **BAND_LOOK)
        upper.axhline(dense["perplexity"], **DENSE_LOOK)
        lower.axhline(0, **DENSE_LOOK)
        for i, (value, look) in enumerate(looks.items()):
            points = [row for row in rows if row["dataset"] == text and row[line[0]] == value]
            points.sort(key=lambda row: row[x[0]])
            aside = 0.14 * (i - (len(looks) - 1) / 2)  # or error bars would hide one another
            where = [places[row[x[0]]] + aside for row in points]
            for axes, key in ((upper, "perplexity"), (lower, "ppl_increase_percent")):
                values = [row["common"][key] for row in points]
                arms = error_arms(values, [row["common"][f"{key}_interval"] for row in points])
                axes.errorbar(where, values, arms, elinewidth=0.8, **look)
        written = interval_text(dense["perplexity"], dense["perplexity_interval"])
        upper.set(title=f"{textwrap.fill(text, 40)}\ndense: {written}", ylabel="perplexity")
        lower.set(title="Change against dense, paired token by token", ylabel="change of perplexity, %")
        for axes in (upper, lower):
            axes.set_xticks([*places.values()], [*map(str, places)])
            # Wider on the left, where what is off scale is written.
            axes.set(xlabel=x[1], xlim=(min(places.values()) - 0.75, max(places.values()) + 0.5))
        _scale_perplexity(upper)
    handles: list[Artist] = [Line2D([], [], **looks[value], label=line[1].format(value)) for value in looks]
    handles += [Line2D([], [], **DENSE_LOOK, label="dense"), Patch(**BAND_LOOK, label="interval of dense")]
    counts = [ablation["first_token"] + text["common"]["scored"] + 1 for text in texts.values()]
    notes = describe(ablation, counts, f"judged on the tokens from {ablation['first_token']:,} on")
    finish(figure, title, handles, notes)
    return figure


def _scale_perplexity(axes: Axes) -> None:
    """Take a logarithmic axis where perplexities span a factor of five or more."""
    low, high = axes.dataLim.intervaly
    if high >= 5 * low:
        use_log_scale(axes)


@matplotlib.rc_context(STYLE)
def plot_results_summary(results: Sequence[Record]) -> Figure:
    """Return the table of `result_rows` as a picture, from `collect_result` records."""
    notes = describe(results[0], [result["tokens"]["count"] for result in results], results[0]["protocol"])
    return draw_table("The main comparison in numbers", RESULT_HEADERS, result_rows(results), 3, notes)


@matplotlib.rc_context(STYLE)
def plot_long_stream(streams: Sequence[Record]) -> Figure:
    """Return perplexity, loss against the largest cache and memory along a stream, a column for each text.

    Args:
        streams: `collect_long_stream` records, of one model and machine.
    """
    check_comparable(streams, same_stream=False)
    figure = Figure((COLUMN * len(streams), 6.6))
    reference = _size(streams[0]["rows"][-1])
    looks = _look_rows(streams[0]["rows"])
    panels = figure.subplots(3, len(streams), squeeze=False)
    for stream, column in zip(streams, panels.T, strict=True):
        perplexity, difference, memory = column
        difference.axhline(0, **DENSE_LOOK)
        low, high = np.transpose(stream["rows"][-1]["running_interval"])
        perplexity.fill_between(
            stream["rows"][-1]["tokens_seen"], low, high, **band_look(METHOD_LOOKS["streaming"])
        )
        for row, look in zip(stream["rows"], looks.values(), strict=True):
            x = row["tokens_seen"]
            perplexity.plot(x, row["running_perplexity"], **look)
            if row is not stream["rows"][-1]:
                difference.plot(x, row["part_difference_nats"], **look)
            memory.plot(x, [held / 2**20 for held in row["kv_bytes"]], **look)
        trained = stream["trained_length"]
        if trained is not None:
            for axes in column:
                axes.axvline(trained, **LIMIT_LOOK)
            label_limit(memory, trained, f"trained to {trained:,}")
        _scale_perplexity(perplexity)
        use_log_scale(memory)
        perplexity.set(title=textwrap.fill(stream["dataset"], 40), ylabel="perplexity so far")
        difference.set(
            ylabel=f"loss - loss of {reference}, nats", title=f"Each {stream['part']} tokens, paired"
        )
        memory.set(ylabel="keys and values, MiB", title="Memory")
        for axes in column:
            axes.set(xlabel="tokens seen", xlim=(0, None))
            axes.xaxis.set(major_locator=MaxNLocator(4), major_formatter=StrMethodFormatter("{x:,.0f}"))
    handles = [Line2D([], [], **look, label=label) for label, look in looks.items()]
    counts = [stream["tokens"]["count"] for stream in streams]
    dense = streams[0]["rows"][0]["tokens_seen"][-1]
    notes = [
        describe_setting(streams[0]),
        f"{' / '.join(f'{n:,}' for n in dict.fromkeys(counts))} tokens of each text, dense and window only "
        f"to {dense:,}; {streams[0]['protocol']}",
        f"shaded: {100 * streams[0]['confidence']:g} % interval of {reference}, within this text; "
        "differences are paired, so that it does not count for them",
    ]
    finish(figure, "Perplexity along a stream far past the trained length", handles, notes)
    return figure


def _look_rows(rows: Sequence[Record]) -> dict[str, Look]:
    """Return the look of every row by its label: a method keeps its colour, sizes differ in style."""
    looks, styles = {}, cycle(SIZE_STYLES)
    for row in reversed(rows):  # the largest cache gets the solid line
        look = {**METHOD_LOOKS[row["method"]], "marker": ""}
        if row["method"] == "streaming":
            look["linestyle"] = next(styles)
        looks[f"{METHOD_NAMES[row['method']]}: {_size(row)}"] = look
    return dict(reversed(looks.items()))


def _size(row: Record) -> str:
    return "all tokens" if row["method"] == "dense" else f"{row['n_sink']}+{row['window_size']}"
