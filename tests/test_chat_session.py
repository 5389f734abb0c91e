"""A session of the chat, at a terminal and through pipes: what is typed, what is shown, what Ctrl-C does."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_model import chat_tokenizer, write_tiny_model

from streamlm.commands.screens import split_rows
from streamlm.commands.session import caught_interrupt

ROOT = Path(__file__).parent.parent


def test_rows_are_broken_at_spaces_and_hold_every_character():
    assert split_rows("one two three", 7) == ["one two", "three"]
    assert split_rows("onetwothree", 4) == ["onet", "woth", "ree"]
    assert split_rows("日本語日本", 5) == ["日本", "語日", "本"]
    assert split_rows("a\n\nb ", 9) == ["a", "", "b "]
    assert split_rows("", 9) == [""]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Tiny models: one that chats, one that cannot end its answer, and one without a chat template."""
    path = tmp_path_factory.mktemp("chat")
    write_tiny_model(path / "model", chat_tokenizer())
    write_tiny_model(path / "plain")
    tokenizer = chat_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<never>"})  # it has no logit
    write_tiny_model(path / "endless", tokenizer, vocab_size=len(tokenizer) - 1)
    return path


ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "TERM": "xterm"}


def command(*args, model="model"):
    drawn = ("--temperature", "1", "--repetition-penalty", "1")
    chat = ("chat", "--model-name", model, "--window-size", "20", *drawn, *args)
    return [sys.executable, "-c", "from streamlm.cli import main; main()", *chat]


def through_pipes(place, lines, *args):
    return subprocess.run(
        command(*args), cwd=place, env=ENVIRONMENT, input=lines, capture_output=True, text=True
    )


