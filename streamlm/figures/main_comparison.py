"""The main comparison: perplexity, time, speed-up and memory by text and method."""

import textwrap
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.patches import Patch

from streamlm.config import METHODS, Method
from streamlm.figures.entry import RESULTS, Figure
from streamlm.figures.style import (
    DENSE_STYLE,
    ERROR_STYLE,
    NUMBER_STYLE,
    PAGE,
    RC_PARAMS,
    describe,
    error_arms,
    finish,
    method_bar,
)
from streamlm.records.types import Record
from streamlm.summaries.main import each_method, kept_text
from streamlm.summaries.tables import Row, with_interval

# Title, unit, where the value stands in a record's part about one method, and by what to multiply it.
PANELS = (
    ("Perplexity after the first eviction (lower is better)", "perplexity", "common", "perplexity", 1),
    ("Time to score the text", "runtime, s", "streaming", "runtime_sec", 1),
    ("Scoring speed against dense (above 1 is faster)", "speed-up, times", "metrics", "speedup", 1),
    ("Memory saved at the end of the text", "KV entries dropped, %", "metrics", "compression_ratio", 100),
)


@matplotlib.rc_context(RC_PARAMS)
def plot_main_comparison(results: Sequence[Record]) -> Picture:
    """Return perplexity, time, speed-up and memory by text and method, from `collect_result` records."""
    methods = [METHODS[name] for name in results[0]["methods"]]
    figure = Picture((max(PAGE, 0.95 + 0.74 * len(methods) * len(results)), 5.6))
    name_width = (figure.get_figwidth() / 2 - 0.7) / len(results)  # inches
    names = [textwrap.fill(result["dataset"], int(name_width / 0.066)) for result in results]
    for axes, (title, unit, section, key, factor) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        if key == "speedup":
            axes.axhline(1, **DENSE_STYLE)  # numbers stand above: a dash beside one would read as a minus
        for i, method in enumerate(methods):
            for j, result in enumerate(results):
                x = j + 0.8 * ((i + 0.5) / len(methods) - 0.5)
                part = result["methods"][method.name][section] or {}  # null where nothing was evicted
                bar = axes.bar(x, factor * (part.get(key) or 0), 0.74 / len(methods), **method_bar(method))
                _write_value(axes, x, bar[0].get_height(), part, key)
        axes.set(title=title, ylabel=unit, xlabel="text", xlim=(-0.5, len(results) - 0.5))
        axes.set_xticks(range(len(results)), names)
        axes.tick_params(axis="x", length=0)
        axes.set(ymargin=0.15, ylim=(0, None))
    handles = [Patch(**method_bar(method), label=_label_method(method, results)) for method in methods]
    aside = f"{results[0]['protocol']}; runtime and speed-up are of this scoring, not of decoding"
    notes = describe(results[0], [result["tokens"]["count"] for result in results], aside)
    finish(figure, FIGURE.title, handles, notes)
    return figure


def _write_value(axes: Axes, x: float, height: float, part: Record, key: str) -> None:
    """Write a bar's value above it and draw its interval, if it has one; "n/a" if it has no value."""
    digits = 3 if 0 < height < 0.1 else 2 if height < 100 else 1 if height < 1000 else 0
    text = "n/a" if part.get(key) is None else f"{height:,.{digits}f}"
    interval = part.get(f"{key}_interval", [])
    if interval:
        axes.errorbar(x, height, error_arms([height], [interval]), **ERROR_STYLE)
    axes.annotate(text, (x, max(height, key == "speedup", *interval)), **NUMBER_STYLE)


def _label_method(method: Method, results: Sequence[Record]) -> str:
    """Return a method's name with what it keeps, sinks + window."""
    kept = dict.fromkeys(kept_text(result["methods"][method.name], method) for result in results)
    return f"{method.title}: {' / '.join(kept)} tokens"


def main_comparison_rows(results: Sequence[Record]) -> list[Row]:
    """Return what `plot_main_comparison` draws, from `collect_result` records."""
    return [
        names
        | with_interval("perplexity", part["common"])
        | {
            "runtime_s": part["streaming"]["runtime_sec"],
            "speedup": part["metrics"]["speedup"],
            "kv_dropped_percent": 100 * part["metrics"]["compression_ratio"],
        }
        for names, part in each_method(results)
    ]


FIGURE = Figure(
    title="What keeping fewer KV entries costs and saves",
    short_title="Main comparison",
    caption="""
What keeping only {experiment[n_sink]} sinks and a window of {experiment[window_size]} tokens costs and
saves. **What to see**: where the streaming bar is as high as the dense one, the dropped KV entries were
not missed; how far the window-only bar, with equal memory and without sinks, is above both is what the
sinks are worth. Where the bar of the window with re-computation is level with streaming, a cache that is
never recomputed loses nothing against one that always is. Time and speed are of scoring a text in blocks,
not of decoding (for that see decoding_latency.png_).

**Measured** with {model} on the first {n_tokens} tokens of {texts}. Perplexity counts only the tokens
after the first eviction, because before it all methods see the same. Whiskers: {confidence} % intervals,
which speak of these texts only.""",
    records=RESULTS,
    plot=plot_main_comparison,
    rows=main_comparison_rows,
)
