from pathlib import Path

import yaml

from streamlm.config import METHODS
from streamlm.experiment import method_labels, plan_runs, sink_ablation

CONFIG = yaml.safe_load((Path(__file__).parent.parent / "config.yaml").read_text())


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
