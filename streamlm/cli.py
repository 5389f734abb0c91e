"""The `streamlm` command: its parts, its help, and what its exit status means."""

import os
import sys
import warnings
from typing import Any

import typer

from streamlm.characters import without_steering
from streamlm.commands.ablate import ablate
from streamlm.commands.chat import chat
from streamlm.commands.compare import compare
from streamlm.commands.evaluate import evaluate
from streamlm.commands.figures import figures
from streamlm.commands.generate import generate
from streamlm.commands.groups import spread_groups
from streamlm.commands.info import info
from streamlm.commands.init import init
from streamlm.commands.latency import latency
from streamlm.commands.terminal import say, show_on_terminal
from streamlm.commands.verify import verify
from streamlm.commands.version import version
from streamlm.commands.watch import watch

# typer vendors click and does not export UsageError; reach it through a subclass.
UsageError: Any = typer.BadParameter.__base__
# 130 comes from typer, and so does the silent 1 when the reader of the output goes away.
STATUS = (
    "Exit status: 0 done; 1 a fault at work, such as a missing file; 2 a wrong command line; "
    "130 stopped by Ctrl-C. What is wrong is one line on stderr."
)
MEASURE, WRITE, INSPECT, SET_UP = "Measure", "Write", "Inspect", "Set up"

app = typer.Typer(
    name="streamlm",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Colours of typer itself, of which there are none but in help, which rich writes.
    context_settings={"help_option_names": ["-h", "--help"], "color": False},
)


@app.callback(epilog=STATUS)
def about() -> None:
    """What a language model loses, and saves, when its KV cache keeps attention sinks and a window."""


for panel, function, example in (
    (MEASURE, evaluate, "--dataset-name wikitext --n-sink 4 --window-size 1024 --output result.json"),
    (MEASURE, ablate, "--ablation-type n_sink --dataset-name pg19 --figure ablation_n_sink.png"),
    (
        MEASURE,
        compare,
        "--dataset-name wikitext --press KnormPress --press 'SnapKVPress(window_size=32)'",
    ),
    (MEASURE, latency, "--dataset-name wikitext --capacity 512 --capacity 1024 --output-dir latency"),
    (WRITE, generate, "--prompt 'Once upon a time' --max-new-tokens 20000 --output story.txt"),
    (WRITE, chat, "--system 'You answer in one sentence.' --temperature 0.7"),
    (INSPECT, info, "--model-name data/models/smollm2-135m-instruct --window-size 1020 --context 100000"),
    (INSPECT, watch, "--text book.txt --n-sink 4 --window-size 60 --html watch.html"),
    (INSPECT, figures, "--results-dir results --output-dir figures"),
    (INSPECT, verify, "results --max-tokens 5000"),
    (INSPECT, version, ""),
    (SET_UP, init, "experiment"),
):
    name = function.__name__
    command = app.command(rich_help_panel=panel, epilog=f"Example: streamlm {name} {example}".rstrip())
    command(spread_groups(function))


def main() -> None:
    """Run the command; a fault is one line on stderr, and a status of its own."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # what it warns of is checked here
    show_on_terminal()
    # Without our source line.
    warnings.formatwarning = lambda message, *_, **__: f"streamlm: {without_steering(str(message))}\n"
    try:
        sys.exit(app(standalone_mode=False, prog_name="streamlm"))
    except UsageError as error:
        fail(error.format_message(), 2)
    except (ValueError, OSError) as error:
        fail(str(error), 1)


def fail(message: str, status: int) -> None:
    """End with a line on stderr, if there is something to say, and this status."""
    if message:  # where help is shown instead, typer's error has none
        say(f"streamlm: {without_steering(' '.join(message.split()))}", err=True)
    sys.exit(status)
