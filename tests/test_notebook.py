"""The tour: its code runs from the top, and it is kept without outputs."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
from project import ROOT

NOTEBOOK = ROOT / "notebooks" / "tour.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]


def run_cell(source, names):
    """Run the code of a cell as a notebook does; return the value of its last expression, if any."""
    *body, last = ast.parse(source).body
    if not isinstance(last, ast.Expr):
        body, last = [*body, last], None
    exec(compile(ast.Module(body, []), str(NOTEBOOK), "exec"), names)
    return last and eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)


def test_outputs_are_stripped():
    codes = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in codes)


def test_every_link_leads_somewhere():
    text = "".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
    for page in ("figures", "concepts", "sink-cache"):
        assert f"(../docs/{page}.md)" in text
        assert (ROOT / "docs" / f"{page}.md").is_file()


def test_the_tour_runs(prose_model, prose_ids, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT / "notebooks")
    tokens = tmp_path / "tokens.npy"
    np.save(tokens, np.concatenate([*prose_ids.values()] * 3))
    names, shown = {}, []
    for cell in CELLS:
        if cell["cell_type"] == "code":
            value = run_cell("".join(cell["source"]), names)
            if "parameters" in cell["metadata"].get("tags", []):
                names |= {"MODEL": str(prose_model), "TOKENS": str(tokens)}
                names |= {"SHORT": 2200, "LONG": 4300, "CAPACITY": 20}
            if value is not None:
                shown.append(value)
    assert [figure._repr_png_()[:4] for figure in shown] == [b"\x89PNG"] * 3
    assert Path.cwd() == ROOT
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert printed[1].startswith("4+28 of ")
    assert all("perplexity" in line for line in printed)


@pytest.mark.slow
def test_the_tour_runs_on_the_packaged_model(monkeypatch):
    """It takes some minutes; data/ is filled first where it is empty."""
    monkeypatch.chdir(ROOT)
    names = {}
    for cell in CELLS:
        if cell["cell_type"] == "code":
            run_cell("".join(cell["source"]), names)
