"""A terminal is steered by no text of a stranger: of a model, a prompt, a title, a name; pipes get it raw."""

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
import warnings
from contextlib import chdir, redirect_stderr, redirect_stdout
from unittest.mock import patch

import numpy as np
import pytest
import torch
from command import ENVIRONMENT, command, streamlm
from conftest import tiny_llama
from project import ROOT
from rich.console import Console
from tiny_model import byte_tokenizer, chat_tokenizer, write_tiny_model

from streamlm.characters import find_steering
from streamlm.cli import main
from streamlm.commands.terminal import say, show_on_terminal

SAYS = "A\x1b]0;pwn\x07\x9b31mRED\rx\u202eyz\x08Q"  # each byte once: a table of followers says it
ESCAPED = r"\x1b]0;pwn\x07\x9b31mRED\rx\u202eyz\x08Q"
HOSTILE = "n\x1b[31m\x9b2J\rover\u202e\x08\u2028"  # as a name
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A{{ m.content }};{% else %}"
    "[{{ m.role }}]{{ m.content }};{% endif %}{% endfor %}{% if add_generation_prompt %}A{% endif %}"
)


class Screen(io.StringIO):
    """What a terminal is sent."""

    def isatty(self):
        return True


def on_screen(place, *args):
    """Return what a command in this process sends to a terminal, as the terminal gets it."""
    screen = Screen()
    with (
        chdir(place), redirect_stdout(screen), redirect_stderr(screen),
        patch.object(sys, "__stderr__", io.StringIO()),
        patch.object(sys, "argv", ["streamlm", *map(str, args)]),
        patch.object(warnings, "formatwarning", warnings.formatwarning), warnings.catch_warnings(),
        pytest.raises(SystemExit) as ended,
    ):  # fmt: skip
        warnings.simplefilter("always")
        main()
    return ended.value.code or 0, screen.getvalue()


@pytest.fixture(scope="module")
def parrot(tmp_path_factory):
    """A model that says `SAYS`."""
    folder = tmp_path_factory.mktemp("parrot") / "parrot"
    tokenizer = chat_tokenizer(TEMPLATE)
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [b for b in range(256) if b not in plain]
    symbols = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(other)}
    ids = [tokenizer.convert_tokens_to_ids(symbols[b]) for b in SAYS.encode()]
    model = tiny_llama(
        vocab_size=len(tokenizer), hidden_size=128, head_dim=32, eos_token_id=tokenizer.eos_token_id
    )
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        rows = torch.nn.functional.normalize(torch.randn(len(tokenizer), 128), dim=-1)
        model.model.embed_tokens.weight.copy_(rows)
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(len(tokenizer), 128))
        model.config.tie_word_embeddings = False
        for this, following in zip(ids, [*ids[1:], ids[-1]], strict=True):
            model.lm_head.weight[following] += 5 * rows[this]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


GENERATE = ("--prompt", "A", "--max-new-tokens", 28)


def test_generated_text_is_escaped_on_a_terminal_and_raw_in_a_pipe_and_a_file(parrot, tmp_path):
    args = ("generate", "--model-name", parrot, *GENERATE)
    status, shown = on_screen(tmp_path, *args)
    assert status == 0, shown
    assert shown.startswith(ESCAPED)
    assert find_steering(shown) is None
    piped = streamlm(tmp_path, *args)
    assert piped.stdout.startswith(SAYS[1:])
    streamlm(tmp_path, *args, "--output", "raw.txt")
    assert (tmp_path / "raw.txt").read_bytes() == piped.stdout.encode()


def test_json_and_several_prompts_are_escaped_on_a_terminal(parrot, tmp_path):
    status, shown = on_screen(tmp_path, "generate", "--model-name", parrot, *GENERATE, "--json")
    assert (status, find_steering(shown)) == (0, None)
    assert r"\x9b31mRED" in shown
    (tmp_path / "p.txt").write_bytes(f"{HOSTILE}\r\nA\r\n".encode())
    status, shown = on_screen(
        tmp_path, "generate", "--model-name", parrot, "--prompts", "p.txt", *GENERATE[2:]
    )
    assert (status, find_steering(shown)) == (0, None)
    assert r"==> n\x1b[31m\x9b2J\rover\u202e\x08\u2028 <==" in shown


