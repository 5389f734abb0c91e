"""Two panels a text for an ablation: perplexity, and its paired change against dense."""

import textwrap
from collections.abc import Mapping

import matplotlib
from matplotlib.artist import Artist
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from streamlm.figures.style import (
    BAND_STYLE,
    COLUMN,
    DENSE_STYLE,
    RC_PARAMS,
    describe,
    distinct_styles,
    error_arms,
    finish,
    scale_perplexity,
)
from streamlm.records.types import Record
from streamlm.summaries.tables import interval_text


@matplotlib.rc_context(RC_PARAMS)
def plot_ablation(
    ablation: Record, title: str, x: tuple[str, str], at: Mapping[int, float], line: tuple[str, str]
) -> Picture:
    """Return two panels per text; `x` and `line` are a key and its label, `at` the x of each value."""
    texts, rows = ablation["baseline"], ablation["rows"]
    figure = Picture((COLUMN * len(texts), 5.0))
    styles = dict(zip(sorted({row[line[0]] for row in rows}), distinct_styles(), strict=False))
    for (upper, lower), text in zip(figure.subplots(2, len(texts), squeeze=False).T, texts, strict=True):
        dense = texts[text]["common"]
        upper.axhspan(*dense["perplexity_interval"], **BAND_STYLE)
        upper.axhline(dense["perplexity"], **DENSE_STYLE)
        lower.axhline(0, **DENSE_STYLE)
        for i, (value, style) in enumerate(styles.items()):
            points = [row for row in rows if row["dataset"] == text and row[line[0]] == value]
            points.sort(key=lambda row: row[x[0]])
            aside = 0.14 * (i - (len(styles) - 1) / 2)  # or error bars would hide one another
            where = [at[row[x[0]]] + aside for row in points]
            for axes, key in ((upper, "perplexity"), (lower, "ppl_increase_percent")):
                values = [row["common"][key] for row in points]
                arms = error_arms(values, [row["common"][f"{key}_interval"] for row in points])
                axes.errorbar(where, values, arms, elinewidth=0.8, **style)
        written = interval_text(dense["perplexity"], dense["perplexity_interval"])
        upper.set(title=f"{textwrap.fill(text, 40)}\ndense: {written}", ylabel="perplexity")
        lower.set(title="Change against dense, paired token by token", ylabel="change of perplexity, %")
        for axes in (upper, lower):
            axes.set_xticks([*at.values()], [*map(str, at)])
            # Wider on the left, where what is off scale is written.
            axes.set(xlabel=x[1], xlim=(min(at.values()) - 0.75, max(at.values()) + 0.5))
        scale_perplexity(upper)
    handles: list[Artist] = [Line2D([], [], **styles[value], label=line[1].format(value)) for value in styles]
    handles += [Line2D([], [], **DENSE_STYLE, label="dense"), Patch(**BAND_STYLE, label="interval of dense")]
    counts = [ablation["first_token"] + text["common"]["scored"] + 1 for text in texts.values()]
    notes = describe(ablation, counts, f"judged on the tokens from {ablation['first_token']:,} on")
    finish(figure, title, handles, notes)
    return figure
