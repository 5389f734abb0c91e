"""Prose of the articles in a MediaWiki export."""

import bz2
import faulthandler
import re
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from multiprocessing import Pipe, get_context
from typing import Any
from xml.etree import ElementTree

import mwparserfromhell
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Tag, Template, Text, Wikilink

from streamlm import limits
from streamlm.characters import without_steering
from streamlm.sources.documents import READ_BYTES, Document, squeeze
from streamlm.sources.expanding import check_expansion

# The visible text of templates that contain prose: {0} is the name as written, {1} the first parameter.
_TEMPLATES = {
    **dict.fromkeys(["ipa", "nihongo", "nowrap", "sc", "smaller", "sup", "val"], "{1}"),
    **dict.fromkeys(["lang", "rtl-lang", "script", "transl"], "{2}"),
    **dict.fromkeys(["angbr", "vr"], "⟨{1}⟩"),
    **dict.fromkeys(["blockquote", "quote"], "\n{1}\n"),
    "'s": "'s",
    "as of": "{0} {1}",
    "chem": "{1}{2}{3}{4}{5}{6}{7}{8}",
    "circa": "c. {1}",
    "convert": "{1} {2}",
    "convert range": "{1} {2} {3} {4}",
    "mdashb": "—",
    "nbsp": " ",
}
_TOGETHER = 100  # articles that one process reads
_RANGE_WORDS = {"-", "\u2013", "to", "and", "by", "x"}
_HIDDEN_TAGS = {"gallery", "imagemap", "ref", "references", "score", "section", "table", "timeline"}
_HIDDEN_LINKS = {"file", "image", "category", "media"}
# Titles of sections at the end of an article that contain sources and links instead of prose.
_APPENDIX = re.compile(
    r"bibliography|citations|cited texts|external links|footnotes|further reading|gallery|notes|"
    r"notes and references|references|references and (?:further reading|notes)|see also|sources|works cited",
    re.IGNORECASE,
)


def mediawiki_documents(xml: bytes) -> Iterator[Document]:
    """Yield the articles of a bz2-compressed MediaWiki export as prose.

    Only the main namespace is read; redirects, tables, references and appendices (See also, …) are left out.

    Raises:
        ValueError: the bytes are not such an export.
    """
    batch: list[Document] = []  # of articles as they are written
    for page in _pages(xml):
        if page.findtext("{*}ns") == "0" and page.find("{*}redirect") is None:
            title, text = page.findtext("{*}title") or "", page.findtext("{*}revision/{*}text") or ""
            batch.append(Document(title, text))
            if len(batch) == _TOGETHER or sum(len(article.text) for article in batch) > limits.PAGE_BYTES:
                yield from _prose_in_time(batch)
                batch = []
    yield from _prose_in_time(batch)


def _pages(xml: bytes) -> Iterator[ElementTree.Element]:
    """Yield the pages of an export, of which one at a time is held."""
    parser: ElementTree.XMLPullParser[Any] = ElementTree.XMLPullParser(("start", "end"))
    path: list[ElementTree.Element] = []  # from the root to the element that is read
    n_bytes = last_end = 0
    for piece in _xml_pieces(xml):
        n_bytes += len(piece)
        for event, element in _parsed(parser, piece):
            if event == "start":
                path.append(element)
            elif len(path) == 2:
                if element.tag.rpartition("}")[2] == "page":
                    yield element
                path.pop()
                path[0].clear()
                last_end = n_bytes
            else:
                path.pop()
        if n_bytes - last_end > limits.PAGE_BYTES:
            raise ValueError(
                f"a page of the MediaWiki export has more than {limits.PAGE_BYTES:,} bytes; use an export of "
                "the current pages, without their history"
            )


def _xml_pieces(xml: bytes) -> Iterator[bytes]:
    """Yield the XML of a bz2-compressed export, and at last an empty piece."""
    try:
        with bz2.open(BytesIO(xml)) as file:
            n_bytes, before = 0, b""
            while piece := file.read(READ_BYTES):
                n_bytes += len(piece)
                check_expansion("the MediaWiki export", n_bytes, len(xml))
                # In UTF-16 too: its entities can expand without end. In a text, "<" is written "&lt;".
                if b"<!DOCTYPE" in (before + piece).replace(b"\0", b""):
                    raise _no_export("it has a DOCTYPE")
                before = piece[-20:]
                yield piece
    except (OSError, EOFError) as error:
        raise _no_export(error) from error
    yield b""