def test_a_line_that_cannot_be_read_is_reported_and_the_conversation_goes_on(place):
    lines = "hello\n\u00e8\n".encode("latin-1") + b"unfinished \xe8\x83\nstill there?\r\n/save c.json\n"
    args = command("--max-new-tokens", "5")
    done = subprocess.run(args, cwd=place, env=ENVIRONMENT, input=lines, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(b"this line is not UTF-8 and was not read; type it again") == 2
    messages = json.loads((place / "c.json").read_text())
    assert [m["content"] for m in messages if m["role"] == "user"] == ["hello", "still there?"]


def test_token_beyond_the_vocabulary_is_reported_and_the_conversation_goes_on(place):
    tokenizer = chat_tokenizer()
    tokenizer.add_tokens(["beyond"])
    write_tiny_model(place / "short", tokenizer, vocab_size=len(tokenizer) - 1)
    args = command("--max-new-tokens", "5", model="short")
    lines = "beyond\nhello\n/save d.json\n"
    done = subprocess.run(args, cwd=place, env=ENVIRONMENT, input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("not read: token id") == 1
    messages = json.loads((place / "d.json").read_text())
    assert [m["content"] for m in messages if m["role"] == "user"] == ["hello"]


def test_session_through_pipes(place):
    lines = "Hi,,/save a.json,/reset,Hi,/save b.json,/save c.txt,/save,/save model,/what,/help,/exit,No,"
    lines = lines.replace(",", "\n")
    done = through_pipes(place, lines, "--max-new-tokens", "40", "--system", "Babble.")
    assert done.returncode == 0, done.stderr
    first, again = (json.loads((place / name).read_text()) for name in ("a.json", "b.json"))
    assert first == again
    assert [message["role"] for message in first] == ["system", "user", "assistant"]
    answer = first[-1]["content"]
    assert done.stdout == f"{answer}\n" * 2
    assert (place / "c.txt").read_text() == f"system: Babble.\n\nuser: Hi\n\nassistant: {answer}\n"
    statuses = re.findall(r"(\d+) tokens seen · (\d+) kept · [\d.]+ MiB of keys and values", done.stderr)
    assert len(statuses) == 2
    seen, kept = map(int, statuses[0])
    sinks = len("_system\nBabble._\n")  # where a delimiter is one token
    assert kept == sinks + 20 < seen
    for line in ("/save takes a file", "not saved: model is a folder", "there is no /what", "/exit"):
        assert line in done.stderr


def test_watched_conversation_is_shown_and_goes_on_as_before(place):
    args = ("--max-new-tokens", "30", "--system", "Babble [bold]x[/bold].")
    done = through_pipes(place, "/watch\nHi\n/watch\nAnd?\n/watch\n", *args)
    assert done.returncode == 0, done.stderr
    assert done.stdout == through_pipes(place, "Hi\nAnd?\n", *args).stdout
    assert "not shown: nothing was said yet" in done.stderr
    n_sinks = len("_system\nBabble [bold]x[/bold]._\n")  # where a delimiter is one token
    seen = re.findall(r"(\d+) tokens seen", done.stderr)
    shown = re.findall(
        r"forgotten, (\d+) tokens: .*?\nwindow, 20 tokens: .*?\ntoken (\d+): ", done.stderr, re.DOTALL
    )
    assert [(int(old) + n_sinks + 20 - 1, last) for old, last in shown] == [(int(n), n) for n in seen]
    sinks = f"sinks, {n_sinks} tokens: <|im_start|>system\nBabble [bold]x[/bold].<|im_end|>\n"
    assert done.stderr.count(sinks) == 2
    assert (
        len(
            re.findall(
                r"% of its attention on \d+ sinks, .*\nsinks +[\d.]+ % █*\nwindow +[\d.]+ % █*\n", done.stderr
            )
        )
        == 2
    )
    assert "\x1b" not in done.stderr


def test_missing_model_is_reported_with_the_command_that_makes_it(place):
    done = through_pipes(place, "", "--model-name", "data/models/smollm2-135m-instruct")
    assert done.returncode == 1
    assert "make it with `snakemake data/models/smollm2-135m-instruct`" in done.stderr
    done = through_pipes(place, "", "--model-name", "plain")
    assert done.returncode == 1
    assert "has no chat template" in done.stderr
    assert len(done.stderr.splitlines()) == 1


class Terminal:
    """A chat on a pseudo-terminal, whose Ctrl-C is that of a keyboard."""

    def __init__(self, place, model, *args):
        self.shown = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(place)
            os.execve(sys.executable, command(*args, model=model), ENVIRONMENT)

    def type(self, text):
        os.write(self.fd, text.encode())

    def interrupt_prompt(self):
        """Press Ctrl-C, not before readline waits: until then it notices a signal at the next key only."""
        time.sleep(1)
        self.type(CTRL_C)

    def wait(self, pattern, timeout=120):
        """Read until the pattern is shown; return what was shown up to its end."""
        until = time.monotonic() + timeout
        while not (found := re.search(pattern, self.shown, re.DOTALL)):
            assert time.monotonic() < until, f"never showed {pattern!r}: {self.shown[-500:]!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self.fd, 1 << 16).decode(errors="replace")
                except OSError:  # its end, on Linux
                    raise AssertionError(f"ended before {pattern!r}: {self.shown[-500:]!r}") from None
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before

    def status(self, timeout=60):
        """Return the exit status."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    os.read(self.fd, 1 << 16)
                except OSError:
                    break
        pid, status = os.waitpid(self.pid, os.WNOHANG if time.monotonic() >= until else 0)
        assert pid, "it did not end"
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def close(self):
        os.close(self.fd)
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


@pytest.fixture
def terminal(place):
    """A chat whose answers take hours."""
    made = Terminal(place, "endless", "--max-new-tokens", "100000000")
    yield made
    made.close()


CTRL_C, CTRL_D, PROMPT = "\x03", "\x04", r"> $"


def test_interrupt_stops_the_answer_and_twice_at_the_prompt_leaves(terminal):
    terminal.wait(PROMPT)
    for _ in range(2):  # the chat continues after a stopped answer
        terminal.type("Hi\n")
        terminal.wait(r"[1-9]\d* tokens seen")
        terminal.type(CTRL_C)
        terminal.wait(r"stopped.*> $")
    terminal.interrupt_prompt()
    terminal.wait(r"Ctrl-C again leaves.*> $")
    terminal.type("/help\n")  # which takes the first one back
    terminal.wait(r"/reset.*> $")
    terminal.interrupt_prompt()
    terminal.wait(r"Ctrl-C again leaves.*> $")
    terminal.interrupt_prompt()
    assert terminal.status() == 0


def test_watched_conversation_has_its_looks_at_a_terminal(terminal):
    terminal.wait(PROMPT)
    terminal.type("Hi\n")
    terminal.wait(r"[2-9]\d tokens seen")
    terminal.type(CTRL_C)
    terminal.wait(r"stopped.*> $")
    terminal.type("/watch\n")
    shown = terminal.wait(r"window +[\d.]+ %.*> $")
    shown = re.sub(r"\x1b\[0m\x1b\[(1;7|2;9)m", "", shown)  # between two tokens of one look
    assert "\x1b[1;7m<|im_start|>system" in shown  # bold, reverse
    assert re.search(r"forgotten, \d+ tokens: (\.\.\.)?\x1b\[2;9m", shown)  # dim, struck through


def test_end_of_input_leaves(terminal):
    terminal.wait(PROMPT)
    terminal.type(CTRL_D)
    assert terminal.status() == 0


def test_interrupt_is_raised_when_pressed_again_before_the_answer_ends():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), caught_interrupt() as pressed:
        assert not pressed()
        signal.raise_signal(signal.SIGINT)
        assert pressed()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
