"""The old commands of docs/old-scripts.md, typed as they stand, with a hub and without."""

import json
import shlex
import subprocess
import warnings

import pytest
from command import command, only_line, streamlm
from documents import blocks
from hub_files import BOOKS, environment
from project import ROOT
from tiny_model import write_tiny_model

from streamlm.sources.corpus import write_sample
from streamlm.sources.documents import Document

PAGE = ROOT / "docs/old-scripts.md"
COMMANDS = [line for block in blocks(PAGE, "sh") for line in block.replace("\\\n", " ").splitlines()]
STORED = {"wikitext": "English Wikipedia sample", "pg19": "Shakespeare, Project Gutenberg"}
UNREACHABLE = {"HF_ENDPOINT": "http://127.0.0.1:9"}


@pytest.fixture
def place(tmp_path):
    """A folder with the packaged model and texts."""
    write_tiny_model(tmp_path / "data/models/smollm2-135m-instruct")
    for role, title in STORED.items():
        write_sample(tmp_path / f"data/{role}/sample.json", title, {}, [Document(role, BOOKS[0])])
    return tmp_path


def typed(hub, place, line, **changes):
    _, *arguments = shlex.split(line)
    return subprocess.run(
        command(*arguments), cwd=place, env=environment(hub, place, **changes), capture_output=True, text=True
    )


@pytest.mark.kvpress
def test_every_command_works_with_a_hub(hub, place):
    assert len(COMMANDS) == 9
    for line in COMMANDS:
        done = typed(hub, place, line)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    streaming, dense, book = (
        json.loads((place / f"{name}.json").read_text()) for name in ("wikitext", "wikitext_dense", "pg19")
    )
    assert streaming["model"] == "EleutherAI/pythia-70m"
    assert streaming["dataset"] == dense["dataset"] == "Salesforce/wikitext wikitext-103-v1 test"
    assert (streaming["method"], streaming["capacity"]) == ("streaming", 1028)
    assert (dense["method"], dense["tokens"]["count"]) == ("dense", 4096)
    assert book["dataset"] == STORED["pg19"]


def test_code_of_a_hub_is_refused_once_and_the_text_is_measured(hub, place):
    done = typed(hub, place, "streamlm evaluate --dataset-name pg19 --trust-remote-code --max-eval-tokens 50")
    assert done.returncode == 0
    assert done.stderr.count("--trust-remote-code does nothing: code of a hub is never run") == 1
    assert STORED["pg19"] in done.stdout


def test_without_a_hub_the_stored_text_stands_in_and_a_line_says_so(hub, place):
    line = "streamlm evaluate --dataset-name {} --dataset-config {} --max-eval-tokens 60 --json"
    for role, config, name in (
        ("wikitext", "wikitext-103-v1", "Salesforce/wikitext wikitext-103-v1"),
        ("pg19", "default", "emozilla/pg19 default"),
    ):
        done = typed(hub, place, line.format(role, config), **UNREACHABLE)
        assert done.returncode == 0, done.stderr
        assert f"there is no hub to fetch {name} from: {STORED[role]} stands in" in done.stderr
        assert json.loads(done.stdout)["dataset"] == STORED[role]
    offline = typed(hub, place, line.format("wikitext", "wikitext-103-v1"), HF_HUB_OFFLINE="1")
    assert f"{STORED['wikitext']} stands in" in offline.stderr


def test_without_a_hub_and_a_stored_text_one_line_says_what_is_missing(hub, place):
    (place / "data/wikitext/sample.json").unlink()
    line = "streamlm evaluate --dataset-name wikitext --dataset-config wikitext-103-v1"
    refused = only_line(typed(hub, place, line, **UNREACHABLE))
    assert "no server answers there" in refused
    assert "nor can the packaged text stand in: there is no data/wikitext/sample.json" in refused


def test_mistake_on_a_hub_that_answers_is_no_reason_for_a_stand_in(hub, place):
    line = "streamlm evaluate --dataset-name wikitext --dataset-config wikitext-2"
    assert "has no config 'wikitext-2'; use one of" in only_line(typed(hub, place, line))


@pytest.mark.parametrize(
    ("options", "method"),
    [
        ("--n-sink 0 --window-size 999999", "dense"),
        ("--n-sink 0 --window-size 60", "dense"),
        ("--n-sink 0 --window-size 59", "streaming"),
        ("--n-sink 4 --window-size 999999", "streaming"),
    ],
)
def test_window_that_holds_everything_is_dense(place, options, method):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = streamlm(place, "evaluate", "--max-eval-tokens", 60, *options.split(), "--json")
    record = json.loads(done.stdout)
    assert record["method"] == method
    for lines in ([str(warning.message) for warning in caught], record["warnings"]):
        assert any("nothing was evicted" in line for line in lines) == (method == "streaming")
