"""What the documents show: every command runs, every message and name is in the source."""

import ast
import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml
from project import ROOT, copy_project
from tiny_model import write_tiny_model

import streamlm
from streamlm.experiment.check import check_config
from streamlm.sources.corpus import write_sample
from streamlm.sources.documents import Document

PAGES = sorted([*ROOT.glob("README*.md"), ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])


# What is done with a command in a document, by how it begins; the longest beginning counts. A tiny model
# has the name of the packaged one. A command that no beginning fits fails: decide, and add it here.
RUN = "as typed"
DRY = "with -n: what would be done is listed"
OPTIONS = "not run; it and its options must be in its --help"
ELSEWHERE = "run by the test of its page: test_new_method.py, test_new_press.py"
BLOCKS = {
    "make": DRY,  # sets up environments, runs for hours
    "snakemake": DRY,  # the workflow itself runs in test_workflow.py
    "snakemake --unlock": RUN,
    "streamlm": RUN,
    "streamlm chat": OPTIONS,  # waits for someone to talk to
    "streamlm generate --chat": OPTIONS,  # wants a model with a chat template
    "streamlm verify": OPTIONS,  # wants finished results
    "streamlm figures": OPTIONS,
    "streamlm evaluate --model-name EleutherAI": OPTIONS,  # wants a hub
    "hf": OPTIONS,
    "pip install": OPTIONS,  # changes the environment
    "python": RUN,
    "python tests/fresh_environments.py": OPTIONS,  # downloads gigabytes
    "python benchmarks": OPTIONS,  # a quarter of an hour, and nothing else should run
    "source": RUN,
    "pytest": ELSEWHERE,
    "python -m pytest": ELSEWHERE,
}
INLINE = {"make": DRY, "snakemake": DRY, "streamlm": OPTIONS, "python": OPTIONS}  # in running text
SMALLER = {"max_new_tokens=20_000": "max_new_tokens=20", "max_new_tokens=2_000": "max_new_tokens=20",
           "--max-new-tokens 20000": "--max-new-tokens 20"}  # fmt: skip


def blocks(page, language):
    """Return the content of the fences of one language, in order; a fence in a list is indented."""
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for block in found]


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


@pytest.mark.parametrize("page", [page for page in PAGES if scripts(page)], ids=lambda page: page.name)
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


def message_patterns():
    """Yield a pattern for every text in the source: what is filled in may be anything."""
    for file in (ROOT / "streamlm").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [
                getattr(part, "value", None) for part in parts if not isinstance(part, ast.FormattedValue)
            ]
            if len("".join(text for text in texts if isinstance(text, str))) > 20:
                yield "".join(
                    ".+" if isinstance(part, ast.FormattedValue) else re.escape(part.value) for part in parts
                )


@pytest.mark.parametrize("message", blocks(ROOT / "docs/troubleshooting.md", "text"))
def test_quoted_message_is_one_of_ours(message):
    line = re.sub(r"^(streamlm|ValueError): ", "", message)
    assert any(re.fullmatch(pattern + "\n?", line) for pattern in message_patterns()), line


def named_in_files():
    """Yield (file, name) of a table that says what is in a file: `file`: `name`, `name`."""
    for file, names in re.findall(
        r"`([\w/.]+)`: ((?:`\w+`(?:, )?)+)", (ROOT / "CONTRIBUTING.md").read_text()
    ):
        yield from ((file, name) for name in re.findall(r"`(\w+)`", names))


def test_names_are_in_the_files_that_are_said_to_have_them():
    named = list(named_in_files())
    assert len(named) > 15
    for file, name in named:
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text()), f"{file} has no {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_modules_that_are_named_exist(page):
    text = page.read_text()
    for path in re.findall(r"`((?:streamlm|tests|docs|workflow|benchmarks|envs)/[\w/.-]+)`", text):
        assert (ROOT / path).exists() or "NAME" in path, path
    for name in re.findall(r"\b(streamlm(?:\.(?!md|yaml)\w+)+)", text):
        module, _, attribute = name.rpartition(".")
        file = ROOT / name.replace(".", "/")
        if not (file.is_dir() or file.with_suffix(".py").exists()):
            assert hasattr(importlib.import_module(module), attribute), name


ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()


def test_names_on_the_page_about_the_code_are_in_the_code():
    code = [*(ROOT / "streamlm").rglob("*.py"), *(ROOT / "workflow/rules").glob("*.smk")]
    known = {word for file in code for word in re.findall(r"\w+", file.read_text())}
    for span in re.findall(r"`([A-Za-z_.]+)`", ARCHITECTURE):
        missing = {*span.split(".")} - known
        assert not missing or (ROOT / span).exists(), span
    for module in re.findall(r"`(\w+/\w+\.py)`", ARCHITECTURE):
        assert any((ROOT / folder / module).exists() for folder in ("streamlm", ".")), module


