"""A conversation at a terminal, or through pipes: what is typed, what is shown, and what Ctrl-C does."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.cells import cell_len, chop_cells
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from typer import BadParameter

from streamlm import limits
from streamlm.characters import without_steering
from streamlm.commands.output_types import CONVERSATION
from streamlm.commands.outputs import Output, Outputs
from streamlm.commands.terminal import say
from streamlm.commands.watch_text import OLD_TOKENS, paragraphs
from streamlm.generate.chat import Conversation
from streamlm.generate.sampling import Sampling
from streamlm.records.files import write_json, write_text

HELP = """/reset       forget everything that was said
/save FILE   write the conversation: as JSON messages if FILE ends in .json, else as text;
             /save --force FILE replaces a file without asking
/watch       what is a sink, in the window or forgotten, and where the last token's attention goes
/help        this
/exit        leave; so do Ctrl-D, and Ctrl-C pressed twice
Ctrl-C stops an answer."""

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


@contextmanager
def caught_interrupt() -> Iterator[Callable[[], bool]]:
    """Yield whether Ctrl-C was pressed: raised in the middle of a pass it would leave layers that differ.

    Pressed again before the block ends, it is raised.
    """
    pressed = False

    def handle(*_: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def describe_sampling(sampling: Sampling) -> str:
    """Return how the tokens of answers are chosen, in words."""
    parts = [f"temperature {sampling.temperature:g}", f"top-p {sampling.top_p:g}"]
    parts = ["likeliest tokens"] if sampling.temperature == 0 else parts
    if sampling.top_k and sampling.temperature:
        parts.append(f"top-k {sampling.top_k}")
    if sampling.repetition_penalty != 1:
        parts.append(f"repetition penalty {sampling.repetition_penalty:g}")
    return ", ".join(parts)


def run_session(conversation: Conversation, title: str, model_dir: Path) -> None:
    """Take turns until the user leaves; nothing is saved in the model's folder."""
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    screen = TerminalScreen() if is_terminal else PlainScreen()
    size = conversation.cache.cfg
    screen.note(
        f"{title}, {size.n_sink} sinks + a window of {size.window_size} tokens; "
        f"{describe_sampling(conversation.sampling)}; /help lists the commands"
    )
    if conversation.template.forgets_thoughts:
        screen.note("this chat template leaves out earlier thoughts; here they stay as they were written")
    warned = False
    while True:
        try:
            line = screen.ask()
        except EOFError:
            return
        except KeyboardInterrupt:
            if warned:
                return
            warned = True
            screen.note("\nCtrl-C again leaves, and so does Ctrl-D")
            continue
        except UnicodeError:
            screen.note("this line is not UTF-8 and was not read; type it again")
            continue
        warned = False
        if line.startswith("/"):
            if line.split()[0] in ("/exit", "/quit"):
                return
            run_command(conversation, line, screen, model_dir)
        elif line.strip():
            try:
                answer(conversation, line, screen)
            except ValueError as error:
                screen.note(f"not read: {error}")


def answer(conversation: Conversation, line: str, screen: PlainScreen | TerminalScreen) -> None:
    """Show the answer to a line, until it ends or Ctrl-C ends it."""
    begin, pieces = 0.0, 0
    with caught_interrupt() as pressed, screen.answering() as show:
        show("", "reading")
        for piece in conversation.ask(line, pressed):
            begin = begin or time.perf_counter()
            rate = pieces / max(time.perf_counter() - begin, 1e-9)  # the first piece ends the reading
            pieces += 1
            show(piece, status(conversation, rate))
        if pressed():
            show("", f"{status(conversation, None)} · stopped")


def status(conversation: Conversation, rate: float | None) -> str:
    """Return the size of the stream in a line."""
    cache = conversation.cache
    line = (
        f"{cache.get_seq_length():,} tokens seen · {cache.n_held:,} kept · "
        f"{cache.nbytes / 2**20:.1f} MiB of keys and values"
    )
    return line if rate is None else f"{line} · {rate:.1f} tokens/s"


def run_command(
    conversation: Conversation, line: str, screen: PlainScreen | TerminalScreen, model_dir: Path
) -> None:
    """Run a command: a line with a slash."""
    command, _, argument = line.partition(" ")
    argument = argument.strip()
    if command == "/reset":
        conversation.reset()
        screen.note("everything is forgotten")
    elif command == "/save" and argument:
        force, name = argument.startswith("--force "), argument.removeprefix("--force ").strip()
        outputs = Outputs(model_dir=model_dir, force=force, ask=screen.confirm, remedy="/save --force FILE")
        try:
            save(conversation, outputs.check(Path(name), CONVERSATION))
            screen.note(f"saved {name}")
        except (OSError, ValueError, BadParameter) as error:
            screen.note(f"not saved: {error}")
    elif command == "/watch":
        try:
            screen.draw(paragraphs(*conversation.watch(OLD_TOKENS), conversation.cache.cfg))
        except ValueError as error:
            screen.note(f"not shown: {error}")
    elif command == "/help":
        screen.note(HELP)
    else:
        known = "/save takes a file" if command == "/save" else f"there is no {command}"
        screen.note(f"{known}; /help lists the commands, a space in front says it to the model")


def save(conversation: Conversation, target: Output) -> None:
    """Write what was said, whole or not at all."""
    turns = (f"{message['role']}: {message['content']}\n" for message in conversation.messages)
    with target.whole() as path:
        if target.asked.suffix == ".json":
            write_json(path, conversation.messages)
        else:
            write_text(path, "\n".join(turns))
