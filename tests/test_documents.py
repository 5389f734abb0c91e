"""What a reader would see survives; markup, licences and leftovers do not."""

import bz2

import pytest

from streamlm.sources.corpus import extract_documents
from streamlm.sources.documents import Document, gutenberg_document, text_document, wikitext_documents
from streamlm.sources.mediawiki import mediawiki_documents


def wiki_page(text, title="Page", ns=0, extra=""):
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    revision = f"<revision><text>{escaped}</text></revision>"
    return f"<page><title>{title}</title><ns>{ns}</ns>{extra}{revision}</page>"


def wiki_export(*pages):
    xml = f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{"".join(pages)}</mediawiki>'
    return bz2.compress(xml.encode())


def wiki_prose(text):
    (document,) = mediawiki_documents(wiki_export(wiki_page(text)))
    return document.text


@pytest.mark.parametrize(
    ("markup", "prose"),
    [
        ("'''Bold''' and ''italic''.", "Bold and italic."),
        ("the ''Iliad'''s hero", "the Iliad's hero"),
        ("[[Paris]] or [[Paris|the city]]", "Paris or the city"),
        ("[http://x.org a site] and [http://x.org]", "a site and"),
        ("a<ref name=x>source</ref> b<ref name=x /> c", "a b c"),
        ("an ''unbalanced<ref>''source'' ''x</ref> end", "an unbalanced end"),
        ("[[File:A.jpg|thumb|120px|A [[caption]].]]text", "text"),
        ("text[[Category:Things]]", "text"),
        ("{{Infobox|a=1|b={{nested|2}}}}text", "text"),
        ("a\n{| class=wikitable\n! head\n|-\n| ''cell\n|}\nb", "a\n\nb"),
        ("a <!-- hidden --> b", "a b"),
        ("a\n== Title ==\nb", "a\n\nTitle\n\nb"),
        ("a\n\n\n\n\nb", "a\n\nb"),
        ("* one\n* two", "one\ntwo"),
        ("5&nbsp;km &amp; more", "5 km & more"),
        ("__NOTOC__text", "text"),
        ("<math>x^2</math> is a square", "x^2 is a square"),
        ("Name ({{IPA-en|x}}; born 1900), ({{lang-fr|y}}) {{x}}, done", "Name (born 1900), done"),
        ("{{convert|5|km|mi}} or {{convert|5|to|7|km|mi}}", "5 km or 5 to 7 km"),
        ("{{lang|fr|''mot''}}, {{As of|2010|lc=y}}", "mot, As of 2010"),
        ("{{quote|Be [[brave]].|Someone}}", "Be brave."),
        ("text\n== See also ==\n* [[Other]]\n=== Deeper ===\nx\n== Life ==\nborn", "text\n\nLife\n\nborn"),
    ],
)
def test_wiki_markup_becomes_prose(markup, prose):
    assert wiki_prose(markup) == prose


def test_wiki_takes_articles_only():
    export = wiki_export(
        wiki_page("text", title="ComparedCaches"),
        wiki_page("#REDIRECT [[ComparedCaches]]", title="Old", extra='<redirect title="ComparedCaches" />'),
        wiki_page("chat", title="Talk:ComparedCaches", ns=1),
    )
    assert list(mediawiki_documents(export)) == [Document("ComparedCaches", "text")]


@pytest.mark.parametrize("raw", [b"<mediawiki/>", bz2.compress(b"no xml")])
def test_wiki_refuses_what_is_no_export(raw):
    with pytest.raises(ValueError, match="not a bz2-compressed MediaWiki export"):
        list(mediawiki_documents(raw))


PLAY = "HAMLET\n\nby William Shakespeare\n\nACT I.\n  Who's there?\n\n[Exeunt.]"
OLD_HEAD = """***The Project Gutenberg Etext of Hamlet***
Copyright laws are changing all over the world.
**Welcome To The World of Free Plain Vanilla Electronic Texts**

*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*


Project Gutenberg's Etext of Shakespeare's Hamlet

This etext was prepared by
a volunteer.

"""
NEW_HEAD = (
    "Title: Hamlet\n\n*** START OF THIS PROJECT GUTENBERG EBOOK\nHAMLET ***\n\nProduced by A. Volunteer\n\n"
)
OLD_TAIL = "\n\n\nEnd of the Project Gutenberg Etext of Hamlet, by Shakespeare\n"
NEW_TAIL = "\n*** END OF THE PROJECT GUTENBERG EBOOK HAMLET ***\n\nUpdated editions will replace ...\n"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("head", ["", OLD_HEAD, NEW_HEAD], ids=["bare", "old", "new"])
@pytest.mark.parametrize("tail", ["", OLD_TAIL, NEW_TAIL], ids=["bare", "old", "new"])
def test_gutenberg_head_and_tail_are_stripped(head, tail, newline):
    raw = (head + PLAY + tail).replace("\n", newline).encode()
    assert gutenberg_document("hamlet.txt", raw) == Document("HAMLET", PLAY)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_gutenberg_accents_survive_either_encoding(encoding):
    assert gutenberg_document("x", "Æneas, café".encode(encoding)).text == "Æneas, café"


