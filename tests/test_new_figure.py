"""A new figure is one module and one line: rules, tables, report and the command find it by themselves."""

import shutil
import subprocess
import sys

from project import ROOT, environment, run_smoke, snakemake

MODULE = '''"""Perplexity of every method of the first text, as bars."""

from collections.abc import Sequence

from matplotlib.figure import Figure as Picture

from streamlm.config import METHODS
from streamlm.figures.catalogue import RESULTS, Figure
from streamlm.figures.style import method_bar
from streamlm.records.types import Record
from streamlm.summaries.main import each_method
from streamlm.summaries.tables import Row


def plot_bars(results: Sequence[Record]) -> Picture:
    """Return one bar for every method."""
    figure = Picture((3, 2))
    axes = figure.subplots()
    for name, part in results[0]["methods"].items():
        axes.bar(METHODS[name].title, part["streaming"]["perplexity"], **method_bar(METHODS[name]))
    return figure


def bar_rows(results: Sequence[Record]) -> list[Row]:
    """Return what `plot_bars` draws."""
    return [names | {"perplexity": part["streaming"]["perplexity"]} for names, part in each_method(results)]


FIGURE = Figure(
    title="One bar for every method",
    short_title="Bars",
    caption="**What to see**: bars. **Measured** with {model}.",
    records=RESULTS,
    plot=plot_bars,
    rows=bar_rows,
)
'''


def test_figure_is_one_module_and_one_line(tmp_path, tmp_path_factory):
    finished = run_smoke(tmp_path_factory.getbasetemp())
    place = shutil.copytree(finished, tmp_path / "project", symlinks=True)
    (place / "streamlm/figures/bars.py").write_text(MODULE)
    catalogue = place / "streamlm/figures/catalogue.py"
    before = catalogue.read_text()
    line = '    "comparison_metrics_table",\n'
    catalogue.write_text(before.replace(line, f'{line}    "bars",\n'))
    assert len(catalogue.read_text().splitlines()) == len(before.splitlines()) + 1

    done = snakemake(place, "results/smoke/figures/bars.png", "--rerun-triggers", "mtime")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (place / "results/smoke/figures/bars.pdf").read_bytes().startswith(b"%PDF")
    table = (place / "results/smoke/tables/bars.csv").read_text()
    assert table.startswith("text,method,kept,sinks,window,perplexity\n")
    assert "One bar for every method" in (place / "results/smoke/tables/bars.html").read_text()
    program = "from streamlm.cli import main; main()"
    drawn = subprocess.run(
        [sys.executable, "-c", program, "figures", "--results-dir", "results/smoke", "--only", "bars"],
        cwd=place, env=environment() | {"PYTHONPATH": str(place)}, capture_output=True, text=True,
    )  # fmt: skip
    assert drawn.stdout == "figures/bars.png\n", drawn.stderr
    assert filter_changed(place) == ["streamlm/figures/bars.py", "streamlm/figures/catalogue.py"]


def filter_changed(place):
    """Return the files of the library and the workflow that are not those of this project."""
    return [
        path.relative_to(place).as_posix()
        for folder in ("streamlm", "workflow")
        for path in sorted((place / folder).rglob("*"))
        if path.is_file() and path.suffix != ".pyc" and (
            not (ROOT / path.relative_to(place)).exists()
            or path.read_bytes() != (ROOT / path.relative_to(place)).read_bytes()
        )
    ]  # fmt: skip
