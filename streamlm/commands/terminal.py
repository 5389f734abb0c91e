"""What is shown: a terminal gets characters that would steer it as their escapes, a pipe as they are."""

import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

from streamlm.characters import without_steering


class Shown:
    """A terminal's stream that shows a text and obeys none: everything printed goes through it.

    What the escapes of our own colours and cursor moves go through is the stream itself: rich finds it by the
    name `rich_proxied_file`, and the bars of tqdm are given it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        """Write a text, escaped."""
        return self.rich_proxied_file.write(without_steering(text))

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts, escaped."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def shown(stream: TextIO) -> TextIO:
    """Return a stream that escapes what would steer a terminal if it is one; else the stream."""
    return cast(TextIO, Shown(stream)) if stream is not None and stream.isatty() else stream


def show_on_terminal() -> None:
    """Put `shown` before everything that this process prints, libraries, warnings and tracebacks too."""
    sys.stdout, sys.stderr = shown(sys.stdout), shown(sys.stderr)


def say(text: object, *, err: bool = False) -> None:
    """Print a line at once: a reader that went away is noticed here."""
    print(text, file=sys.stderr if err else sys.stdout, flush=True)


def ask_on_terminal(question: str) -> bool:
    """Return whether the user says yes; False where there is no terminal to ask at."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
