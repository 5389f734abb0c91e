"""A conversation from its first line to its last: what commands do, and what Ctrl-C does."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer import BadParameter

from streamlm.commands.output_types import CONVERSATION, SESSION
from streamlm.commands.outputs import Output, Outputs, expanded
from streamlm.commands.screens import PlainScreen, Screen, TerminalScreen
from streamlm.commands.watch_text import OLD_TOKENS, paragraphs
from streamlm.generate.chat import Conversation
from streamlm.generate.sampling import Sampling
from streamlm.generate.saved_chat import load_conversation, save_conversation
from streamlm.records.files import write_json, write_text

SESSION_ENDING = ".safetensors"
HELP = f"""/reset       forget everything that was said
/save FILE   write the conversation: all of it, to go on with, if FILE ends in {SESSION_ENDING};
             what was said as JSON messages if it ends in .json, else as text;
             /save --force FILE replaces a file without asking
/load FILE   leave this conversation and go on with a saved one
/watch       what is a sink, in the window or forgotten, and where the last token's attention goes
/help        this
/exit        leave; so do Ctrl-D, and Ctrl-C pressed twice
Ctrl-C stops an answer."""


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


@dataclass
class Session:
    """A conversation, where it is shown, and where it is kept."""

    conversation: Conversation
    screen: Screen
    model_dir: Path  # nothing is saved in it
    file: Output | None = None  # written after every answer

    def run(self) -> None:
        """Take turns until the user leaves."""
        warned, screen = False, self.screen
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
                self.command(line)
            elif line.strip():
                try:
                    self.answer(line)
                except ValueError as error:
                    screen.note(f"not read: {error}")
                else:
                    self.keep()

    def answer(self, line: str) -> None:
        """Show the answer to a line, until it ends or Ctrl-C ends it."""
        begin, pieces = 0.0, 0
        with caught_interrupt() as pressed, self.screen.answering() as show:
            show("", "reading")
            for piece in self.conversation.ask(line, pressed):
                begin = begin or time.perf_counter()
                rate = pieces / max(time.perf_counter() - begin, 1e-9)  # the first piece ends the reading
                pieces += 1
                show(piece, status(self.conversation, rate))
            if pressed():
                show("", f"{status(self.conversation, None)} · stopped")

    def keep(self) -> None:
        """Write the conversation to its file, if it has one."""
        if self.file is not None:
            try:
                save(self.conversation, self.file)
            except (OSError, ValueError) as error:
                self.screen.note(f"not kept: {error}")

    def command(self, line: str) -> None:
        """Run a command: a line with a slash."""
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name == "/reset":
            self.conversation.reset()
            self.screen.note("everything is forgotten")
        elif name == "/save" and argument:
            self.save_as(argument)
        elif name == "/load" and argument:
            self.load(Path(argument))
        elif name == "/watch":
            try:
                watched = self.conversation.watch(OLD_TOKENS)
                self.screen.draw(paragraphs(*watched, self.conversation.cache.cfg))
            except ValueError as error:
                self.screen.note(f"not shown: {error}")
        elif name == "/help":
            self.screen.note(HELP)
        else:
            known = f"{name} takes a file" if name in ("/save", "/load") else f"there is no {name}"
            self.screen.note(f"{known}; /help lists the commands, a space in front says it to the model")

    def save_as(self, argument: str) -> None:
        """Write what the ending of a name says, if nothing else is lost by it."""
        force, name = argument.startswith("--force "), argument.removeprefix("--force ").strip()
        outputs = Outputs(
            model_dir=self.model_dir, force=force, ask=self.screen.confirm, remedy="/save --force FILE"
        )
        try:
            output_type = SESSION if name.endswith(SESSION_ENDING) else CONVERSATION
            save(self.conversation, outputs.check(Path(name), output_type))
            self.screen.note(f"saved {name}")
        except (OSError, ValueError, BadParameter) as error:
            self.screen.note(f"not saved: {error}")

    def load(self, path: Path) -> None:
        """Go on with the conversation in a file, and leave this one."""
        now = self.conversation
        try:
            self.conversation = load_conversation(
                expanded(path), now.model, now.template.tokenizer, now.max_new_tokens, now.model_sha256
            )
        except ValueError as error:
            self.screen.note(f"not loaded: {error}")
            return
        self.screen.note(describe_loaded(self.conversation))


def run_session(conversation: Conversation, title: str, model_dir: Path, file: Output | None = None) -> None:
    """Take turns until the user leaves.

    Args:
        conversation: at its beginning, or where it was left.
        title: of the model.
        model_dir: its folder, where nothing is saved.
        file: that the conversation is kept in.
    """
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    screen = TerminalScreen() if is_terminal else PlainScreen()
    size = conversation.cache.cfg
    screen.note(
        f"{title}, {size.n_sink} sinks + a window of {size.window_size} tokens; "
        f"{describe_sampling(conversation.sampling)}; /help lists the commands"
    )
    if conversation.fed:
        screen.note(describe_loaded(conversation))
    if conversation.template.forgets_thoughts:
        screen.note("this chat template leaves out earlier thoughts; here they stay as they were written")
    Session(conversation, screen, model_dir, file).run()


def describe_loaded(conversation: Conversation) -> str:
    """Return where a conversation goes on, in a line."""
    last = next((m["content"] for m in reversed(conversation.messages) if m["role"] == "user"), "")
    return f"the conversation goes on after {last!r:.60}; {status(conversation, None)}"


def status(conversation: Conversation, rate: float | None) -> str:
    """Return the size of the stream in a line."""
    cache = conversation.cache
    line = (
        f"{cache.get_seq_length():,} tokens seen · {cache.n_held:,} kept · "
        f"{cache.nbytes / 2**20:.1f} MiB of keys and values"
    )
    return line if rate is None else f"{line} · {rate:.1f} tokens/s"


def save(conversation: Conversation, target: Output) -> None:
    """Write a conversation, whole or not at all: all of it, or what was said."""
    turns = (f"{message['role']}: {message['content']}\n" for message in conversation.messages)
    with target.whole() as path:
        if target.output_type is SESSION:
            save_conversation(path, conversation)
        elif target.asked.suffix == ".json":
            write_json(path, conversation.messages)
        else:
            write_text(path, "\n".join(turns))
