"""What the pages say is true: names, messages, links, numbers, keys of the config."""

import ast
import importlib
import os
import re
import runpy
import subprocess
import sys
import tomllib

import pytest
import yaml
from documents import PAGES, blocks
from project import ROOT

import streamlm
from streamlm.config import ROLES
from streamlm.records.files import read_record
from streamlm.summaries.positions import position_summary
from streamlm.summaries.tables import as_markdown


def message_patterns():
    """Yield a pattern for every text in the source: what is filled in may be anything."""
    for file in (ROOT / "streamlm").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [
                getattr(part, "value", None) for part in parts if not isinstance(part, ast.FormattedValue)
            ]
            if len("".join(text for text in texts if isinstance(text, str))) > 18:
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
    sources = [*ROOT.glob("docs/results/*.md"), *ROOT.glob("benchmarks/*.txt"), ROOT / "docs/paper.md"]
    published = "\n".join(source.read_text() for source in sources)
    for number in re.findall(r"[-+]?\d+\.\d+ \[[^\]]+\]", page.read_text()):
        assert number in published, number


def test_positions_of_the_paper_page_follow_from_the_published_records():
    records = [read_record(ROOT / f"docs/results/{text}_positions.json") for text in ROLES]
    assert as_markdown(position_summary(records)) in (ROOT / "docs/paper.md").read_text()


def test_every_number_about_kvpress_is_in_its_summary():
    page = re.sub(r"^ *```.*?^ *```", "", (ROOT / "docs/kvpress.md").read_text(), flags=re.M | re.S)
    published = (ROOT / "docs/results/kvpress_summary.md").read_text()
    numbers = re.findall(r"(?<![\d.-])-?\d+(?:\.\d+(?:e-\d+)?|e-\d+)(?![\d.])", page.replace("0.5.5", ""))
    assert len(numbers) > 50
    for number in numbers:
        assert re.search(rf"(?<![\d.-]){re.escape(number)}(?![\d])", published), number


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


def test_every_promise_of_the_security_page_names_tests_that_exist():
    page = (ROOT / "docs/security.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    files = {file.name: file.read_text() for file in (ROOT / "tests").glob("test_*.py")}
    existing = {name for text in files.values() for name in re.findall(r"^def (test_\w+)", text, re.M)}
    assert len(named) > 50
    assert named <= existing, named - existing
    assert set(re.findall(r"test_\w+\.py", page)) >= {n for n in files if "security" in n}