def test_gutenberg_keeps_pretext_but_refuses_a_leftover():
    assert gutenberg_document("x", b"And my pretext to strike").text == "And my pretext to strike"
    with pytest.raises(ValueError, match=r"x\.txt still says 'See Project Gutenberg\.'"):
        gutenberg_document("x.txt", b"A line.\n\nSee Project Gutenberg.\n")


def test_gutenberg_without_text_is_refused():
    with pytest.raises(ValueError, match=r"x\.txt has no text"):
        gutenberg_document("x.txt", OLD_HEAD.encode())


@pytest.mark.parametrize(
    ("raw", "match"), [(b"", "no text"), (b" \n\t", "no text"), (b"\xff\xfe", "not UTF-8")]
)
def test_text_refuses_blank_or_foreign_files(raw, match):
    with pytest.raises(ValueError, match=match):
        text_document("x.txt", raw)


@pytest.mark.parametrize(
    ("lines", "articles"),
    [
        (["", " = A = ", "", " text ", " more ", ""], {"A": "= A = \n\n text \n more"}),
        (["", " = A = ", "", " = = S = = ", "", " = B = ", ""], {"A": "= A = \n\n = = S = =", "B": "= B ="}),
        (["", " = A = b = ", "", " x = y = z "], {"A = b": "= A = b = \n\n x = y = z"}),
        (["", " = A = ", "", " text ", " = not a title = ", ""], {"A": "= A = \n\n text \n = not a title ="}),
        (
            [" the end of another ", "", " = A = ", "", " text "],
            {"": "the end of another", "A": "= A = \n\n text"},
        ),
        ([], {}),
    ],
)
def test_wikitext_is_cut_at_titles_between_blank_lines(lines, articles):
    rows = [line + "\n" if line else "" for line in lines]
    assert {document.title: document.text for document in wikitext_documents(rows)} == articles


BOOK = """The Project Gutenberg EBook of A Book

Character set encoding: {}

*** START OF THIS PROJECT GUTENBERG EBOOK A BOOK ***

{}

*** END OF THIS PROJECT GUTENBERG EBOOK A BOOK ***
Licence.
"""


@pytest.mark.parametrize(
    ("declared", "encoding", "body"),
    [
        ("Windows-1252", "cp1252", "“Well,” said she—no. Café, œuvre, 5€."),
        ("ISO-8859-1", "cp1252", "“Well,” said she—no."),  # as many files are
        ("ISO Latin-1", "latin-1", "Café déjà vu."),
        ("US-ASCII", "latin-1", "Café déjà vu."),
        ("ISO-8859-1", "utf-8", "“Well,” said she—café."),
        ("Unicode UTF-8", "utf-8", "“Well,” said she—café."),
        ("big5", "big5", "紅樓夢。第一回。"),
        ("GB2312", "gb2312", "红楼梦。第一回。"),
        ("ISO-8859-2", "iso-8859-2", "Łódź, Żółty żółw."),
        ("Codepage 437", "cp437", "Café déjà vu."),
        ("UTF-16", "utf-16", "Plain words of a book, and “quotes”."),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_gutenberg_text_is_read_in_the_encoding_that_it_declares(declared, encoding, body, line_end):
    raw = BOOK.format(declared, body).replace("\n", line_end).encode(encoding)
    assert gutenberg_document("book.txt", raw).text == body


@pytest.mark.parametrize(
    ("declared", "encoding", "message"),
    [
        ("UTF-8", "latin-1", "book.txt is not in UTF-8, as it says"),
        ("unknown", "latin-1", "book.txt is not UTF-8, and names no other encoding; convert it"),
        ("rot13", "latin-1", "names no other encoding"),
    ],
)
def test_gutenberg_text_in_an_unknown_encoding_is_refused(declared, encoding, message):
    with pytest.raises(ValueError, match=message):
        gutenberg_document("book.txt", BOOK.format(declared, "Café.").encode(encoding))


@pytest.mark.parametrize("character", ["\0", "\x1b", "\x7f", "\x85", "\x93"])
@pytest.mark.parametrize("kind", ["text", "gutenberg"])
def test_control_characters_are_refused_in_every_format(tmp_path, kind, character):
    file = tmp_path / "book.txt"
    file.write_text(f"Some words{character} more.", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"control character U\+{ord(character):04X} after 'Some words'"):
        extract_documents({"kind": "path", "format": kind}, file)
    file.write_text("Tabs\tare fine,\nand line\r\nends, and\fpages.", encoding="utf-8")
    assert len(extract_documents({"kind": "path", "format": kind}, file)) == 1
