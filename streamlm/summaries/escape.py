"""Names of strangers as they are shown: each format's own way to say that a letter is no markup.

On a picture, matplotlib reads no markup (`text.parse_math` of `figures.style`); HTML has `html.escape`.
"""

import re
from collections.abc import Callable
from typing import Any
from unicodedata import normalize

_EDGE = r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"  # inside a word, an underline is no markup
_RST = re.compile(rf"[\\`*|:@<>\[\]]|{_EDGE}")
_MARKDOWN = re.compile(rf"[\\`*|<>\[\]~&$]|:(?=//)|{_EDGE}|^[#+=-]")
_LATEX = {
    "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip


def escape_rst(text: str) -> str:
    """Return a text as reStructuredText shows it letter by letter, on one line."""
    return _RST.sub(r"\\\g<0>", _one_line(text))


def escape_markdown(text: str) -> str:
    """Return a text as Markdown shows it letter by letter, on one line, in a table as well."""
    return _MARKDOWN.sub(r"\\\g<0>", _one_line(text))


def escape_latex(text: str) -> str:
    r"""Return a text as LaTeX sets it letter by letter; ``[`` and ``*`` would belong to a ``\\`` before."""
    escaped = "".join(_LATEX.get(letter, letter) for letter in _one_line(text))
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped


def escape_csv(value: Any) -> Any:
    """Return a cell of a CSV file: a text that a spreadsheet would compute, after an apostrophe."""
    # Full-width signs count as well.
    is_formula = isinstance(value, str) and normalize("NFKC", value.lstrip())[:1] in ("=", "+", "-", "@")
    return f"'{value}" if is_formula else value


def escape_texts(value: Any, escape: Callable[[str], str]) -> Any:
    """Return a record with every text in it escaped, keys included."""
    match value:
        case str(text):
            return escape(text)
        case list(items):
            return [escape_texts(item, escape) for item in items]
        case dict(section):
            return {escape(key): escape_texts(part, escape) for key, part in section.items()}
    return value


def _one_line(text: str) -> str:
    return " ".join(text.split())
