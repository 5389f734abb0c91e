"""Characters that steer a terminal, break a line or turn text around."""

import unicodedata

import pytest

from streamlm.characters import find_steering, without_steering

STEERING = [
    "\x1b[31m",
    "\x9b31m",
    "\r",
    "\x08",
    "\x7f",
    "\x00",
    "\x85",
    "\x0c",
    "\u2028",
    "\u2029",
    "\u202e",
    "\u2067",
    "\udc80",
]


@pytest.mark.parametrize("text", STEERING)
def test_character_that_steers_is_shown_as_its_escape(text):
    escape = text[0].encode("unicode_escape").decode()
    assert find_steering("a" + text) == escape
    assert without_steering("a" + text) == "a" + escape + text[1:]


@pytest.mark.parametrize(
    "text", ["", "two\nlines\tand a tab", "שלום\u200f عالم\u200c", "👩\u200d🚀", "naïve → ∞", "\\x1b"]
)
def test_text_of_any_script_stays_as_it_is(text):
    assert find_steering(text) is None
    assert without_steering(text) == text


def test_every_control_and_separator_of_unicode_steers_but_for_tab_and_line_feed():
    kinds = {"Cc", "Zl", "Zp", "Cs"}
    controls = {chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) in kinds} - {
        "\t",
        "\n",
    }
    isolates = {
        chr(code) for code in range(0x110000) if unicodedata.bidirectional(chr(code)) in BIDIRECTIONAL
    }
    assert {chr(code) for code in range(0x110000) if find_steering(chr(code))} == controls | isolates


BIDIRECTIONAL = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
