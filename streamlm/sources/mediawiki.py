"""Prose of the articles in a MediaWiki export."""

import bz2
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import mwparserfromhell
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Tag, Template, Text, Wikilink

from streamlm.sources.documents import Document, squeeze

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
    try:
        root = ElementTree.fromstring(bz2.decompress(xml))
    except (OSError, ElementTree.ParseError) as error:
        raise ValueError(f"not a bz2-compressed MediaWiki export ({error}); correct `format`") from error
    for page in root.iterfind("{*}page"):
        if page.findtext("{*}ns") == "0" and page.find("{*}redirect") is None:
            text = _article_prose(page.findtext("{*}revision/{*}text") or "")
            yield Document(title=page.findtext("{*}title") or "", text=text)


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
    """Remove the remains of markup: quotes, empty brackets, double spaces, blank lines."""
    text = re.sub(r"''+(?='s\b)|''+|__[A-Z]+__", "", text)  # ''Iliad'''s keeps its apostrophe
    text = re.sub(r"[ \u00a0]+\((?:[\s,;:]|\bor\b)*\)", "", text)
    text = re.sub(r"\([\s,;:]+", "(", text)
    text = re.sub(r"[ \t\u00a0]+", " ", text)
    text = re.sub(r"[ ,]+(?=[,;]\s)| (?=\.$)", "", text, flags=re.MULTILINE)
    return squeeze(text.replace("\n ", "\n"))
