"""Where a conversation is typed and shown: at a terminal, or through pipes."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.cells import cell_len, chop_cells
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from streamlm import limits
from streamlm.characters import without_steering
from streamlm.commands.terminal import say

Show = Callable[[str, str], None]  # takes a piece of an answer, and the status line


class PlainScreen:
    """Lines through pipes: answers on stdout, everything else on stderr."""

    def ask(self) -> str:
        """Return the next line; EOFError after the last, UnicodeError if not UTF-8, ValueError if endless."""
        line = sys.stdin.buffer.readline(limits.LINE_BYTES + 1)
        if len(line) > limits.LINE_BYTES:
            raise ValueError(
                f"a line of the chat has more than {limits.LINE_BYTES:,} bytes; use shorter ones"
            )
        if not line:
            raise EOFError
        return line.decode().removesuffix("\n").removesuffix("\r")

    def note(self, text: str) -> None:
        """Show something that is not an answer."""
        say(text, err=True)

    def draw(self, text: Text) -> None:
        """Show a text whose steering characters are escaped."""
        self.note(text.plain)

    def confirm(self, question: str) -> bool:
        """Return no: there is nobody to ask."""
        return False

    @contextmanager
    def answering(self) -> Iterator[Show]:
        """Show an answer as it comes, and its last status when it has ended."""
        last = ""

        def show(piece: str, status: str) -> None:
            nonlocal last
            sys.stdout.write(piece)
            sys.stdout.flush()
            last = status

        try:
            yield show
        finally:
            say("")
            self.note(last)


class TerminalScreen:
    """A prompt with history, and answers with a status line below them."""

    def __init__(self) -> None:
        import readline  # noqa: F401  # gives input() its editing and its history

        self.console = Console(highlight=False)

    def ask(self) -> str:
        """Return what is typed; EOFError for Ctrl-D, UnicodeError if it is not UTF-8."""
        line = input("> ")
        line.encode()  # Python keeps bytes that it cannot decode as lone surrogates
        return line

    def note(self, text: str) -> None:
        """Show something that is not an answer."""
        self.console.print(Text(without_steering(text), style="dim"))

    def draw(self, text: Text) -> None:
        """Show a text whose steering characters are escaped, in its styles."""
        self.console.print(text)

    def confirm(self, question: str) -> bool:
        """Return whether yes is typed."""
        try:
            return input(f"{without_steering(question)} [y/N] ").strip().lower() in ("y", "yes")
        except (EOFError, KeyboardInterrupt):
            return False

    @contextmanager
    def answering(self) -> Iterator[Show]:
        """Show an answer as it comes; only its last row is drawn again, so it may be of any length."""
        row = ""
        # What others print meanwhile must not go through rich, past the filter of sys.stdout.
        with Live(
            console=self.console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        ) as live:

            def show(piece: str, status: str) -> None:
                nonlocal row
                row += without_steering(piece)
                *whole, row = split_rows(row, self.console.width)
                for line in whole:
                    live.console.print(Text(line))
                live.update(Group(Text(row), Text(status, style="dim")), refresh=True)

            yield show


def split_rows(text: str, width: int) -> list[str]:
    """Return the rows of a text on a terminal of this width, broken at spaces where there are any."""
    rows = []
    for line in text.split("\n"):
        while cell_len(line) > width:
            fits = len(chop_cells(line, width)[0])
            space = line.rfind(" ", 0, fits + 1)
            cut = space if space > 0 else fits
            rows.append(line[:cut])
            line = line[cut:].removeprefix(" ")
        rows.append(line)
    return rows


Screen = PlainScreen | TerminalScreen