def test_output_that_is_a_terminal_is_escaped(parrot, tmp_path):
    leader, follower = pty.openpty()
    args = ("generate", "--model-name", parrot, *GENERATE, "--output", os.ttyname(follower))
    assert streamlm(tmp_path, *args).returncode == 0
    assert os.read(leader, 4096).decode().startswith(ESCAPED)
    os.close(leader)
    os.close(follower)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder where everything has a name that steers."""
    path = tmp_path_factory.mktemp("names")
    write_tiny_model(path / HOSTILE, chat_tokenizer())
    config = path / HOSTILE / "config.json"
    titled = json.loads(config.read_text()) | {"streamlm_title": HOSTILE, "model_type": "llama"}
    config.write_text(json.dumps(titled))
    (path / f"{HOSTILE}.txt").write_text("hello world " * 60)
    np.save(path / f"{HOSTILE}.npy", np.arange(100))
    (path / f"{HOSTILE}.json").write_text("{}")
    return path


TEXT, IDS, MODEL = ("--text", f"{HOSTILE}.txt"), ("--tokens", f"{HOSTILE}.npy"), ("--model-name", HOSTILE)


@pytest.mark.parametrize(
    "args",
    [
        ("evaluate", *MODEL, *TEXT, "--window-size", 500, "--output", f"{HOSTILE}2.json"),
        ("evaluate", *MODEL, *IDS, "--window-size", 20, "--json"),
        ("ablate", *MODEL, *IDS, "--ablation-type", "window_size", "--window-size", 8),
        ("latency", *MODEL, *IDS, "--capacity", 16, "--runs", 2, "--method", "dense", "--json"),
        ("info", *MODEL),
        ("info", *MODEL, "--json"),
    ],
    ids=lambda args: f"{args[0]} {args[-1]}",
)
def test_names_and_titles_are_escaped_on_a_terminal(place, args):
    status, shown = on_screen(place, *args)
    assert status == (args[0] != "info"), shown  # no record gets such a name
    assert find_steering(shown) is None
    assert r"\x9b" in shown


@pytest.mark.parametrize(
    "args",
    [
        ("evaluate", "--model-name", HOSTILE + "x", *TEXT),
        ("evaluate", *MODEL, "--text", HOSTILE),
        ("evaluate", *MODEL, *TEXT, "--output", HOSTILE),
        ("evaluate", *MODEL, *TEXT, "--output", f"{HOSTILE}.txt"),
        ("evaluate", *MODEL, *TEXT, "--output", f"{HOSTILE}.json"),
        ("evaluate", *MODEL, *TEXT, "--baseline", f"{HOSTILE}.json"),
        ("evaluate", *MODEL, *TEXT, "--window-size", HOSTILE),
        ("evaluate", *MODEL, *TEXT, f"--{HOSTILE}"),
        ("evaluate", *MODEL, *TEXT, HOSTILE),
        ("evaluate", *MODEL, *TEXT, "--method", HOSTILE),
        ("evaluate", *MODEL, *TEXT, "--dtype", HOSTILE),
        ("evaluate", *MODEL, *TEXT, "--device", HOSTILE),
        ("evaluate", *MODEL, "--dataset-name", HOSTILE),
        ("compare", *MODEL, *IDS, "--press", HOSTILE),
        ("figures", "--only", HOSTILE),
        ("figures", "--results-dir", HOSTILE),
        ("verify", HOSTILE, *MODEL),
        ("init", HOSTILE),
        (HOSTILE,),
        ("generate", *MODEL, "--prompts", HOSTILE),
        ("generate", *MODEL, "--prompt", "a", "--top-k", HOSTILE),
    ],
    ids=lambda args: " ".join(args[:1] + args[-2:-1]).encode("ascii", "backslashreplace").decode(),
)
def test_refusals_are_escaped_on_a_terminal_and_in_a_log(place, args):
    status, shown = on_screen(place, *args)
    assert status in (1, 2)
    assert find_steering(shown) is None, shown
    fault = streamlm(place, *args).stderr.rstrip("\n").split("\n")[-1]
    assert fault.startswith("streamlm: ")
    assert find_steering(fault) is None


def test_names_that_are_no_utf8_are_shown(tmp_path):
    status, shown = on_screen(tmp_path, "init", "x\udcff/y")
    assert status in (0, 1)
    assert find_steering(shown) is None


def test_what_libraries_print_and_tracebacks_are_escaped():
    screen = Screen()
    with redirect_stdout(screen), redirect_stderr(screen):
        show_on_terminal()
        say(HOSTILE)
        say(HOSTILE, err=True)
        sys.stderr.writelines([HOSTILE])
        print(HOSTILE, file=sys.stderr)
        try:
            raise RuntimeError(HOSTILE)
        except RuntimeError:
            sys.__excepthook__(*sys.exc_info())
    shown = screen.getvalue()
    assert find_steering(shown) is None
    assert shown.count(r"\x9b2J") == 5


def test_warning_is_one_line_without_what_steers(tmp_path):
    with patch.object(warnings, "formatwarning", warnings.formatwarning):
        with patch.object(sys, "argv", ["streamlm", "figures", "--only", "x"]), pytest.raises(SystemExit):
            main()
        line = warnings.formatwarning(HOSTILE, UserWarning, "x.py", 1)
    assert line == "streamlm: n\\x1b[31m\\x9b2J\\rover\\u202e\\x08\\u2028\n"


def test_colours_of_our_own_and_text_of_any_script_stay(tmp_path):
    screen = Screen()
    with redirect_stdout(screen), patch.dict(os.environ, TERM="xterm", COLORTERM="", clear=False):
        show_on_terminal()
        Console(force_terminal=True).print("[bold]ours[/bold]")
        say("日本 שלום 👩\u200d🚀\tnaïve")
    assert screen.getvalue() == "\x1b[1mours\x1b[0m\n日本 שלום 👩\u200d🚀\tnaïve\n"
    _, shown = on_screen(tmp_path, "--help")
    assert "\\x1b" not in shown
    assert "\x1b[1m" in shown


def test_pipe_gets_every_character():
    out = io.StringIO()
    with redirect_stdout(out):
        show_on_terminal()
        say(HOSTILE)
    assert out.getvalue() == HOSTILE + "\n"


def test_no_command_prints_by_another_way():
    for path in [*(ROOT / "streamlm/commands").glob("*.py"), ROOT / "streamlm/cli.py"]:
        if path.name == "terminal.py":
            continue
        found = re.findall(
            r"typer\.s?echo|secho|\bprint\(|rich\.print|__stdout__|__stderr__|stdout\.buffer|stderr\.buffer|os\.write",
            path.read_text(),
        )
        assert [each for each in found if path.name != "screens.py" or each != "print("] == [], path
    # Of rich, which is past the filter, there are two users, and they escape what it is given.
    text = (ROOT / "streamlm/commands/screens.py").read_text()
    assert re.findall(r"(?<!\.)\bprint\(", text) == []
    assert text.count("console.print(") == 3
    assert text.count("without_steering(") == 3
    users = [path for path in (ROOT / "streamlm").rglob("*.py") if "Live(" in path.read_text()]
    assert sorted(path.name for path in users) == ["screens.py", "watch.py"]
    for path in users:
        assert path.read_text().count("redirect_stdout=False, redirect_stderr=False") == 1


def at_terminal(args, typed, piped):
    """Return what a command sends to a terminal; `typed` comes through a pipe, or from the keyboard."""
    pid, fd = pty.fork()
    if pid == 0:
        if piped:
            reader, writer = os.pipe()
            os.write(writer, typed)
            os.close(writer)
            os.dup2(reader, 0)
        os.execve(sys.executable, command(*args), ENVIRONMENT | {"TERM": "xterm"})
    out, until = b"", time.monotonic() + 60
    while time.monotonic() < until:
        if select.select([fd], [], [], 0.1)[0]:
            try:
                out += os.read(fd, 65536)
            except OSError:
                break
        if not piped and b"/help" in out:
            os.write(fd, typed)
            piped = True
    os.close(fd)
    os.waitpid(pid, 0)
    return out.decode()


@pytest.mark.parametrize("piped", [True, False])
def test_chat_is_not_steered_by_what_the_model_says(parrot, piped):
    args = ("chat", "--model-name", parrot, "--max-new-tokens", 28, "--temperature", 0)
    shown = at_terminal(args, b"hi\r\n" if piped else b"hi\n/exit\n", piped)
    assert ESCAPED in shown
    ours = re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "", shown)  # colours, cursor moves, line ends
    assert find_steering(ours) is None, ours
    assert "D\rx" not in shown
    if piped:
        assert "\x1b" not in shown
    else:
        assert "\x1b[2m" in shown  # the status line is dim


@pytest.mark.parametrize("piped", [True, False])
def test_watched_conversation_does_not_steer(parrot, piped):
    args = ("chat", "--model-name", parrot, "--max-new-tokens", 28, "--temperature", 0)
    shown = at_terminal(args, b"hi\n/watch\n" if piped else b"hi\n/watch\n/exit\n", piped)
    assert shown.count(ESCAPED[: ESCAPED.index("x")]) >= 1
    ours = re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "", shown)
    assert "window, " in ours
    assert r"yz\x08" in ours[ours.index("window, ") :]
    assert find_steering(ours) is None, ours


def test_watched_text_does_not_steer(tmp_path):
    write_tiny_model(tmp_path / "model")
    ids = byte_tokenizer()(f"[bold]{SAYS}[/bold] {HOSTILE} " * 3)["input_ids"]
    np.save(tmp_path / "i.npy", np.array(ids))
    args = ("watch", "--model-name", tmp_path / "model", "--tokens", tmp_path / "i.npy", "--delay", 0)
    shown = at_terminal((*args, "--window-size", 30, "--max-eval-tokens", 80), b"", True)
    last = shown[shown.rindex("[bold]") :]
    ours = re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "", shown)
    assert find_steering(ours) is None, ours
    assert r"\x9b31mRED\rx\u202eyz\x08Q[/bold]" in re.sub(r"\x1b\[[\d;]*m|\r|\n", "", last)
    assert {"1;7m", "2;9m"} <= set(re.findall(r"\x1b\[([\d;]*m)", shown))
    assert "window" in ours
    piped = streamlm(tmp_path, *args)
    assert piped.returncode == 0, piped.stderr
    assert find_steering(piped.stdout) is None


def test_chat_through_pipes_is_byte_exact(parrot):
    args = command("chat", "--model-name", parrot, "--max-new-tokens", 28, "--temperature", 0)
    done = subprocess.run(args, env=ENVIRONMENT, input=b"hi\n", capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().startswith(SAYS[1:])


def test_bar_of_a_hub_draws_at_the_terminal_and_is_named_by_the_library():
    code = (
        "from streamlm.commands.terminal import show_on_terminal; show_on_terminal()\n"
        "from streamlm.sources.hub import _Bar\n"
        "bar = _Bar(total=2, desc='Fetching'); bar.update(2); bar.close()"
    )
    pid, fd = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-c", code], ENVIRONMENT)
    out = b""
    while True:
        try:
            out += os.read(fd, 65536)
        except OSError:
            break
    os.close(fd)
    os.waitpid(pid, 0)
    assert b"\rFetching: 100%" in out
    assert b"\\r" not in out
