"""docs/new-press.md as written: one line in the table of a copy of the project, and its checks pass."""

import re
import subprocess
import sys

import pytest
from project import ROOT, copy_project, environment

PAGE = (ROOT / "docs/new-press.md").read_text()
TABLE = "streamlm/presses/grammar.py"
NAME = "NonCausalAttnPress"


def fence(language):
    """Return what stands in the fences of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A copy of the project with the line of the page, and with its config, which names the new press too."""
    place = copy_project(tmp_path_factory.mktemp("project"), more=("tests", "pyproject.toml"))
    table = (place / TABLE).read_text()
    table = "".join(line for line in table.splitlines(True) if NAME not in line)  # as before it came in
    (change,) = fence("diff")
    before, after = (
        "".join(line[1:] for line in change.splitlines(True) if line[0] in side) for side in (" -", " +")
    )
    assert table.count(before) == 1
    (place / TABLE).write_text(table.replace(before, after))
    (config,) = fence("yaml")
    (place / "configs/presses.yaml").write_text(f"{config}    - {NAME}(chunk_size=8)\n")
    return place


def run(place, *command, **variables):
    """Return what a command in the copy prints."""
    done = subprocess.run(
        [sys.executable, *command], cwd=place, env=environment() | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_line_passes_the_checks_of_the_page(place):
    (check,) = [block for block in fence("sh") if "pytest" in block]
    assert check.startswith("python ")
    passed = run(place, *check.split()[1:], "-vv")
    assert f"as_kvpress_does[{NAME}()-9] PASSED" in passed
    assert f"arguments_that_kvpress_has[{NAME}] PASSED" in passed


def test_new_press_can_be_named_in_a_config(place):
    (block,) = [block for block in fence("sh") if "snakemake" in block]
    planned = run(place, "-m", *block.splitlines()[-1].split(), "-n")
    assert f"results/presses/kvpress/runs/{NAME}-chunk_size-8.json" in planned


def test_new_press_is_offered_and_its_argument_checked(place):
    command = ("-c", "from streamlm.cli import main; main()")
    typed = {"COMP_WORDS": f"streamlm compare --press {NAME[:4]}", "COMP_CWORD": "3"}
    assert run(place, *command, _STREAMLM_COMPLETE="complete_bash", **typed).split() == [NAME]
    with pytest.raises(
        AssertionError, match="chunk_size of NonCausalAttnPress cannot be 0; use a whole number"
    ):
        run(place, *command, "compare", "--text", "README.md", "--press", f"{NAME}(chunk_size=0)")
