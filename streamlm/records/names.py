"""What the name of a model or a text may be, wherever it comes from."""

from typing import Any

from streamlm.characters import find_steering, without_steering
from streamlm.limits import TITLE_LETTERS


def check_name(name: Any, what: str) -> str:
    """Return a name; raise ValueError unless it is one short line of characters that steer nothing.

    Args:
        name: whatever was read as one.
        what: it is the name of, in the message.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{what} has no name, but {name!r:.40}; give it one in letters")
    steering = find_steering(name) or next((repr(letter)[1:-1] for letter in name if letter in "\t\n"), None)
    if steering:
        shown = without_steering(name)[:TITLE_LETTERS]
        raise ValueError(f"the name of {what}, {shown!r}, has the character {steering}; take it out")
    if len(name) > TITLE_LETTERS:
        raise ValueError(
            f"the name of {what}, {name[:40]!r}…, has more than {TITLE_LETTERS} characters; shorten it"
        )
    return name
