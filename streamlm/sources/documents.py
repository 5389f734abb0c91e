"""Documents of Project Gutenberg texts, WikiText and plain files."""

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, dropwhile
from pathlib import Path
from typing import IO

from streamlm import limits
from streamlm.characters import without_steering

READ_BYTES = 1 << 16  # of a file, at once


@dataclass(frozen=True)
class Document:
    """One text without markup."""

    title: str
    text: str


def squeeze(text: str) -> str:
    """Remove spaces at line ends, and all but one of consecutive blank lines."""
    lines = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", lines).strip()


_GUTENBERG_HEAD = re.compile(
    r"\*\*\* ?START OF TH(?:E|IS) PROJECT GUTENBERG[^*]*\*\*\*|\*END\*? ?THE SMALL PRINT!.*", re.IGNORECASE
)
_GUTENBERG_TAIL = re.compile(
    r"^[ *]*END OF (?:(?:THE|THIS) )?PROJECT GUTENBERG.*", re.IGNORECASE | re.MULTILINE | re.DOTALL
)
_GUTENBERG_CREDIT = re.compile(r"[^\n]*(?:Project Gutenberg|Produced by|\be-?(?:text|book)\b)", re.IGNORECASE)


def gutenberg_document(name: str, raw: bytes) -> Document:
    """Return a Project Gutenberg text without header, licence and footer; its first line is the title.

    A text without them is returned as it is.

    Args:
        name: the file's name, for messages.
        raw: in UTF-8, in UTF-16, or in the encoding that the header names.

    Raises:
        ValueError: no text is left, it still mentions Project Gutenberg, or its encoding is not known.
    """
    text = _decode_gutenberg(name, raw).replace("\r\n", "\n")
    start = max((mark.end() for mark in _GUTENBERG_HEAD.finditer(text)), default=0)
    paragraphs = squeeze(_GUTENBERG_TAIL.sub("", text[start:])).split("\n\n")
    text = "\n\n".join(dropwhile(_GUTENBERG_CREDIT.match, paragraphs))
    if not text:
        raise ValueError(f"{name} has no text after the Project Gutenberg header; leave it out")
    if left := re.search(r"^.*(?:Project Gutenberg|\betext\b).*", text, re.IGNORECASE | re.MULTILINE):
        raise ValueError(f"{name} still says {left[0].strip()!r}; remove that by hand and use format 'text'")
    return Document(title=text.partition("\n")[0].strip(), text=text)


_DECLARED = re.compile(rb"^Character set encoding:([^\r\n]*+)\r?$", re.IGNORECASE | re.MULTILINE)
# Names that Python does not know. What calls itself Latin-1 or ASCII often has the quotes of cp1252.
_ENCODINGS = {
    **dict.fromkeys(["isolatin1", "iso88591", "latin1", "ascii", "usascii"], "cp1252"),
    "unicodeutf8": "utf-8",
    "macroman": "mac-roman",
}
# Python's own notations, which it also calls encodings: slow on long texts, or of characters that none has.
_NO_CHARACTER_SETS = {"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"}


def _decode_gutenberg(name: str, raw: bytes) -> str:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16")
    try:
        return raw.decode("utf-8-sig")  # what another encoding writes is practically never valid UTF-8
    except UnicodeDecodeError:
        declared = _DECLARED.search(raw)
    # Without one, a library could only guess: it takes "Æneas, café" for Arabic.
    said = "" if declared is None else declared[1].strip().decode("ascii", "replace")
    plain = re.sub(r"[^a-z0-9]", "", said.lower()).replace("codepage", "cp")
    encoding = _ENCODINGS.get(plain, plain if plain.startswith("cp") else said)
    try:
        if "\0" in encoding or codecs.lookup(encoding).name in _NO_CHARACTER_SETS:
            raise LookupError
        return raw.decode(encoding)
    except LookupError:
        raise ValueError(
            f"{name} is not UTF-8, and names no other encoding; convert it, such as with "
            f"`iconv -f CP1252 -t UTF-8`, or begin it with a line `Character set encoding: CP1252`"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not in {said}, as it says ({error}); convert it to UTF-8") from error


# C0 and C1; lone surrogates, which no encoding writes and JSON can spell.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def check_characters(name: str, text: str) -> None:
    """Raise ValueError if a text has control characters, as binary files and wrong encodings leave them."""
    if found := _CONTROL.search(text):
        before = text[max(0, found.start() - 20) : found.start()]
        raise ValueError(
            f"{without_steering(name)} has the control character U+{ord(found[0]):04X} after {before!r}: it "
            "is no text, or is not in this encoding; convert it to UTF-8, or remove the character"
        )


def text_document(name: str, raw: bytes) -> Document:
    """Return a UTF-8 file as one document, unchanged.

    Raises:
        ValueError: as `text_pieces` does.
    """
    return Document(title=Path(name).stem, text="".join(text_pieces(name, BytesIO(raw))))


def text_pieces(name: str, file: IO[bytes]) -> Iterator[str]:
    """Yield a UTF-8 file piece by piece, unchanged.

    Args:
        name: of the file, in messages.
        file: open to read.

    Raises:
        ValueError: if what was read so far is not UTF-8 or has control characters, or all of it is blank.
    """
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    n_read, blank, shown = 0, True, without_steering(name)
    for raw in chain(iter(lambda: file.read(READ_BYTES), b""), [b""]):
        try:
            text = decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{shown} is not UTF-8 ({error.reason}, near byte {n_read + error.start}); convert it first"
            ) from error
        n_read += len(raw)
        if n_read > limits.TEXT_BYTES:
            raise ValueError(
                f"{shown} has more than {limits.TEXT_BYTES:,} bytes; use --max-eval-tokens or a part"
            )
        check_characters(name, text)
        blank = blank and not text.strip()
        yield text
    if blank:
        raise ValueError(f"{shown} has no text; use a file with at least one word")


_ARTICLE = re.compile(r" = (?!= )(.+?)(?<! =) = ")


def wikitext_documents(rows: Sequence[str]) -> list[Document]:
    """Return the articles of WikiText, given one line per row.

    An article begins at a line `` = Title = `` between blank lines; headings of sections have more ``=``.
    Lines are kept as they are, including the corpus' own word forms (``<unk>``, ``@-@``).
    """
    lines = ["", *(row.removesuffix("\n") for row in rows), ""]
    articles: list[tuple[str, list[str]]] = [("", [])]  # titles with their lines
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        heading = _ARTICLE.fullmatch(line)
        if heading and not before.strip() and not after.strip():
            articles.append((heading[1], []))
        articles[-1][1].append(line)
    documents = [Document(title, "\n".join(text).strip()) for title, text in articles]
    return [document for document in documents if document.text]
