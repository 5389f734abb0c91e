"""The command among others in a shell: help, completion, interruption, readers that go away."""

import re
import signal
import subprocess
import sys

import pytest
from command import ENVIRONMENT, command, only_line, streamlm
from project import ROOT
from tiny_model import write_tiny_model

from streamlm import __version__
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


def test_version_is_printed():
    assert streamlm(ROOT, "version").stdout == f"{__version__}\n"


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
