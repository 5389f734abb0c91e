"""The page about a new method, typed as it is: it is scored, drawn and verified; three files change."""

import filecmp
import json
import re
import subprocess
import sys

from project import ROOT, copy_project, environment, make_tiny_model, snakemake

PAGE = ROOT / "docs" / "new-method.md"


def typed(place):
    """Type the blocks of the page into a project; return the files that they go to."""
    files = []
    for file, block in re.findall(
        r"^```python\n# (\S+), at the end\n(.*?)^```", PAGE.read_text(), re.M | re.S
    ):
        with (place / file).open("a") as target:
            target.write(f"\n\n{block}")
        files.append(file)
    return files


def run(place, *command):
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=place, env=environment() | {"PYTHONPATH": str(place)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_method_of_the_page_is_compared_drawn_and_verified(tmp_path):
    place = copy_project(tmp_path, more=("tests", "pyproject.toml", "docs/new-method.md"))
    files = typed(place)
    assert files == ["streamlm/config.py", "streamlm/measure/scorers.py", "tests/reference.py"]
    changed = [
        path.relative_to(place).as_posix()
        for folder in ("streamlm", "tests", "workflow")
        for path in sorted((place / folder).rglob("*"))
        if path.is_file()
        and path.suffix != ".pyc"
        and not filecmp.cmp(path, ROOT / path.relative_to(place), False)
    ]
    assert changed == files
    (command,) = re.findall(r"^pytest (.*)$", PAGE.read_text(), re.M)
    assert "7 passed" in run(place, "-m", "pytest", "-p", "no:cacheprovider", *command.split())

    make_tiny_model(place)
    figures = [f"results/smoke/figures/{name}.png" for name in ("schemes", "main_comparison")]
    done = snakemake(place, *figures)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((place / "results/smoke/streaming_llm/readme_result.json").read_text())
    assert list(result["methods"])[-1] == "restart"
    assert "restart when full" in (place / "results/smoke/tables/schemes.csv").read_text()

    streamlm = ("-c", "from streamlm.cli import main; main()")
    text = ("--model-name", "data/smoke/model", "--text", "README.md", "--max-eval-tokens", 90)
    assert "restart 0+32 on README.md" in run(
        place, *streamlm, "evaluate", *text, "--method", "restart", "--window-size", 28
    )
    found = run(place, *streamlm, "verify", "results/smoke", "--model-name", "data/smoke/model")
    assert "runs/readme/restart.json: confirmed" in found
    assert "refuted" not in found
