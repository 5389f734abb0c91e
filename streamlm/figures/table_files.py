"""Write a table as CSV, as LaTeX for a paper, and as a page that sorts by the column one clicks."""

import html
import textwrap
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from streamlm.figures.entry import Figure
from streamlm.records.files import write_text
from streamlm.records.types import Record
from streamlm.summaries.escape import escape_csv, escape_latex
from streamlm.summaries.main import describe_setting
from streamlm.summaries.tables import GROUPS, Row, as_text, heading, shown_columns

LONG = 45  # rows; more do not fit on a page


def write_tables(figure: Figure, name: str, records: Sequence[Record], targets: Sequence[Path | str]) -> None:
    """Write the table of a figure to every target, as its suffix says.

    Args:
        figure: the entry of its module.
        name: of the figure.
        records: that the figure is drawn from, in its order.
        targets: files that end in .csv, .tex or .html.
    """
    rows, setting = figure.rows(records), describe_setting(records[0])
    for target in targets:
        match Path(target).suffix:
            case ".csv":
                write_text(target, as_csv(rows))
            case ".tex":
                write_text(
                    target, as_latex(rows, name, f"{figure.title}. {setting}. Brackets are intervals.")
                )
            case ".html":
                write_text(target, as_page(rows, figure.title, setting))


def as_csv(rows: Sequence[Row]) -> str:
    """Return the numbers of a table, whole."""
    cells = [{name: escape_csv(value) for name, value in row.items()} for row in rows]
    return str(pd.DataFrame(cells).convert_dtypes().to_csv(index=False, lineterminator="\n"))


NO_WIDER = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}"  # than the page


def as_latex(rows: Sequence[Row], name: str, caption: str) -> str:
    """Return a float, or a table over several pages where it is long; columns of words come first."""
    headings, cells = as_text(rows)
    columns = shown_columns(rows)
    sides = "".join("l" if _is_text(rows, column) else "r" for column in columns)
    frame = pd.DataFrame(cells, columns=headings).map(escape_latex).rename(columns=escape_latex)
    groups = [escape_latex(heading(column)) for column in columns if column in GROUPS]
    repeated = (frame[groups] == frame[groups].shift()).all(axis=1)
    frame.loc[repeated, groups] = ""  # what a group of rows shares is written once
    frame.columns = [_stack(head, frame[head], side) for head, side in zip(frame, sides, strict=True)]
    environment = "longtable" if len(rows) > LONG else "tabular"
    caption = f"\\caption{{{escape_latex(caption)}}}\\label{{tab:{name.replace('_', '-')}}}"
    body = frame.style.hide(axis="index").to_latex(
        column_format=sides, hrules=True, environment=None if environment == "tabular" else environment
    )
    size = "\\footnotesize" if len(columns) < 9 else "\\scriptsize"
    size = f"{size}\\setlength{{\\tabcolsep}}{{3pt}}"
    if environment == "longtable":
        first, rest = body.split("\n", 1)
        whole = f"{{{size}\n{first}\n{caption} \\\\\n{rest}}}\n"
    else:
        whole = (
            f"\\begin{{table*}}[htbp]\n\\centering{size}\n{caption}\n{NO_WIDER}{{!}}{{%\n{body}}}\n"
            "\\end{table*}\n"
        )
    return f"% needs \\usepackage{{booktabs,graphicx,longtable}}\n{whole}"


def _stack(head: str, cells: pd.Series, side: str) -> str:
    """Return a heading in lines that are not much longer than the cells below it."""
    lines = textwrap.wrap(head, max(9, *cells.map(len)), break_long_words=False)
    stacked = r" \\ ".join(lines)
    return rf"\shortstack[{side}]{{{stacked}}}"


def _is_text(rows: Sequence[Row], column: str) -> bool:
    return any(isinstance(row.get(column), str) for row in rows)


def as_page(rows: Sequence[Row], title: str, about: str) -> str:
    """Return a page of its own: nothing is loaded from anywhere."""
    headings, cells = as_text(rows)
    columns = shown_columns(rows)
    sides = ["words" if _is_text(rows, column) else "number" for column in columns]
    heads = "".join(f'<th tabindex="0" scope="col">{html.escape(head)}</th>' for head in headings)
    lines = [
        "".join(map(_page_cell, sides, (row.get(column) for column in columns), texts))
        for row, texts in zip(rows, cells, strict=True)
    ]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return PAGE.substitute(title=html.escape(title), about=html.escape(about), heads=heads, rows=body)


def _page_cell(side: str, value: Any, text: str) -> str:
    """Return a cell that shows a text and is sorted by its value."""
    key = "" if value is None else html.escape(str(value))
    return f'<td class="{side}" data-value="{key}">{html.escape(text)}</td>'


PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>$title</title>
<style>
body { font: 14px/1.4 sans-serif; margin: 1.5em; color: #222; }
h1 { font-size: 1.2em; margin: 0 0 .3em; }
p { color: #666; margin: 0 0 1em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
thead { position: sticky; top: 0; background: white; }
th { text-align: left; cursor: pointer; border-bottom: 1px solid #222; border-top: 2px solid #222; }
td.number { text-align: right; }
th, td { padding: .25em .8em; vertical-align: top; white-space: nowrap; }
tbody tr:nth-child(even) { background: #f5f5f5; }
th[aria-sort=ascending]::after { content: " \\25b2"; }
th[aria-sort=descending]::after { content: " \\25bc"; }
</style>
<h1>$title</h1>
<p>$about. Brackets are intervals. Click a heading to sort.</p>
<table>
<thead><tr>$heads</tr></thead>
<tbody>
$rows
</tbody>
</table>
<script>
const heads = [...document.querySelectorAll("th")];
function sortBy(column) {
  const head = heads[column], down = head.getAttribute("aria-sort") === "ascending";
  const body = document.querySelector("tbody"), key = row => row.cells[column].dataset.value;
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");  // empty cells stay last
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return down ? -order : order;
  });
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  body.append(...rows);
}
heads.forEach((head, column) => {
  head.addEventListener("click", () => sortBy(column));
  head.addEventListener("keydown", event => event.key === "Enter" && sortBy(column));
});
</script>
</html>
""")