def _parsed(parser: "ElementTree.XMLPullParser[Any]", piece: bytes) -> Iterator[Any]:
    """Yield the events of one more piece of XML; the last is empty."""
    try:
        if piece:
            parser.feed(piece)
        else:
            parser.close()
        yield from parser.read_events()
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the latter two of its encoding
        raise _no_export(error) from error


def _no_export(reason: object) -> ValueError:
    return ValueError(f"not a bz2-compressed MediaWiki export ({reason}); correct `format`")


def _prose_in_time(articles: Sequence[Document]) -> Iterator[Document]:
    """Yield the articles as prose; the parser reads them in a process of its own.

    Of some markup the parser's time is quadratic, and of some it crashes.
    """
    ours, theirs = Pipe(duplex=False)
    process = get_context("fork").Process(target=_send_prose, args=(theirs, articles), daemon=True)
    process.start()
    theirs.close()
    try:
        for article in articles:
            yield Document(article.title, _received(ours, process, article.title))
    finally:
        ours.close()
        process.join()


def _received(source: Any, process: Any, title: str) -> str:
    """Return the prose that comes next; raise ValueError if the process ended instead."""
    try:
        prose: str = source.recv()
    except EOFError:
        process.join()
        is_late = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        what = (
            f"takes more than {limits.ARTICLE_SECONDS} s of computing time" if is_late else "stops the parser"
        )
        raise ValueError(
            f"the page {without_steering(title)!r} of the MediaWiki export {what}; leave it out of the export"
        ) from None
    return prose


def _send_prose(target: Any, articles: Sequence[Document]) -> None:
    """Send the prose of each article; where that fails, the process ends without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(Exception):  # the one who waits says so
        for article in articles:
            until, (_, hard) = (
                int(time.process_time()) + limits.ARTICLE_SECONDS,
                resource.getrlimit(resource.RLIMIT_CPU),
            )
            resource.setrlimit(resource.RLIMIT_CPU, (until if hard < 0 else min(until, hard), hard))
            target.send(_article_prose(article.text))


def _article_prose(wikitext: str) -> str:
    # _tidy removes bold and italic quotes: if unbalanced, they make the parser miss the markup around them.
    code = mwparserfromhell.parse(wikitext, skip_style_tags=True)
    sections = code.get_sections(levels=[2], include_lead=True)
    return _tidy("\n\n".join(_prose(section) for section in sections if not _is_appendix(section)))


def _is_appendix(section: Any) -> bool:
    first = section.nodes[0] if section.nodes else None
    return isinstance(first, Heading) and bool(_APPENDIX.fullmatch(_prose(first.title).strip()))


def _prose(code: Any) -> str:
    return "".join(map(_node_prose, code.nodes))


def _node_prose(node: Any) -> str:
    """Return the visible text of one node of a parsed article; comments have none."""
    match node:
        case Text():
            return str(node.value)
        case HTMLEntity():
            return str(node.normalize())
        case Heading():
            return f"\n{_prose(node.title).strip()}\n"
        case Tag():
            return _tag_prose(node)
        case Template():
            return _template_prose(node)
        case ExternalLink():
            return _prose(node.title) if node.title else ""
        case Wikilink():
            hidden = str(node.title).partition(":")[0].strip().lower() in _HIDDEN_LINKS
            return "" if hidden else _prose(node.text or node.title)
    return ""


def _tag_prose(tag: Any) -> str:
    name = str(tag.tag).strip().lower()
    if name == "br":
        return "\n"
    return "" if name in _HIDDEN_TAGS or tag.contents is None else _prose(tag.contents)


def _template_prose(template: Any) -> str:
    name, keys = str(template.name).strip(), map(str, range(1, 9))
    values = [_prose(template.get(key).value).strip() if template.has(key) else "" for key in keys]
    kind = name.lower() + (" range" if values[1] in _RANGE_WORDS else "")
    return _TEMPLATES.get(kind, "").format(name, *values)


def _tidy(text: str) -> str:
    """Remove the remains of markup: quotes, empty brackets, double spaces, blank lines.

    Linear in the text: a repeated character matches only from its first, and once.
    """
    text = re.sub(r"''+(?='s\b)|''+|__[A-Z]+__", "", text)  # ''Iliad'''s keeps its apostrophe
    text = re.sub(r"(?<![ \u00a0])[ \u00a0]++\((?:[\s,;:]|\bor\b)*+\)", "", text)
    text = re.sub(r"\([\s,;:]+", "(", text)
    text = re.sub(r"[ \t\u00a0]+", " ", text)
    text = re.sub(r"(?<![ ,])[ ,]+(?=[,;]\s)| (?=\.$)", "", text, flags=re.MULTILINE)
    return squeeze(text.replace("\n ", "\n"))
