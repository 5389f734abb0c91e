"""What stands on a figure: its numbers, its texts, and whether they can be read."""

import re
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.text import Text

from streamlm.figures.catalogue import find_figure
from streamlm.figures.table_files import write_tables
from streamlm.summaries.tables import as_text, shown_columns


def bars(axes):
    return [container[0].get_height() for container in axes.containers if isinstance(container, BarContainer)]


def error_bars(axes):
    """The ends (M, 2) of all error bars, in the order they were drawn."""
    drawn = [container for container in axes.containers if isinstance(container, ErrorbarContainer)]
    segments = [segment for container in drawn for segment in container.lines[2][0].get_segments()]
    return np.array([segment[:, 1] for segment in segments])


def lying(axes):
    """The sets of error bars that lie across."""
    return [found for found in axes.containers if isinstance(found, ErrorbarContainer) and found.has_xerr]


def across(axes):
    """The ends (M, 2) of all error bars that lie across, in the order they were drawn."""
    segments = [segment for found in lying(axes) for segment in found.lines[2][0].get_segments()]
    return np.array([segment[:, 0] for segment in segments])


def lines(axes):
    """Places (L, M) and values (L, M) of all lines that have error bars."""
    drawn = [container.lines[0] for container in axes.containers if isinstance(container, ErrorbarContainer)]
    return [line.get_xdata(orig=False) for line in drawn], [line.get_ydata(orig=False) for line in drawn]


def curves(axes):
    """The values of all drawn lines with more than two points."""
    drawn = (line.get_ydata(orig=False) for line in axes.lines)
    return [np.asarray(values, dtype=float) for values in drawn if len(values) > 2]


def visible_texts(figure):
    """Every text that is drawn, by its box in pixels; ticks outside the view are not drawn."""
    FigureCanvasAgg(figure).draw()
    hidden = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        outside = [tick for tick in ticks if not low <= tick.get_loc() <= high or not axis.axes.axison]
        hidden |= {label for tick in outside for label in tick.findobj(Text)}
    drawn = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent()) for text in drawn if text not in hidden]


def assert_uncluttered(figure):
    """Every text lies on the canvas and on no other; every axis is labelled. Return all that is written."""
    written = visible_texts(figure)
    canvas = figure.bbox
    for text, box in written:
        assert "\\math" not in text, "a formula is written as letters"
        assert canvas.x0 <= box.x0 < box.x1 <= canvas.x1, f"{text!r} is clipped"
        assert canvas.y0 <= box.y0 < box.y1 <= canvas.y1, f"{text!r} is clipped"
    for (text, box), (other, other_box) in combinations(written, 2):
        assert not box.overlaps(other_box), f"{text!r} lies on {other!r}"
    for axes in figure.axes:
        is_scale = axes.get_label() == "<colorbar>"
        assert not axes.axison or (axes.get_ylabel() and (is_scale or axes.get_xlabel()))
    return " ".join(" ".join(text.split()) for text, _ in written)


def drawn_numbers(figure):
    """Every number that bars, lines, error bars and bands of a figure show, but for plain references."""
    for axes in figure.axes:
        if lying(axes):
            yield from (number for found in lying(axes) for number in found.lines[0].get_xdata(orig=False))
            yield from across(axes).flat
            continue
        for line in axes.lines:
            level = line.get_transform() != axes.transData  # a line over the whole width
            values = np.asarray(line.get_ydata(orig=False), dtype=float)
            yield from set(values[:1]) - {0.0, 1.0, 1e-4} if level else values
        yield from bars(axes)
        yield from error_bars(axes).flat
        for patch in axes.patches[: len(axes.patches) - len(bars(axes))]:
            yield from patch.get_extents().transformed(axes.transData.inverted()).intervaly
        for band in (found for found in axes.collections if isinstance(found, FillBetweenPolyCollection)):
            yield from band.get_paths()[0].vertices[1:-1, 1]


def assert_tabled(figure, name, records, folder):
    """Every number drawn is in the CSV file of the figure's table."""
    write_tables(find_figure(name), name, records, [folder / "table.csv"])
    table = pd.read_csv(folder / "table.csv").select_dtypes("number").to_numpy().ravel()
    drawn = np.array(list(drawn_numbers(figure)))
    assert len(drawn) > 5
    found = np.isclose(drawn[:, None], np.append(table, 0.0), rtol=1e-9, atol=1e-9).any(axis=1)
    assert found.all(), drawn[~found]


def assert_written(name, records, folder):
    """Every number in the cells of a table that is drawn as a picture is in its row of the CSV file."""
    figure = find_figure(name)
    rows = figure.rows(records)
    write_tables(figure, name, records, [folder / "table.csv"])
    table = pd.read_csv(folder / "table.csv")
    assert len(table) == len(rows)
    names = [i for i, name in enumerate(shown_columns(rows)) if name in ("text", "protocol", "method")]
    for (_, numbers), cells in zip(table.select_dtypes("number").iterrows(), as_text(rows)[1], strict=True):
        written = " ".join(cell for i, cell in enumerate(cells) if i not in names)
        for text in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", written):
            rounding = 0.51 * 10.0 ** -len(text.partition(".")[2]) if "e" not in text else 0
            assert np.isclose(numbers, float(text), rtol=0.05 * ("e" in text), atol=rounding).any(), text


def assert_printable(figure):
    """Two texts fill a page of two columns; on a page of one column the letters have 5 points still."""
    assert figure.get_figwidth() == pytest.approx(6.9)
    smallest = min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text().strip())
    assert smallest * 5.5 / figure.get_figwidth() >= 5
