"""The workflow on a tiny model: it runs whole, a second run is idle, an edit reruns what depends on it."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from project import ROOT, run_smoke, snakemake

from streamlm.figures.catalogue import MAIN_FIGURES, PAPER_FIGURES, TASK_FIGURES, TWIN_FIGURES
from streamlm.provenance import code_fingerprint

# Jobs of `plot_figure` are named by their figure.
LOSS_PLOTS = {
    "plot_schemes", "plot_main_comparison", "plot_results_summary", "plot_ablation_window_size",
    "plot_ablation_n_sink", "plot_long_stream",
}  # fmt: skip
COMPARED_PLOTS = {
    "plot_implementation_comparison", "plot_comparison_metrics_table", "plot_press_sweep"
}  # fmt: skip
PLOTS = {f"plot_{name}" for name in MAIN_FIGURES}
COLLECTS = {
    "collect_result", "collect_ablation_window_size", "collect_ablation_n_sink", "collect_long_stream"
}  # fmt: skip
SHOWN = COLLECTS | LOSS_PLOTS | {"write_summary", "write_answer"}  # of the losses
SCORED = SHOWN | {"measure_perplexity"}
TIMED_SHOWN = {"write_latency_summary", "plot_decoding_latency"}
TIMING = {"measure_latency", "measure_long_run"}
TIMED = TIMED_SHOWN | TIMING
COMPARED_SHOWN = COMPARED_PLOTS | {"collect_comparison", "write_comparison_summary"}
LATENCY_FIGURE = "plot_decoding_latency"
COMPARING = {"measure_compression", "measure_decoding"}
COMPARED = COMPARED_SHOWN | COMPARING
MEASURING = {"measure_perplexity"} | TIMING | COMPARING
FIGURE = {"plot_figure"}
SHOWING = COLLECTS | FIGURE | {
    "write_answer", "write_summary", "write_latency_summary", "collect_comparison",
    "write_comparison_summary",
}  # fmt: skip
MAIN = {
    "collect_result", "plot_schemes", "plot_main_comparison", "plot_results_summary", "write_summary",
    "write_answer",
}  # fmt: skip
WINDOWS = {"collect_ablation_window_size", "plot_ablation_window_size", "write_summary"}
SINKS = {"collect_ablation_n_sink", "plot_ablation_n_sink", "write_summary"}
SHORT = MAIN | WINDOWS | SINKS
LONG = {"collect_long_stream", "plot_long_stream"}
ONE_TEXT = {"measure_perplexity": 9, "collect_result": 1, "collect_long_stream": 1}
READING = {"extract_sample", "tokenise_corpus"}
FROM_HUB = {"fetch_model", "fetch_sample"}
FETCHING = {"fetch_archive", "convert_model"} | FROM_HUB


def planned(place, overlay=None):
    """Return how many jobs of each rule a dry run lists."""
    done = snakemake(place, "-n", overlay=overlay)
    assert done.returncode == 0, done.stdout + done.stderr
    table = re.search(r"^job +count\n-+ +-+\n(.*?)^total", done.stdout, re.MULTILINE | re.DOTALL)
    jobs = dict(line.split() for line in table[1].splitlines()) if table else {}
    figures = re.findall(r"^    wildcards: figure=(\w+)$", done.stdout, re.MULTILINE)
    assert len(figures) == int(jobs.pop("plot_figure", 0))
    jobs |= {f"plot_{figure}": 1 for figure in figures}
    return {rule: int(count) for rule, count in jobs.items() if rule != "all"}


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
    for name in MAIN_FIGURES:
        assert (results / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (results / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        for suffix in ("csv", "tex", "html"):
            assert (results / "tables" / f"{name}.{suffix}").stat().st_size > 100
    summary = (results / "experiment_summary.md").read_text()
    assert "<h1>What sinks + window lose and save</h1>" in (results / "answer.html").read_text()
    result = json.loads((results / "streaming_llm" / "readme_result.json").read_text())
    assert result["model"] == "tiny untrained Llama"
    assert result["dataset"] == "README of this project" in summary
    assert result["environment"]["torch_threads"] == len(os.sched_getaffinity(0))
    # 4 distinct geometries, recompute, 4 long streams and 4 of the paper, of 2 texts
    assert len(list((results / "runs").glob("*/*.json"))) == 26
    assert len(list((results / "twins").glob("*/model.safetensors"))) == 3
    for name in (*PAPER_FIGURES, *TASK_FIGURES, *TWIN_FIGURES):
        assert (results / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "# The paper by number" in (results / "paper.md").read_text()
    assert len(list(results.glob("decoding_latency_*_*_sink*.json"))) == 8  # 4 methods, 2 capacities
    assert "# What a decoded token costs" in (results / "decoding_latency_summary.md").read_text()
    assert all(place.is_dir() and not any(place.iterdir()) for place in (results / "checkpoints").glob("*"))
    for text in ("readme", "makefile"):
        for name in ("kvpress/{}_result", "kvpress/{}_comparison", "streaming_llm/{}_comparison"):
            assert (
                json.loads((results / f"{name.format(text)}.json").read_text())["baseline"]["perplexity"] > 1
            )


def test_every_record_says_what_made_it(finished):
    results = finished / "results" / "smoke"
    records = [path for path in results.rglob("*.json") if path.parent.parent != results / "twins"]
    assert len(records) > 40  # the others are configs of models
    for path in records:
        text = path.read_text()
        environment = json.loads(text)["environment"]
        assert environment["packages"]["torch"], path
        assert environment["device"].startswith(("cpu", "cuda")), path
        measures = "pretrain/training" if path.parent == results / "twins" else "cache/rope"
        assert any(file.startswith(f"streamlm/{measures}.py ") for file in environment["code"]), path
        assert re.search(r'"sha256": "[0-9a-f]{64}"', text), path


def test_second_run_does_nothing(finished):
    assert planned(finished) == {}


@pytest.mark.parametrize(
    ("file", "old", "new", "rules"),
    [
        ("streamlm/figures/style.py", "", "SPARE = 1\n", PLOTS | {"write_answer"}),
        ("streamlm/figures/long_stream.py", "FIGURE =", "SPARE = 1\nFIGURE =", {"plot_long_stream"}),
        ("streamlm/figures/schemes.py", "of arXiv:2309.17453", "of the paper", {"plot_schemes"}),
        ("streamlm/summaries/presses.py", "AS_IS =", "SPARE = 1\nAS_IS =", COMPARED_SHOWN),
        ("streamlm/measure/latency.py", "PROTOCOL =", "SPARE = 1\nPROTOCOL =", TIMED),
        (
            "streamlm/summaries/long_stream.py",
            "PART =",
            "SPARE = 1\nPART =",
            LONG,
        ),
        (
            "streamlm/cache/rope.py",
            "import torch\n",
            "import torch\nSPARE = 1\n",
            SCORED | TIMED | COMPARED,
        ),
        (
            "streamlm/sources/documents.py",
            "import re\n",
            "import re\nSPARE = 1\n",
            READING | SCORED | TIMED | COMPARED,
        ),
        ("workflow/scripts/write_summary.py", "import sys", "import sys\nspare = 1", {"write_summary"}),
    ],
)
def test_edit_reruns_what_depends_on_it(finished, edit, file, old, new, rules):
    edit(file, old, new)
    assert set(planned(finished)) == rules


def test_edit_of_what_no_result_depends_on_reruns_nothing(finished, edit):
    edit("streamlm/cli.py", "app =", "SPARE = 1\napp =")
    edit("streamlm/experiment/plan.py", "Config =", "SPARE = 1\nConfig =")
    edit("streamlm/cache/rope.py", "import torch\n", "import torch  # a comment\n")
    edit("streamlm/measure/perplexity.py", '"""', '"""Another docstring. ')
    edit("workflow/scripts/measure_perplexity.py", "import", "import")  # a touch
    edit("README.md", "#", "#")  # an input's
    edit("config.yaml", "results_dir: results", "results_dir: results  # a comment")
    assert planned(finished) == {}


# How many jobs each part of the small experiment has; its 2 texts have 5 short and 4 long runs each.
EVERYTHING = {
    "measure_perplexity": 18, "measure_latency": 2, "measure_long_run": 1, "measure_compression": 5,
    "measure_decoding": 1, "collect_result": 2, "collect_long_stream": 2, "collect_comparison": 2,
    **dict.fromkeys({"collect_ablation_window_size", "collect_ablation_n_sink"}, 1),
    **dict.fromkeys(PLOTS | {"write_answer", "write_summary", "write_latency_summary"}, 1),
    "write_comparison_summary": 1,
}  # fmt: skip


CHANGES = [
    ("results_dir: results/other", EVERYTHING, {}),
    ("models: {a: {title: a, source: {kind: path, path: data/smoke/model}}}\nexperiment: {model: a}",
     {"tokenise_corpus"} | EVERYTHING.keys(), {"tokenise_corpus": 2}),
    # Captions name the texts in order.
    ("experiment: {corpora: [makefile, readme]}", TIMED | COMPARED | PLOTS | {"write_answer"}, {}),
    ("experiment: {max_eval_tokens: 401}", SHORT, {"measure_perplexity": 10}),
    ("experiment: {n_sink: 5}", MAIN, {"measure_perplexity": 6}),
    ("experiment: {window_size: 29}", MAIN, {"measure_perplexity": 6}),
    ("experiment: {recompute_positions: 9}", MAIN, {"measure_perplexity": 2}),
    ("experiment: {window_ablation: {n_sink: 3}}", WINDOWS, {"measure_perplexity": 4}),
    ("experiment: {window_ablation: {window_sizes: [8, 16, 28]}}", WINDOWS, {"measure_perplexity": 2}),
    ("experiment: {sink_ablation: {capacities: [32, 33]}}", SINKS, {"measure_perplexity": 4}),
    ("experiment: {sink_ablation: {n_sinks: [0, 2, 4]}}", SINKS, {"measure_perplexity": 2}),
    ("long_stream: {max_eval_tokens: 3001}", LONG, {"measure_perplexity": 4}),
    ("long_stream: {baseline_tokens: 1501}", LONG, {"measure_perplexity": 4}),
    ("long_stream: {n_sink: 5}", LONG, {"measure_perplexity": 4}),
    ("long_stream: {capacities: [16, 32, 64]}", LONG, {"measure_perplexity": 4}),
    ("long_stream: {dtype: bfloat16}", LONG, {"measure_perplexity": 8}),
    ("decoding_latency: {capacities: [32, 64, 96]}", TIMED_SHOWN, {"measure_latency": 1}),
    ("decoding_latency: {n_sinks: [4, 5]}", TIMED_SHOWN, {"measure_latency": 2}),
    ("decoding_latency: {warmup_tokens: 2}", TIMED_SHOWN, {"measure_latency": 2}),
    ("decoding_latency: {long_run: {tokens: 101}}", TIMED_SHOWN, {"measure_long_run": 1}),
    ("comparison: {n_sink: 5}", COMPARED, {}),
    ("comparison: {capacity: 16}", COMPARED - {"measure_compression"}, {}),
    ("comparison: {budgets: [16, 24, 32]}", COMPARED - {"measure_decoding"}, {}),
    ("comparison: {scored_tokens: 25}", COMPARED - {"measure_decoding"}, {}),
    ("comparison: {decode: {tokens: 41}}", COMPARED - {"measure_compression"}, {}),
    ("comparison: {presses: [SnapKVPress(window_size=8), KnormPress]}", COMPARED_SHOWN,
     {"measure_compression": 1}),
    ("paper: {recompute_positions: 17}", {}, {}),  # of another target
    ("tasks: {samples: 2}", {}, {}),  # likewise
    ("compute: {dtype: bfloat16}", SHORT | TIMED | COMPARED, {"measure_perplexity": 10}),
    ("compute: {torch_threads: 1}", EVERYTHING, {}),
    ("bootstrap: {seed: 1}", SCORED | COMPARED, {}),
    ("models: {tiny: {title: other}}", EVERYTHING, {}),
    ("models: {spare: {title: unused, source: {kind: path, path: data/smoke/model}}}", {}, {}),
    ("corpora: {readme: {title: other}}", READING | EVERYTHING.keys(), ONE_TEXT),
    ("corpora: {makefile: {title: other}}", READING | SCORED | COMPARED | {LATENCY_FIGURE}, ONE_TEXT),
    ("corpora: {makefile: {add_bos: true}}", {"tokenise_corpus"} | SCORED | COMPARED, ONE_TEXT),
    ("corpora: {makefile: {max_samples: 1}}", {"tokenise_corpus"} | SCORED | COMPARED, ONE_TEXT),
    ("corpora: {makefile: {source: {path: config.yaml}}}", READING | SCORED | COMPARED, ONE_TEXT),
]  # fmt: skip


@pytest.mark.parametrize(("change", "rules", "counts"), CHANGES)
def test_change_of_the_config_reruns_what_depends_on_it(finished, tmp_path, change, rules, counts):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(change)
    usual = {**EVERYTHING, **dict.fromkeys(READING, 1)}
    assert planned(finished, overlay) == {rule: usual[rule] for rule in rules} | counts


def test_every_section_of_the_config_is_changed():
    changed = {section for change, *_ in CHANGES for section in yaml.safe_load(change)}
    assert changed == yaml.safe_load((ROOT / "config.yaml").read_text()).keys()


def test_kvpress_is_imported_in_stages_of_its_own_alone():
    scripts = (ROOT / "workflow" / "scripts").glob("*.py")
    using = {
        script.stem
        for script in scripts
        if any(part.startswith("streamlm/presses/adapter.py") for part in code_fingerprint(script))
    }
    asking = {"measure_stream_eval", "measure_retrieval", "measure_batches"}
    assert using == asking | {"measure_compression", "measure_decoding"}
    files = set((ROOT / "streamlm").rglob("[!_]*.py"))
    # These need Triton and lm_eval, which need not be there.
    files -= {ROOT / "streamlm/cache/quantized_attention.py", *(ROOT / "streamlm/harness").glob("*.py")}
    modules = ", ".join(".".join(file.relative_to(ROOT).with_suffix("").parts) for file in sorted(files))
    code = f"import sys, {modules}; sys.exit('kvpress' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_bytes_of_an_input_rerun_what_is_made_of_them(finished, edit):
    edit("Makefile", "#", "# Another word:")
    usual = {rule: EVERYTHING[rule] for rule in SCORED | COMPARED}
    assert planned(finished) == usual | ONE_TEXT | dict.fromkeys(READING, 1)


def test_overwritten_weights_are_scored_again(finished, edit):
    edit("data/smoke/model/config.json", "{", "{ ")
    assert planned(finished) == EVERYTHING | {"tokenise_corpus": 2}


def test_another_model_is_measured_in_a_folder_of_its_own(finished, tmp_path):
    other = {"title": "Another model", "source": {"kind": "path", "path": "data/smoke/model"}}
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"paper": {"models": ["other"]}, "models": {"other": other}}))
    done = snakemake(finished, "-n", "paper", overlay=overlay)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE))
    assert {name: int(count) for name, count in counts.items()} == {
        "tokenise_corpus": 2, "measure_other_model": 8, "collect_other_model": 2, "plot_figure": 1,
        "paper": 1, "total": 14,
    }  # fmt: skip
    assert "results/smoke/models/other/runs/readme/long_recompute.json" in done.stdout


# The last one on the finished experiment: a record is gone after it.
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
    assert "the model in data/smoke/model cannot be read: " in done.stdout + done.stderr
    assert not (finished / "results/smoke/runs/readme/sink4_window9.json").exists()


def test_profile_is_in_force():
    profile = yaml.safe_load((ROOT / "profiles/default/config.yaml").read_text())
    assert "code" not in profile["rerun-triggers"]
    assert profile["cores"] == 1


def test_every_script_rule_takes_its_own_fingerprint():
    for file in (ROOT / "workflow" / "rules").glob("*.smk"):
        for rule in re.split(r"^(?:use )?rule ", file.read_text(), flags=re.MULTILINE)[1:]:
            if re.match(r"\w+ as ", rule):  # another rule with other files: it has that one's script
                assert (
                    "params:" not in rule or 'code=code_of("workflow/scripts/measure_perplexity.py")' in rule
                )
                continue
            (script,) = re.findall(r'script:\s+"\.\./(scripts/\w+\.py)"', rule)
            (code,) = re.findall(r'code=(?:lambda wildcards: )?code_of\(\s*"workflow/([\w/.]+)"', rule)
            assert script == code


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
