"""The command among others in a shell: help, completion, interruption, readers that go away."""

import os
import platform
import re
import signal
import subprocess
import sys

import pytest
import torch
import transformers
import typer
from command import ENVIRONMENT, command, only_line, streamlm
from project import ROOT
from tiny_model import write_tiny_model

from streamlm import __version__
from streamlm.cli import app
from streamlm.config import METHODS


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model."""
    path = tmp_path_factory.mktemp("shell")
    write_tiny_model(path / "model")
    return path


@pytest.fixture
def endless(place):
    """A process that writes for hours, and has begun to."""
    args = ("--model-name", "model", "--prompt", "a", "--max-new-tokens", 10**8, "--ignore-eos")
    with subprocess.Popen(
        command("generate", *args), cwd=place, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.read(1)
        yield process
        process.kill()


def test_interrupt_ends_with_status_130(endless):
    endless.send_signal(signal.SIGINT)
    assert b"Traceback" not in endless.communicate()[1]
    assert endless.returncode == 130


def test_reader_that_goes_away_ends_it_quietly(endless):
    endless.stdout.close()
    assert b"Traceback" not in endless.stderr.read()
    assert endless.wait() == 1


COMMANDS = (
    "evaluate",
    "ablate",
    "compare",
    "latency",
    "generate",
    "chat",
    "info",
    "watch",
    "figures",
    "verify",
    "version",
    "init",
)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example(name):
    done = streamlm(ROOT, name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Example: streamlm {name}" in " ".join(done.stdout.split())


def test_help_is_in_groups_and_explains_the_exit_status():
    done = streamlm(ROOT, "--help")
    for group in ("Measure", "Write", "Inspect", "Set up"):
        assert f"─ {group} ─" in done.stdout
    assert "Exit status: 0 done; 1 a fault at work" in done.stdout
    bare = streamlm(ROOT)
    assert (bare.returncode, bare.stderr) == (2, "")
    assert bare.stdout.split() == done.stdout.split()
    assert re.findall(r"│ (\w+)  ", done.stdout) == list(COMMANDS)


def test_commands_load_no_library_before_they_need_it():
    code = (
        "import sys, streamlm.cli; print(sorted({'torch', 'numpy', 'matplotlib', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_version_prints_what_is_installed_and_the_device():
    lines = dict(line.split(maxsplit=1) for line in streamlm(ROOT, "version").stdout.splitlines())
    assert lines["streamlm"] == __version__
    assert (lines["torch"], lines["transformers"]) == (torch.__version__, transformers.__version__)
    assert lines["Python"] == platform.python_version()
    assert lines["device"].split()[0] in ("cpu", "cuda")
    assert lines["processor"].endswith(f"{os.cpu_count()} cores")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_at_80_columns_breaks_no_word_and_cuts_nothing(name):
    """What does not fit, rich cuts with an ellipsis or in the middle of a word."""
    text = streamlm(ROOT, name, "--help").stdout
    wide = run_wide(name)
    assert "\u2026" not in text
    words = set(re.findall(r"[\w/.|<>-]+", " ".join(re.findall(r"[^\u2500-\u257f]+", wide))))
    for line in text.splitlines():
        for word in re.findall(r"[\w/.|<>-]+", line):
            assert word in words, f"{word!r} is broken in {line!r}"


def run_wide(name):
    """The same help on a terminal that is wide enough for everything."""
    done = subprocess.run(
        command(name, "--help"),
        env=ENVIRONMENT | {"COLUMNS": "400"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.stdout


FRAGMENT = re.compile(r"^(Of|In|Not|Where|With|For|By|To)\b")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_an_option_is_no_fragment(name):
    (command_of,) = [each for each in app.registered_commands if each.callback.__name__ == name]
    for option in command_of.callback.__signature__.parameters.values():
        if option.annotation is typer.Context:
            continue
        help_text = option.annotation.__metadata__[-1].help
        assert help_text.endswith("."), help_text
        assert not FRAGMENT.match(help_text), help_text


@pytest.mark.parametrize("name", ["evaluate", "latency"])
def test_methods_that_can_be_named_are_those_there_are(name):
    assert complete(f"streamlm {name} --method ") == list(METHODS)
    refused = streamlm(ROOT, name, "--method", "steaming")
    assert only_line(refused, status=2).endswith(f"is not one of {', '.join(map(repr, METHODS))}.")


def complete(typed):
    """Return what bash is offered for a line that was typed so far."""
    at = len(typed.split()) - (not typed.endswith(" "))
    asked = {"_STREAMLM_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(at)}
    done = subprocess.run(command(), env=ENVIRONMENT | asked, capture_output=True, text=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("streamlm ev", "evaluate"),
        ("streamlm ablate --abl", "--ablation-type"),
        ("streamlm evaluate --method st", "streaming"),
        ("streamlm latency --method st", "streaming"),
        ("streamlm evaluate --kv", "--kv-dtype"),
        ("streamlm evaluate --dataset-name wi", "wikitext"),
        ("streamlm compare --press Kn", "KnormPress"),
        ("streamlm figures --only long", "long_stream"),
    ],
)
def test_bash_completes(typed, offered):
    assert complete(typed) == [offered]


def test_completion_script_for_bash_is_taken_by_bash(tmp_path):
    asked = {"_STREAMLM_COMPLETE": "source_bash"}  # --show-completion asks which shell it was called from
    done = subprocess.run(command(), env=ENVIRONMENT | asked, capture_output=True, text=True)
    check = subprocess.run(
        ["bash", "-c", done.stdout + "complete -p streamlm"], capture_output=True, text=True
    )
    assert (check.returncode, check.stderr) == (0, "")
    assert "streamlm" in check.stdout
