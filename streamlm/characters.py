"""Characters that steer a terminal, break a line or reverse the direction of text."""

import re

# C0 without tab and line feed, DEL, C1; line and paragraph separators; embeddings, overrides and isolates of
# the bidirectional algorithm (Unicode Annex 9); lone surrogates, which no encoding writes.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def find_steering(text: str) -> str | None:
    """Return the first character of `text` that steers, as its escape; None if there is none.

    Tab and line feed do not count, nor do the marks and joiners that scripts are written with.
    """
    match = _STEERING.search(text)
    return match and _escaped(match)


def without_steering(text: str) -> str:
    """Return `text` with every character that steers as the escape that names it, such as ``\\x1b``."""
    return _STEERING.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
