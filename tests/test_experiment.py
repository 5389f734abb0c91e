from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

from streamlm.config import METHODS
from streamlm.experiment import check_config, method_labels, names_from, plan_runs, sink_ablation

ROOT = Path(__file__).parent.parent
CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())


HUB = {"kind": "hub", "repo": "org/name", "revision": "main"}
HUB_TEXT = HUB | {"format": "text", "config": None, "split": "test", "column": "text", "rows": None}


def changed(path, value):
    config = deepcopy(CONFIG)
    *parents, last = path.split(".")
    place = config
    for key in parents:
        place = place[key]
    place[last] = value
    return config


def test_default_config_has_no_fault():
    check_config(CONFIG)


def test_config_of_the_hub_laid_over_the_default_has_no_fault():
    config = deepcopy(CONFIG)
    update_config(config, yaml.safe_load((ROOT / "configs" / "pythia-70m.yaml").read_text()))
    check_config(config)
    assert names_from(config, "corpora", hub=True) == "wikitext-103|pg19-book"
    assert names_from(config, "models", hub=True) == "pythia-70m"


def test_every_distinct_geometry_is_run_once():
    runs = plan_runs(CONFIG)
    # dense, recompute; 5 windows; per capacity 6 sink counts, of which 4+1024 and 4+256 are also windows;
    # of the long stream dense, window and 2 capacities
    assert len(runs) == 2 + 5 + 12 - 2 + 4
    assert len({(run["max_eval_tokens"], *run["options"].items()) for run in runs.values()}) == len(runs)


def test_methods_of_the_main_comparison_hold_the_same_capacity():
    runs, labels = plan_runs(CONFIG), method_labels(CONFIG)
    assert list(labels) == list(METHODS)
    window, streaming = (runs[labels[method]]["options"] for method in ("window", "streaming"))
    assert window["n_sink"] + window["window_size"] == streaming["n_sink"] + streaming["window_size"] == 1028
    assert (window["method"], streaming["method"]) == ("window", "streaming")


def test_sink_ablation_holds_the_capacity_fixed():
    assert {n_sink + window_size for n_sink, window_size in sink_ablation(CONFIG)} == {1028, 260}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("experiment.n_sinks", 4, "experiment: unknown key 'n_sinks'; known are "),
        ("experiment.n_sink", 0, "experiment.n_sink: 0 is too small; use 1 or more"),
        ("experiment.n_sink", 4.0, "experiment.n_sink: 4.0 must be of type integer"),
        ("experiment.window_ablation.n_sink", -1, "window_ablation.n_sink: -1 is too small; use 0 or more"),
        ("experiment", None, "experiment: None must be of type object"),
        ("experiment.5", 1, "experiment: unknown key '5'"),
        ("results_dir", "README.md", "results_dir: 'README.md' does not match"),
        ("corpora.pg19.title", "English Wikipedia sample", "two are titled 'English Wikipedia sample'"),
        ("corpora.pg19.source", {"kind": "path", "format": "text", "path": "no.txt"}, "there is no no.txt"),
        ("experiment.window_size", 0, "experiment.window_size: 0 is too small; use 1 or more"),
        ("experiment.window_size", "1e3", "'1e3' must be of type integer; write digits without quotes"),
        ("experiment.model", "gpt5", "'gpt5' is not under models; use one of smollm2-135m-instruct"),
        ("experiment.corpora", ["c4"], "'c4' is not under corpora"),
        ("experiment.sink_ablation.capacities", [16], "capacity 16 leaves no window beside 16 sinks"),
        ("long_stream.capacities", [4, 256], "long_stream: capacity 4 leaves no window beside 4 sinks"),
        ("long_stream.max_eval_tokens", 400, "max_eval_tokens: 400 tokens never fill the largest cache, 512"),
        ("decoding_latency.n_sinks", [4, 512], "decoding_latency: capacity 512 leaves no window beside 512"),
        ("decoding_latency.runs", 1, "decoding_latency.runs: 1 is too small; use 2 or more"),
        ("decoding_latency.long_run.capacity", 3, "decoding_latency.long_run: capacity 3 leaves no window"),
        ("experiment.max_eval_tokens", 2000, "2000 tokens never fill the largest cache, 2052"),
        ("compute.dtype", "float8", "'float8' is not known; use one of float32"),
        ("bootstrap.block", 16, "bootstrap.block: 16 is too small; use 128 or more"),
        ("corpora.pg19.source", {"kind": "path"}, "corpora.pg19.source: 'path' is missing; add it"),
        ("models.m", {"source": {"kind": "path", "path": "x"}}, "models.m: 'title' is missing; add it"),
        (
            "models.m",
            {"title": "M", "source": HUB | {"repo": "m"}},
            "models.m.source.repo: 'm' does not match",
        ),
        (
            "models.m",
            {"title": "M", "source": HUB | {"split": "test"}},
            "models.m.source: unknown key 'split'",
        ),
        (
            "models.m",
            {"title": "M", "source": {"kind": "ftp", "path": "x"}},
            "'ftp' is not known; use one of package, path, hub",
        ),
        ("corpora.pg19.source", HUB_TEXT | {"rows": 0}, "corpora.pg19.source.rows: 0 is too small"),
        (
            "corpora.pg19.source",
            HUB_TEXT | {"format": "xml"},
            "'xml' is not known; use one of wikitext, text",
        ),
        ("corpora.pg19.source", HUB_TEXT | {"trust_remote_code": True}, "unknown key 'trust_remote_code'"),
    ],
)
def test_fault_is_one_line_with_key_value_and_remedy(path, value, message):
    with pytest.raises(ValueError) as caught:
        check_config(changed(path, value))
    (line,) = str(caught.value).splitlines()[1:]
    assert message in line


def test_all_faults_are_reported_at_once():
    config = changed("experiment.n_sink", -1)
    config["compute"]["dtype"] = "float8"
    config["typo"] = 1
    with pytest.raises(ValueError) as caught:
        check_config(config)
    assert len(str(caught.value).splitlines()) == 4
