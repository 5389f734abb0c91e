"""Texts of strangers: read in time that grows with their length, or refused in one line."""

import bz2
import io
import json
import random
import re
import time

import pytest
from test_documents import wiki_export, wiki_page

from streamlm import limits
from streamlm.sources.corpus import read_sample
from streamlm.sources.documents import gutenberg_document, squeeze, text_pieces
from streamlm.sources.mediawiki import _tidy, mediawiki_documents

UNITS = [
    "{",
    "[",
    "<",
    "=",
    "'",
    "\n",
    "&",
    "|",
    " ",
    "\t",
    "\u00a0",
    ",",
    " ,",
    ";",
    "(",
    " (",
    ")",
    "or ",
    "__A",
]
UNITS += [*"-*#:;._~\\", "{{", "[[", "<ref", "<!--", "''", "\n ", " .", "\r", "{{{[[<", "\nProduced by\n"]
N = 300_000


def within(seconds, function, *args):
    begin = time.process_time()
    try:
        function(*args)
    except ValueError as error:
        assert "\n" not in str(error)
    assert time.process_time() - begin < seconds, args[0][:10]


@pytest.mark.parametrize("unit", UNITS)
def test_tidying_and_headers_are_linear_in_a_repeated_text(unit):
    text = "x" + unit * (N // len(unit)) + "x"
    within(2, _tidy, text)
    within(2, squeeze, text)
    within(4, lambda raw: gutenberg_document("it", raw), text.encode())
    for before in (b"\xff\n", b"\xff\nCharacter set encoding:"):
        within(4, lambda raw: gutenberg_document("it", raw), before + text.encode() + b"\rx")


def test_tidying_is_that_of_the_plain_expressions():
    def plain(text):
        text = re.sub(r"''+(?='s\b)|''+|__[A-Z]+__", "", text)
        text = re.sub(r"[ \u00a0]+\((?:[\s,;:]|\bor\b)*\)", "", text)
        text = re.sub(r"\([\s,;:]+", "(", text)
        text = re.sub(r"[ \t\u00a0]+", " ", text)
        text = re.sub(r"[ ,]+(?=[,;]\s)| (?=\.$)", "", text, flags=re.MULTILINE)
        text = re.sub(r"[^\S\n]+$", "", text.replace("\n ", "\n"), flags=re.MULTILINE)
        return re.sub(r"\n{3,}", "\n\n", text).strip()

    draw = random.Random(0)
    alphabet = [*" ,;:.()x'\n\t\r\x85\u00a0\u2028", "or", "__A__"]
    for _ in range(20_000):
        text = "".join(draw.choices(alphabet, k=draw.randint(1, 14)))
        assert _tidy(text) == plain(text)


@pytest.mark.parametrize("unit", [*"{[<='&| ", "\n", "{{", "[[", "<ref", "== ", "<!--", "*", "<b>", "{{a|"])
def test_article_of_a_repeated_text_ends_in_bounded_time(monkeypatch, unit):
    monkeypatch.setattr(limits, "ARTICLE_SECONDS", 1)
    begin = time.monotonic()
    try:
        list(mediawiki_documents(wiki_export(wiki_page(unit * (N // len(unit)), title="A\x7fb"))))
    except ValueError as error:
        assert re.match(
            r"the page .* (takes more than 1 s of computing time|stops the parser); leave", str(error)
        )
        assert "\x7f" not in str(error)
    assert time.monotonic() - begin < 30


def test_article_that_crashes_the_parser_is_one_line():
    with pytest.raises(
        ValueError, match=r"the page 'Page' of the MediaWiki export stops the parser; leave it out"
    ):
        list(mediawiki_documents(wiki_export(wiki_page("== " * 100_000))))


@pytest.mark.parametrize(
    "xml",
    [
        b'<!DOCTYPE x [<!ENTITY a "b">]><mediawiki/>', b'<?xml version="1.0" encoding="idna"?><mediawiki/>',
        b"<mediawiki><page>", b"\0" * 100, b"<mediawiki>&#xD800;</mediawiki>", b"<a>" * 100_000,
        '<!DOCTYPE x [<!ENTITY a "b">]><m/>'.encode("utf-16"), b'<?xml version="1.0" encoding="x\0"?>',
    ],
    ids=range(8),
)  # fmt: skip
def test_export_that_is_none_is_one_line(xml):
    for raw in (bz2.compress(xml), xml, bz2.compress(xml)[:-5]):
        with pytest.raises(ValueError, match=r"^not a bz2-compressed MediaWiki export .*; correct `format`$"):
            list(mediawiki_documents(raw))


def test_page_without_end_is_refused_and_many_pages_are_not(monkeypatch):
    monkeypatch.setattr(limits, "PAGE_BYTES", 200_000)
    filler = "".join(random.Random(0).choices("abcdefgh ", k=90_000))
    pages = [wiki_page(filler, ns=1)] * 9
    assert [d.text for d in mediawiki_documents(wiki_export(*pages, wiki_page("words")))] == ["words"]
    with pytest.raises(ValueError, match="a page of the MediaWiki export has more than 200,000 bytes"):
        list(mediawiki_documents(wiki_export(wiki_page(filler * 4))))


@pytest.mark.parametrize(
    "said",
    [
        "idna",
        "punycode",
        "undefined",
        "unicode_escape",
        "raw_unicode_escape",
        "UTF-7",
        "bz2",
        "a\0b",
        "x" * N,
    ],
)
def test_gutenberg_encoding_that_is_none_is_refused(said):
    raw = b"Character set encoding: " + said.encode() + b"\n\n" + b"caf\xe9 \\ud800 " * 1000
    with pytest.raises(ValueError, match="it is not UTF-8, and names no other encoding; convert it"):
        gutenberg_document("it", raw)


def test_text_without_end_is_refused(monkeypatch):
    class Endless(io.RawIOBase):
        def read(self, size=-1):
            return b"word " * (size // 5)

    monkeypatch.setattr(limits, "TEXT_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="it has more than 1,048,576 bytes; use --max-eval-tokens or a part"):
        for _ in text_pieces("it", Endless()):
            pass


@pytest.mark.parametrize(
    "record",
    [
        "[" * N, {"documents": [{"title": "a", "text": 5}]}, {"documents": [{"title": None, "text": ""}]},
        {"documents": [{"title": "a", "text": "\ud800"}]}, {"documents": [{"title": "a", "text": "\x1b[0m"}]},
        {"documents": 5}, {"documents": ["a"]}, {"dataset": [1], "documents": []}, "\ud800", "9" * 5000, "0",
    ],
    ids=range(11),
)  # fmt: skip
def test_sample_of_wrong_values_is_one_line(tmp_path, record):
    if isinstance(record, dict):
        record = json.dumps({"dataset": "x", "source": {}} | record)
    (tmp_path / "sample.json").write_text(record, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(
        ValueError, match=r"sample\.json is not a sample \(.*\); delete it and run again$"
    ) as e:
        read_sample(tmp_path / "sample.json")
    assert "\x1b" not in str(e.value)
    assert "\n" not in str(e.value)
