"""What the documents show runs: every command, every Python, every config."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from documents import PAGES, blocks
from project import ROOT, copy_project
from tiny_model import write_tiny_model

from streamlm.experiment.check import check_config
from streamlm.sources.corpus import write_sample
from streamlm.sources.documents import Document

# What is done with a command in a document, by how it begins; the longest beginning counts. A tiny model
# has the name of the packaged one. A command that no beginning fits fails: decide, and add it here.
RUN = "as typed"
DRY = "with -n: what would be done is listed"
OPTIONS = "not run; it and its options must be in its --help"
ELSEWHERE = "run by the test of its page: test_new_method.py, test_new_press.py, test_lm_eval.py"
BLOCKS = {
    "make": DRY,  # sets up environments, runs for hours
    "snakemake": DRY,  # the workflow itself runs in test_workflow.py
    "snakemake --unlock": RUN,
    "streamlm": RUN,
    "streamlm chat": OPTIONS,  # waits for someone to talk to
    "streamlm generate --chat": OPTIONS,  # wants a model with a chat template
    "streamlm verify": OPTIONS,  # wants finished results
    "streamlm figures": OPTIONS,
    # These want a hub; test_old_scripts.py runs them against one.
    "streamlm evaluate --model-name EleutherAI": OPTIONS,
    "streamlm ablate --ablation-type window_size --model-name EleutherAI": OPTIONS,
    "streamlm ablate --ablation-type n_sink --model-name EleutherAI": OPTIONS,
    "streamlm compare --model-name EleutherAI": OPTIONS,
    "hf": OPTIONS,
    "pip install": OPTIONS,  # changes the environment
    "python": RUN,
    "python tests/fresh_environments.py": OPTIONS,  # downloads gigabytes
    "python benchmarks": OPTIONS,  # a quarter of an hour, and nothing else should run
    "source": RUN,
    "pytest": ELSEWHERE,
    "python -m pytest": ELSEWHERE,
    "python -m streamlm.harness": ELSEWHERE,  # wants a task of the hub
}
# In running text
INLINE = {"make": DRY, "snakemake": DRY, "streamlm": OPTIONS, "python": OPTIONS,
          "python -m streamlm.harness": ELSEWHERE}  # fmt: skip
SMALLER = {"max_new_tokens=20_000": "max_new_tokens=20", "max_new_tokens=2_000": "max_new_tokens=20",
           "--max-new-tokens 20000": "--max-new-tokens 20"}  # fmt: skip


def commands(block):
    """Return the commands of a block, one for each line that is not continued."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def inline_commands(page):
    """Return the commands in running text: code of several words that begins as one of ours does."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", text)
    return [span for span in spans if span.split()[0] in INLINE and len(span.split()) > 1]


def what_to_do(command, table):
    """Return what the table says about a command, without settings of the environment before it."""
    words = re.sub(r"^(\w+=\S*\s+)+", "", command)
    operators = {"&&", "||", "|", ";", "&"} & set(shlex.shlex(words, posix=True, punctuation_chars=True))
    assert not operators, f"write one command a line, so that the table has an entry for each: {command!r}"
    fitting = [start for start in table if re.match(rf"{re.escape(start)}(?![\w-])", words)]
    assert fitting, f"nothing says what to do with {command!r}; add it to a table in {Path(__file__).name}"
    return table[max(fitting, key=len)]


def rewritten(command, table):
    """Return a command as it is run here."""
    for long, short in SMALLER.items():
        command = command.replace(long, short)
    way = what_to_do(command, table)
    if way == DRY:
        # Whatever executor a profile names: its plugin need not be installed.
        command = re.sub(r"\bsnakemake\b", "snakemake -n --executor dryrun", command, count=1)
        return re.sub(r"\bmake\b", "make -n", command, count=1)
    if way == ELSEWHERE:
        return ":"
    if way == OPTIONS:
        called = re.match(r"(\S+ \S+)", command)[1]
        options = re.findall(r"\s(--[a-z-]+)", command)
        return "\n".join([f"help=$({called} --help)", *(f'grep -qwe {o} <<< "$help"' for o in options)])
    return command


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project in which a tiny model has the name of the packaged one, with texts and tokens."""
    project = tmp_path_factory.mktemp("documented")
    copy_project(project, more=("benchmarks", "tests", "pyproject.toml"))
    model = project / "data/models/smollm2-135m-instruct"
    for folder in (model, project / "mymodel", project / "data/smoke/model"):
        write_tiny_model(folder)
    prose = "Attention sinks keep a stream of text steady. " * 300
    (project / "notes.txt").write_text(prose)
    for corpus in ("wikitext", "pg19"):
        write_sample(project / f"data/{corpus}/sample.json", corpus, {}, [Document(title=corpus, text=prose)])
        tokens = project / f"data/tokens/{model.name}/{corpus}.npy"
        tokens.parent.mkdir(parents=True, exist_ok=True)
        np.save(tokens, np.random.default_rng(0).integers(0, 256, 12_000))
    for page in PAGES:
        for block in blocks(page, "yaml"):
            if named := re.match(r"# (configs/\S+\.yaml)\n", block):
                (project / named[1]).write_text(block)
    programs = {
        "streamlm": "-c 'from streamlm.cli import main; main()'", "snakemake": "-m snakemake",
        "pip": "-m pip", "python": "", "hf": "-m huggingface_hub.cli.hf",
    }  # fmt: skip
    for name, arguments in programs.items():
        (project / "bin").mkdir(exist_ok=True)
        (project / "bin" / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        (project / "bin" / name).chmod(0o755)
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/bin/activate").touch()  # the environment that runs the tests is active
    return project


def run(project, *command, **options):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SNAKEMAKE")}
    environment |= {
        "PATH": f"{project}/bin:/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": str(project), "COLUMNS": "200",
    }  # fmt: skip
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


SHELL = {block: page.name for page in PAGES for block in blocks(page, "sh")}  # equal ones once
MENTIONED = {command: page.name for page in PAGES for command in inline_commands(page)}


@pytest.mark.parametrize("block", SHELL, ids=[f"{name}-{i}" for i, name in enumerate(SHELL.values())])
def test_shell_block_runs(project, block):
    lines = [rewritten(command, BLOCKS) for command in commands(block)]
    run(project, "bash", "-euo", "pipefail", "-c", "\n".join(lines))


@pytest.mark.parametrize("command", MENTIONED, ids=[f"{page}-{span}" for span, page in MENTIONED.items()])
def test_command_in_running_text_is_known(project, command):
    run(project, "bash", "-euo", "pipefail", "-c", rewritten(command, INLINE))


TYPED = re.compile(r"# \S+\.py, at the end\n")  # into a file, as test_new_method.py does


def scripts(page):
    """Return the Python of a page, without what is typed into files."""
    return [block for block in blocks(page, "python") if not TYPED.match(block)]


def marked(page):
    """Return a page as a parameter, marked where its Python imports kvpress."""
    needs_kvpress = any("import kvpress" in block or "from kvpress" in block for block in scripts(page))
    return pytest.param(page, id=page.name, marks=[pytest.mark.kvpress] * needs_kvpress)


@pytest.mark.parametrize("page", [marked(page) for page in PAGES if scripts(page)])
def test_python_of_a_page_runs_from_top_to_bottom(project, page):
    script = "\n".join(scripts(page))
    for long, short in SMALLER.items():
        script = script.replace(long, short)
    run(project, sys.executable, "-c", script)


def test_command_that_no_table_has_is_refused():
    with pytest.raises(AssertionError, match=r"nothing says what to do with 'sbatch"):
        rewritten("sbatch job.sh", BLOCKS)
    with pytest.raises(AssertionError, match="write one command a line"):
        rewritten("make all && rm -r results", BLOCKS)
    assert rewritten("A=1 snakemake all", BLOCKS) == "A=1 snakemake -n --executor dryrun all"
    assert rewritten("make all", BLOCKS) == "make -n all"
    assert rewritten("snakemake --unlock", BLOCKS) == "snakemake --unlock"


def test_unknown_option_in_a_document_is_found(project):
    with pytest.raises(AssertionError):
        run(project, "bash", "-euo", "pipefail", "-c", rewritten("streamlm evaluate --n-sinks 4", INLINE))


def test_every_fence_has_a_language_that_is_checked():
    # console: what other programs print; diff: test_new_press.py applies it
    for page in PAGES:
        marks = re.findall(r"^ *```(.*)$", page.read_text(), re.MULTILINE)
        assert set(marks[::2]) <= {"sh", "python", "yaml", "text", "console", "diff"}, page.name
        assert set(marks[1::2]) <= {""}, page.name


def merged(config, changes):
    """Return a config with changes in it, as Snakemake merges files."""
    both = {
        key: merged(config[key], value) if isinstance(value, dict) and key in config else value
        for key, value in changes.items()
    }
    return {**config, **both}


FRAGMENTS = [yaml.safe_load(block) for page in PAGES for block in blocks(page, "yaml")]
CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())


@pytest.mark.parametrize("fragment", [part for part in FRAGMENTS if part.keys() <= CONFIG.keys()], ids=str)
def test_config_that_is_shown_has_no_fault(project, monkeypatch, fragment):
    monkeypatch.chdir(project)
    check_config(merged(CONFIG, fragment))
