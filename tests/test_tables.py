"""Tables beside the figures: as numbers, as LaTeX that compiles, as a page that a browser sorts."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pandas as pd
import pytest

from streamlm.figures.entry import RESULTS, Figure
from streamlm.figures.table_files import LONG, escape_latex, write_tables
from streamlm.summaries.tables import as_text

SPECIAL = r"50 % of A&B_{x} ~ #1 <$2> \ ^"
RECORD = {
    "model": "tiny_1",
    "environment": {"dtype": "float32", "device": "cpu", "processor": SPECIAL, "torch_threads": 1},
}
ROWS = [
    {"text": SPECIAL, "held_tokens": 1024, "step_ms": 19.054, "step_ms_low": 16.92, "step_ms_high": 22.0},
    {"text": "b", "held_tokens": 32, "step_ms": 2.5e-05, "step_ms_low": 1e-05, "step_ms_high": 3e-05},
    {"text": "c", "held_tokens": 4096, "speedup": 0.5},
]


@pytest.fixture
def written(tmp_path):
    """A function that writes a table of some rows and returns its text as CSV, LaTeX and HTML."""

    def write(rows):
        figure = Figure(
            title="A trial & error", short_title="Trial", caption="", records=RESULTS, plot=None,
            rows=lambda records: rows,
        )  # fmt: skip
        targets = [tmp_path / f"trial.{suffix}" for suffix in ("csv", "tex", "html")]
        write_tables(figure, "trial_table", [RECORD], targets)
        return [target.read_text() for target in targets]

    return write


def test_csv_holds_the_numbers_whole(written, tmp_path):
    written(ROWS)
    assert pd.read_csv(tmp_path / "trial.csv").equals(pd.DataFrame(ROWS))


def test_numbers_are_written_with_their_intervals_and_units():
    headings, cells = as_text(ROWS)
    assert headings == ["text", "tokens kept", "ms per token", "speedup"]
    assert cells == [
        [SPECIAL, "1024", "19.1 [16.9, 22.0]", "-"],
        ["b", "32", "2.5e-05 [1e-05, 3e-05]", "-"],
        ["c", "4096", "-", "0.500"],
    ]


def test_what_kept_says_is_not_shown_twice():
    headings, _ = as_text([{"method": "streaming", "kept": "4+8", "sinks": 4, "window": 8}])
    assert headings == ["method", "kept"]


def balanced(latex):
    """Whether braces and environments of a LaTeX text close as they open, escaped braces aside."""
    depth, open_environments = 0, []
    for brace in re.findall(r"(?<!\\)[{}]", latex):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    for kind, name in re.findall(r"\\(begin|end)\{([a-z*]+)\}", latex):
        if kind == "begin":
            open_environments.append(name)
        else:
            assert open_environments.pop() == name
    return depth == 0 and not open_environments


@pytest.mark.parametrize("repeat", [1, LONG])
def test_latex_is_balanced_and_escaped(written, repeat):
    latex = written(ROWS * repeat)[1]
    assert balanced(latex)
    for mark in (
        "toprule",
        "midrule",
        "bottomrule",
        r"label{tab:trial-table}",
        r"A trial \& error",
        r"tiny\_1",
    ):
        assert mark in latex
    assert escape_latex(SPECIAL) in latex
    assert ("longtable" in latex.partition("\n")[2]) == (repeat > 1)
    for line in re.findall(r"^.*\\\\$", latex, re.MULTILINE):
        named = "multicolumn" in line or "caption" in line
        assert named or len(re.findall(r"(?<!\\)&", line)) == 3


PAPER = r"""\documentclass{article}
\usepackage{booktabs,graphicx,longtable}
\begin{document}
\input{trial.tex}
\end{document}
"""


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("repeat", [1, LONG])
def test_latex_compiles(written, tmp_path, repeat):
    written(ROWS * repeat)
    (tmp_path / "paper.tex").write_text(PAPER)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout or repeat > 1
    assert (tmp_path / "paper.pdf").read_bytes().startswith(b"%PDF")


class Cells(HTMLParser):
    """The sort key of every cell of a page, and every address it names."""

    def __init__(self, page):
        super().__init__()
        self.keys, self.addresses = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        if tag == "td":
            self.keys.append(named["data-value"])
        self.addresses += [named[key] for key in ("src", "href") if key in named]


def test_page_sorts_by_whole_numbers_and_loads_nothing(written):
    page = written(ROWS)[2]
    cells = Cells(page)
    assert cells.keys == [
        SPECIAL, "1024", "19.054", "",
        "b", "32", "2.5e-05", "",
        "c", "4096", "", "0.5",
    ]  # fmt: skip
    assert not cells.addresses
    assert "http" not in page
    assert "A trial &amp; error" in page
