"""Write a table as CSV, as LaTeX for a paper, and as a page that sorts by the column one clicks."""

import html
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from streamlm.figures.tables import TABLES
from streamlm.records.files import write_text
from streamlm.records.types import Record
from streamlm.summaries.main import describe_setting

UNITS = {"ms": "ms", "s": "s", "percent": "%", "nats": "nats", "mib": "MiB", "tokens": "tokens"}
WORDS = {"kv": "KV", "kl": "KL"}
LONG = 45  # rows; more do not fit on a page


def write_table(name: str, records: Sequence[Record], targets: Sequence[Path | str]) -> None:
    """Write the table of a figure, as each target's suffix says.

    Args:
        name: of the figure, a key of `tables.TABLES`.
        records: that the figure is drawn from, in its order.
        targets: files that end in .csv, .tex or .html.
    """
    frame = pd.DataFrame(TABLES[name].rows(records)).convert_dtypes()
    setting = describe_setting(records[0])
    for target in targets:
        write = {".csv": _as_csv, ".tex": _as_latex, ".html": _as_page}[Path(target).suffix]
        write_text(target, write(frame, name, setting))


def _as_csv(frame: pd.DataFrame, name: str, setting: str) -> str:
    return str(frame.to_csv(index=False, lineterminator="\n"))


def as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table of words: intervals in brackets, no more digits than they deserve."""
    rows = [row for _, row in frame.iterrows()]
    return pd.DataFrame({_heading(name): [_cell(row, name) for row in rows] for name in _shown(frame)})


def _shown(frame: pd.DataFrame) -> list[str]:
    """Return the columns that are not an end of another's interval."""
    return [name for name in frame if not name.endswith(("_low", "_high"))]


def _heading(name: str) -> str:
    """Return a column's name in words, the unit behind a comma: "step_ms" is "step, ms"."""
    *words, last = [WORDS.get(word, word) for word in name.split("_")]
    return f"{' '.join(words)}, {UNITS[last]}" if words and last in UNITS else " ".join([*words, last])


def _cell(row: pd.Series, name: str) -> str:
    value = row[name]
    if pd.isna(value):
        return ""
    if isinstance(value, str):
        return value
    numbers = [float(row[key]) for key in (name, f"{name}_low", f"{name}_high") if not pd.isna(row.get(key))]
    digits = _digits(max(map(abs, numbers)))
    if len(numbers) == 1:
        return f"{value:d}" if isinstance(value, int | np.integer) else f"{value:{digits}}"
    mean, low, high = (f"{number:{digits}}" for number in numbers)
    return f"{mean} [{low}, {high}]"


def _digits(size: float) -> str:
    """Return the format of numbers up to a size."""
    if 0 < size < 0.001:
        return ".2g"
    return f".{4 if 0 < size < 0.1 else 3 if size < 1 else 2 if size < 100 else 1 if size < 1000 else 0}f"


LATEX = {
    "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
    "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


NO_WIDER = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}"  # than the page
GROUPS = ("text", "protocol")  # columns that in LaTeX become headings of the rows below


def escape_latex(text: str) -> str:
    """Return a text as LaTeX sets it letter by letter."""
    return "".join(LATEX.get(letter, letter) for letter in text)


def _as_latex(frame: pd.DataFrame, name: str, setting: str) -> str:
    """Return a float, or a table over several pages where it is long; booktabs draws it."""
    shown = as_text(frame).map(escape_latex)
    caption = escape_latex(f"{TABLES[name].title}. {setting}. Brackets are intervals.")
    title = f"\\caption{{{caption}}}\\label{{tab:{name.replace('_', '-')}}}"
    columns = [key for key in _shown(frame) if key not in GROUPS]
    shape = "".join("r" if is_numeric_dtype(frame[key]) else "l" for key in columns)
    head = " & ".join(_stack(shown[_heading(key)], side) for key, side in zip(columns, shape, strict=True))
    head = f"\\toprule\n{head} \\\\\n\\midrule\n"
    rows = "\n".join(_latex_rows(shown, len(columns)))
    size = "\\footnotesize" if len(columns) < 9 else "\\scriptsize"
    if len(shown) > LONG:
        body = (
            f"\\begin{{longtable}}{{{shape}}}\n{title} \\\\\n{head}\\endfirsthead\n{head}\\endhead\n"
            f"\\bottomrule\n\\endfoot\n{rows}\n\\end{{longtable}}\n"
        )
        whole = f"{{{size}\\setlength{{\\tabcolsep}}{{3pt}}\n{body}}}\n"
    else:
        body = f"\\begin{{tabular}}{{{shape}}}\n{head}{rows}\n\\bottomrule\n\\end{{tabular}}\n"
        whole = (
            f"\\begin{{table*}}[htbp]\n\\centering{size}\\setlength{{\\tabcolsep}}{{3pt}}\n{title}\n"
            f"{NO_WIDER}{{!}}{{%\n{body}}}\n\\end{{table*}}\n"
        )
    return f"% needs \\usepackage{{booktabs,graphicx,longtable}}\n{whole}"


def _stack(column: pd.Series, side: str) -> str:
    """Return a column's heading, in lines that are not much longer than its cells."""
    width = max(9, *column.map(len))
    lines = textwrap.wrap(str(column.name), width, break_long_words=False)
    stacked = r" \\ ".join(map(escape_latex, lines))
    return rf"\shortstack[{side}]{{{stacked}}}"


def _latex_rows(shown: pd.DataFrame, n_columns: int) -> Iterator[str]:
    """Yield the rows, under a line that names their text wherever it changes."""
    groups = [key for key in GROUPS if key in shown]
    named = ""
    for _, row in shown.iterrows():
        name = ", ".join(row[groups])
        if name != named:
            rule = r"\midrule " if named else ""
            yield rf"{rule}\multicolumn{{{n_columns}}}{{l}}{{\emph{{{name}}}}} \\"
            named = name
        yield rf"{' & '.join(row.drop(groups))} \\"


def _as_page(frame: pd.DataFrame, name: str, setting: str) -> str:
    """Return a page of its own: nothing is loaded from anywhere."""
    shown, keys = as_text(frame), _shown(frame)
    kinds = ["number" if is_numeric_dtype(frame[key]) else "words" for key in keys]
    heads = "".join(f'<th tabindex="0" scope="col">{html.escape(head)}</th>' for head in shown)
    pairs = zip(frame[keys].itertuples(index=False), shown.itertuples(index=False), strict=True)
    rows = "\n".join(f"<tr>{''.join(map(_page_cell, kinds, values, cells))}</tr>" for values, cells in pairs)
    title, about = html.escape(TABLES[name].title), html.escape(setting)
    return PAGE.substitute(title=title, about=about, heads=heads, rows=rows)


def _page_cell(kind: str, value: object, cell: str) -> str:
    """Return a cell that shows a text and is sorted by its value."""
    key = "" if pd.isna(value) else html.escape(str(value))
    return f'<td class="{kind}" data-value="{key}">{html.escape(cell)}</td>'


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
