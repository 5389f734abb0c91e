"""A new figure is one module and one line: both are added to a copy of the project, as CONTRIBUTING says."""

import filecmp
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import VOCAB, score_by_name, tiny_llama
from project import PARTS, ROOT, copy_project, environment, make_tiny_model, snakemake

from streamlm.config import METHODS
from streamlm.figures.catalogue import FIGURES
from streamlm.records.files import write_array, write_json
from streamlm.stats import BootstrapConfig
from streamlm.summaries.main import collect_result

NAME = "kv_memory"
MODULE = '''"""The memory of the keys and values at the end of a text."""

import matplotlib
from matplotlib.figure import Figure as Picture

from streamlm.config import METHODS
from streamlm.figures.entry import RESULTS, Figure
from streamlm.figures.style import PAGE, RC_PARAMS, describe, finish, method_bar
from streamlm.summaries.main import each_method
from streamlm.summaries.tables import mib


@matplotlib.rc_context(RC_PARAMS)
def plot_memory(results):
    """Return a bar for each text and method."""
    figure = Picture((PAGE, 3))
    axes = figure.subplots()
    bars = [method for result in results for method in result["methods"]]
    for at, (method, row) in enumerate(zip(bars, memory_rows(results), strict=True)):
        axes.bar(at, row["kv_mib"], **method_bar(METHODS[method]))
    axes.set(xlabel="text and method", ylabel="keys and values, MiB")
    counts = [result["tokens"]["count"] for result in results]
    finish(figure, FIGURE.title, [], describe(results[0], counts, results[0]["protocol"]))
    return figure


def memory_rows(results):
    """Return the bars as numbers."""
    return [names | {"kv_mib": mib(part["streaming"]["kv_bytes"])} for names, part in each_method(results)]


FIGURE = Figure(
    title="Memory at the end of a text",
    short_title="Memory",
    caption="""
What the cache occupies. **What to see**: only dense grows with the text.

**Measured** with {model} on the first {n_tokens} tokens of {texts}.""",
    records=RESULTS,
    plot=plot_memory,
    rows=memory_rows,
)
'''


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with a new figure, and the records of its texts; made without the workflow."""
    place = copy_project(tmp_path_factory.mktemp("new_figure") / "project")
    make_tiny_model(place)
    (place / "streamlm" / "figures" / f"{NAME}.py").write_text(MODULE)
    catalogue = place / "streamlm" / "figures" / "catalogue.py"
    catalogue.write_text(
        catalogue.read_text().replace('    "schemes",\n', f'    "schemes",\n    "{NAME}",\n')
    )
    runs, bootstrap = place / "runs", BootstrapConfig(block=16, resamples=50)
    tiny_llama(max_position_embeddings=128).save_pretrained(runs / "model")
    for seed, text in enumerate(("readme", "makefile")):
        ids = np.random.default_rng(seed).integers(VOCAB, size=100)
        for method in METHODS:
            record, losses = score_by_name(
                model_dir=runs / "model", ids=ids, dataset=text, method=method, n_sink=2, window_size=14,
                positions=4, bootstrap=bootstrap,
            )  # fmt: skip
            write_json(runs / text / f"{method}.json", record)
            write_array(runs / text / f"{method}.npy", losses)
        paths = {method: runs / text / f"{method}.json" for method in METHODS}
        result = collect_result(paths, bootstrap)
        write_json(place / "results" / "smoke" / "streaming_llm" / f"{text}_result.json", result)
    return place


def files_of(place):
    """Return the paths of all files that the workflow consists of."""
    files = (file for part in PARTS for file in [place / part, *(place / part).rglob("*")])
    return {file.relative_to(place) for file in files if file.is_file() and "__pycache__" not in file.parts}


def test_one_module_and_one_line_are_all_that_differs(project):
    added = files_of(project) - files_of(ROOT)
    changed = {file for file in files_of(ROOT) if not filecmp.cmp(ROOT / file, project / file, shallow=False)}
    assert {str(file) for file in added | changed} == {
        f"streamlm/figures/{NAME}.py",
        "streamlm/figures/catalogue.py",
    }
    before, after = (root.joinpath("streamlm/figures/catalogue.py").read_text() for root in (ROOT, project))
    assert len(after.splitlines()) == len(before.splitlines()) + 1


def test_workflow_draws_it_with_its_table(project):
    results = project / "results" / "smoke"
    done = snakemake(project, f"results/smoke/figures/{NAME}.png", "--allowed-rules", "plot_figure")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (results / "figures" / f"{NAME}.png").read_bytes().startswith(b"\x89PNG")
    assert (results / "figures" / f"{NAME}.pdf").read_bytes().startswith(b"%PDF")
    table = pd.read_csv(results / "tables" / f"{NAME}.csv")
    assert len(table) == 2 * len(METHODS)
    assert (table["kv_mib"] > 0).all()
    assert "Memory at the end of a text" in (results / "tables" / f"{NAME}.html").read_text()
    assert "tab:kv-memory" in (results / "tables" / f"{NAME}.tex").read_text()


def test_command_draws_it(project, tmp_path):
    code = "from streamlm.cli import main; main()"
    options = ["--results-dir", "results/smoke", "--output-dir", str(tmp_path), "--only", NAME]
    done = subprocess.run(
        [sys.executable, "-c", code, "figures", *options],
        cwd=project, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"{NAME}.png").is_file()


def test_other_figures_keep_their_fingerprints(project):
    code = (
        "from streamlm.provenance import code_fingerprint\n"
        f"for name in {FIGURES}:\n"
        "    print(name, code_fingerprint('workflow/scripts/plot_figure.py', f'streamlm/figures/{name}.py'))"
    )
    before, after = (
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for root in (ROOT, project)
    )
    assert before == after
