"""The workflow on a tiny model: it runs whole, a second run is idle, an edit reruns what depends on it."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from streamlm.provenance import code_fingerprint

ROOT = Path(__file__).parent.parent
PARTS = (
    "Snakefile",
    "config.yaml",
    "configs",
    "profiles",
    "workflow",
    "streamlm",
    "README.md",
    "Makefile",
    "envs",
)
LOSS_PLOTS = {
    "plot_schemes", "plot_main_comparison", "plot_results_summary", "plot_ablation_window_size",
    "plot_ablation_n_sink", "plot_long_stream",
}  # fmt: skip
COLLECTS = {
    "collect_result", "collect_ablation_window_size", "collect_ablation_n_sink", "collect_long_stream"
}  # fmt: skip
SHOWN = COLLECTS | LOSS_PLOTS | {"write_summary", "write_table"}  # of the losses
SCORED = SHOWN | {"measure_perplexity"}
TIMED_SHOWN = {"write_latency_summary", "plot_decoding_latency", "write_table"}
TIMED = TIMED_SHOWN | {"measure_latency", "measure_long_run"}
COMPARED_PLOTS = {
    "plot_implementation_comparison", "plot_comparison_metrics_table", "plot_press_sweep"
}  # fmt: skip
COMPARED_SHOWN = COMPARED_PLOTS | {"collect_comparison", "write_table"}
PLOTS = LOSS_PLOTS | COMPARED_PLOTS | {"plot_decoding_latency"}
COMPARED = COMPARED_SHOWN | {"measure_compression", "measure_decoding"}


def snakemake(place, *args):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-m", "snakemake", *args, "--configfile", "configs/smoke.yaml"],
        cwd=place, env=environment, capture_output=True, text=True,
    )  # fmt: skip


def planned(place, *args):
    """Return how many jobs of each rule a dry run lists."""
    done = snakemake(place, "-n", *args)
    assert done.returncode == 0, done.stdout + done.stderr
    table = re.search(r"^job +count\n-+ +-+\n(.*?)^total", done.stdout, re.MULTILINE | re.DOTALL)
    jobs = dict(line.split() for line in table[1].splitlines()) if table else {}
    return {rule: int(count) for rule, count in jobs.items() if rule != "all"}


@cache
def run_smoke(folder):
    """Return a copy of the project in which the smoke experiment has run, once for all tests."""
    place = folder / "project"
    place.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
        copy(ROOT / part, place / part)
    tiny = [sys.executable, str(ROOT / "tests" / "tiny_model.py"), "data/smoke/model"]
    subprocess.run(tiny, cwd=place, check=True)
    done = snakemake(place, "all")
    assert done.returncode == 0, done.stdout + done.stderr
    return place


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    return run_smoke(tmp_path_factory.getbasetemp())


@pytest.fixture
def edit(finished):
    """Change a file of the finished project for one test."""
    before = {}

    def change(name, old, new):
        path = finished / name
        text, stamp = path.read_text(), path.stat()
        before.setdefault(path, (text, (stamp.st_atime_ns, stamp.st_mtime_ns)))
        assert old in text
        path.write_text(text.replace(old, new, 1))

    yield change
    for path, (text, times) in before.items():
        path.write_text(text)
        os.utime(path, ns=times)


def test_smoke_run_makes_every_record_and_figure(finished):
    results = finished / "results" / "smoke"
    for name in sorted(name.removeprefix("plot_") for name in PLOTS):
        assert (results / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (results / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        for suffix in ("csv", "tex", "html"):
            assert (results / "tables" / f"{name}.{suffix}").stat().st_size > 100
    summary = (results / "experiment_summary.md").read_text()
    result = json.loads((results / "streaming_llm" / "readme_result.json").read_text())
    assert result["model"] == "tiny untrained Llama"
    assert result["dataset"] == "README of this project" in summary
    assert result["environment"]["torch_threads"] == len(os.sched_getaffinity(0))
    # 4 distinct geometries, recompute and 4 long streams, of 2 texts
    assert len(list((results / "runs").glob("*/*.json"))) == 18
    assert len(list(results.glob("decoding_latency_*_*_sink*.json"))) == 8  # 4 methods, 2 capacities
    assert "# What a decoded token costs" in (results / "decoding_latency_summary.md").read_text()
    assert not any((results / "checkpoints").glob("*"))
    for text in ("readme", "makefile"):
        for name in ("kvpress/{}_result", "kvpress/{}_comparison", "streaming_llm/{}_comparison"):
            assert (
                json.loads((results / f"{name.format(text)}.json").read_text())["baseline"]["perplexity"] > 1
            )


def test_second_run_does_nothing(finished):
    assert planned(finished) == {}


@pytest.mark.parametrize(
    ("file", "old", "new", "rules"),
    [
        ("streamlm/figures.py", "", "SPARE = 1\n", LOSS_PLOTS - {"plot_schemes"}),
        ("streamlm/plotting.py", "", "SPARE = 1\n", PLOTS),
        ("streamlm/tables.py", "CHANGE =", "SPARE = 1\nCHANGE =", {"write_table"}),
        ("streamlm/comparison_figures.py", "", "SPARE = 1\n", COMPARED_PLOTS),
        ("streamlm/comparison_summary.py", "AS_IS =", "SPARE = 1\nAS_IS =", COMPARED_SHOWN),
        ("streamlm/press_adapter.py", "FAMILIES =", "SPARE = 1\nFAMILIES =", COMPARED),
        (
            "streamlm/decode_comparison.py",
            "TURN =",
            "SPARE = 1\nTURN =",
            COMPARED_SHOWN | {"measure_decoding"},
        ),
        ("streamlm/latency_figures.py", "", "SPARE = 1\n", {"plot_decoding_latency"}),
        ("streamlm/latency.py", "PROTOCOL =", "SPARE = 1\nPROTOCOL =", TIMED),
        (
            "streamlm/long_stream.py",
            "PART =",
            "SPARE = 1\nPART =",
            {"collect_long_stream", "plot_long_stream", "write_table"},
        ),
        (
            "streamlm/summary.py",
            "METHOD_NAMES =",
            "SPARE = 1\nMETHOD_NAMES =",
            SHOWN | TIMED_SHOWN | COMPARED_SHOWN,
        ),
        ("streamlm/rope.py", "import torch\n", "import torch\nSPARE = 1\n", SCORED | TIMED | COMPARED),
        ("streamlm/experiment.py", "SCHEMA =", "SPARE = 1\nSCHEMA =", set()),
        ("streamlm/cli.py", "app =", "SPARE = 1\napp =", set()),
        ("streamlm/rope.py", "import torch\n", "import torch  # a comment\n", set()),
        ("streamlm/rope.py", '"""', '"""Another docstring. ', set()),
        ("workflow/scripts/measure_perplexity.py", "import sys", "import sys", set()),  # a touch
        ("workflow/scripts/write_summary.py", "import sys", "import sys\nspare = 1", {"write_summary"}),
        ("config.yaml", "resamples: 2000", "resamples: 2001", SCORED | COMPARED),
    ],
)
def test_edit_reruns_what_depends_on_it(finished, edit, file, old, new, rules):
    edit(file, old, new)
    assert set(planned(finished)) == rules


def test_new_window_size_scores_once_per_text_and_draws(finished, edit):
    edit("configs/smoke.yaml", "window_sizes: [8, 28]", "window_sizes: [8, 16, 28]")
    assert planned(finished) == {
        "measure_perplexity": 2, "collect_ablation_window_size": 1, "plot_ablation_window_size": 1,
        "write_summary": 1, "write_table": 1,
    }  # fmt: skip


def test_new_press_is_measured_once_and_shown(finished, edit):
    edit("configs/smoke.yaml", "[SnapKVPress(window_size=8)]", "[SnapKVPress(window_size=8), KnormPress]")
    assert planned(finished) == {
        "measure_compression": 1, "collect_comparison": 2, "write_table": 3,
        **dict.fromkeys(COMPARED_PLOTS, 1),
    }  # fmt: skip


def test_kvpress_is_imported_in_its_own_two_stages_alone():
    scripts = (ROOT / "workflow" / "scripts").glob("*.py")
    using = {
        script.stem
        for script in scripts
        if any(part.startswith("streamlm/press_adapter.py") for part in code_fingerprint(script))
    }
    assert using == {"measure_compression", "measure_decoding"}
    modules = ", ".join(f"streamlm.{path.stem}" for path in (ROOT / "streamlm").glob("*.py"))
    code = f"import sys, {modules}; sys.exit('kvpress' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_overwritten_weights_are_scored_again(finished, edit):
    edit("data/smoke/model/config.json", "{", "{ ")
    assert {"tokenise_corpus", "measure_perplexity"} <= set(planned(finished))


def test_bad_config_is_reported_before_any_job(finished, edit):
    edit("configs/smoke.yaml", "n_sink: 4", "n_sinks: 4")
    done = snakemake(finished, "all")
    assert done.returncode != 0
    assert "experiment: unknown key 'n_sinks'" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout


def test_failing_job_shows_its_reason_and_leaves_no_record(finished, edit):
    weights = finished / "data" / "smoke" / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:5000])
    edit("configs/smoke.yaml", "window_sizes: [8, 28]", "window_sizes: [9, 28]")
    try:
        done = snakemake(finished, "results/smoke/runs/readme/sink4_window9.json")
    finally:
        weights.write_bytes(whole)
    assert done.returncode != 0
    assert "ValueError: the model in data/smoke/model cannot be read" in done.stdout + done.stderr
    assert not (finished / "results/smoke/runs/readme/sink4_window9.json").exists()


def test_profile_is_in_force():
    profile = yaml.safe_load((ROOT / "profiles/default/config.yaml").read_text())
    assert "code" not in profile["rerun-triggers"]
    assert profile["cores"] == 1


def test_every_script_rule_takes_its_own_fingerprint():
    for file in (ROOT / "workflow" / "rules").glob("*.smk"):
        text = file.read_text()
        scripts = re.findall(r'script:\s+"\.\./(scripts/\w+\.py)"', text)
        assert scripts == re.findall(r'code=code_of\("(scripts/\w+\.py)"\)', text)
        assert len(scripts) == len(re.findall(r"^rule ", text, re.MULTILINE)), file.name


def test_scripts_are_short_and_straight():
    for file in (ROOT / "workflow" / "scripts").glob("*.py"):
        text = file.read_text()
        assert len(text.splitlines()) <= 25, file.name
        assert not re.search(r"^\s*(if|for|while) ", text, re.MULTILINE), file.name


def test_conda_environment_has_the_same_pins():
    pins = [line for line in (ROOT / "envs/requirements.txt").read_text().split("\n") if "==" in line]
    conda = yaml.safe_load((ROOT / "envs/streamlm.yaml").read_text())
    assert conda["dependencies"][-1] == {"pip": pins}


def test_everything_the_readme_shows_is_there():
    for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / link).is_file(), link