def test_page_about_the_code_names_every_wing():
    drawn = ARCHITECTURE.split("```")[1]
    wings = {file.stem for file in (ROOT / "streamlm").glob("[!_]*") if file.suffix in ("", ".py")}
    assert {name for name in wings if re.search(rf"\b{name}\b", drawn)} == wings


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_drawings_are_those_of_the_script(tmp_path):
    script = ROOT / "docs/drawings/draw.py"
    subprocess.run(
        [sys.executable, script, tmp_path], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    drawn, kept = (
        {file.name: file.read_text() for file in folder.glob("*.svg")} for folder in (tmp_path, script.parent)
    )
    assert drawn == kept


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_measured_numbers_are_those_of_the_published_results(page):
    sources = [*ROOT.glob("docs/results/*.md"), *ROOT.glob("benchmarks/*.txt")]
    published = "\n".join(source.read_text() for source in sources)
    for number in re.findall(r"[-+]?\d+\.\d+ \[[^\]]+\]", page.read_text()):
        assert number in published, number


@pytest.mark.parametrize(
    ("markup", "loads"),
    [
        ('<script src="https://cdn.example/x.js"></script>', True),
        ("<link href=//fonts.example/css rel=stylesheet>", True),
        ("body { background: url(https://example.org/x.png) }", True),
        ("<a href=https://arxiv.org/abs/2309.17453>paper</a>", False),
        ('<img src="drawings/ring.svg"><link rel=stylesheet href=assets/main.css>', False),
        ("<link rel=canonical href=https://example.org/>", False),
    ],
)
def test_what_a_page_loads_from_elsewhere_is_found(markup, loads):
    hooks = runpy.run_path(ROOT / "docs/hooks.py")
    assert bool(hooks["LOADED"].search(markup)) == loads


def test_version_and_license_are_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    released = re.findall(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert citation["version"] == released[0] == streamlm.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["license"] == project["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
    assert released == sorted(
        released, key=lambda version: [int(n) for n in version.split(".")], reverse=True
    )


def test_readme_is_short_and_its_translation_shows_the_same():
    readme, translation = ROOT / "README.md", ROOT / "README.zh-CN.md"
    assert len(readme.read_text().split()) <= 1500

    def lines(page, language):
        shown = (line for block in blocks(page, language) for line in block.splitlines())
        return {re.sub(r"\s+#.*", "", line) for line in shown}  # without comments, which are translated

    assert lines(readme, "sh") <= lines(translation, "sh")
    assert lines(readme, "yaml") <= lines(translation, "yaml")
    assert blocks(readme, "python") == blocks(translation, "python")
    for mention in ("HF_ENDPOINT=", "EleutherAI/pythia-70m", "4.6 [1.6, 8.5]"):
        assert mention in translation.read_text()


def test_every_key_of_the_config_is_described_with_its_default():
    def leaves(section, prefix=""):
        for name, value in section.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    text = (ROOT / "docs/config.md").read_text()
    table, _, sources = text.partition("## Sources")
    rows = re.findall(r"^\| `([\w.]+)` \| (?:`([^`]+)`)? ?\|", table, re.MULTILINE)
    own = {name: default for name, default in rows if not name.startswith(("models.", "corpora."))}
    wanted = dict(leaves({name: part for name, part in config.items() if name not in ("models", "corpora")}))
    assert list(own) == list(wanted)
    for name, value in wanted.items():
        shown = own[name].replace("…", ", ".join(map(str, value[1:])) if isinstance(value, list) else "")
        assert yaml.safe_load(shown) == value, name
    for section, more in (("models", {"title"}), ("corpora", {"title", "add_bos", "max_samples"})):
        entry = {name.partition(".NAME.")[2] for name, _ in rows if name.startswith(f"{section}.")}
        assert entry == more | {"source.kind"}
        assert set(next(iter(config[section].values()))) == more | {"source"}
    schema = yaml.safe_load((ROOT / "streamlm/experiment/config.schema.yaml").read_text())["$defs"]
    package, path = (schema["other_source"][case]["properties"] for case in ("then", "else"))
    hub = schema["hub_model"]["properties"] | schema["hub_corpus"]["properties"]
    shown, kind = {}, ""
    for new, key in re.findall(r"^\| (?:`(\w+)` )?\| `(\w+)` \|", sources, re.MULTILINE):
        kind = new or kind
        shown.setdefault(kind, set()).add(key)
    assert shown == {
        name: set(keys) - {"kind"} for name, keys in (("path", path), ("package", package), ("hub", hub))
    }
