from copy import deepcopy
from pathlib import Path

import yaml
from snakemake.utils import update_config

from streamlm.config import METHODS
from streamlm.experiment.check import check_config
from streamlm.experiment.plan import method_labels, names_from, plan_runs, sink_ablation

ROOT = Path(__file__).parent.parent
CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())


def test_config_of_the_hub_laid_over_the_default_has_no_fault():
    config = deepcopy(CONFIG)
    update_config(config, yaml.safe_load((ROOT / "configs" / "pythia-70m.yaml").read_text()))
    check_config(config)
    assert names_from(config, "corpora", hub=True) == "wikitext-103|pg19-book"
    assert names_from(config, "models", hub=True) == "pythia-70m"


def test_every_distinct_geometry_is_run_once():
    runs = plan_runs(CONFIG)
    # dense, recompute; 5 windows; per capacity 6 sink counts, of which 4+1024 and 4+256 are also windows;
    # of the long stream dense, window, recompute and 3 capacities; 3 in the text, one of them stretched
    assert len(runs) == 2 + 5 + 12 - 2 + 6 + 4
    assert len({repr(run) for run in runs.values()}) == len(runs)


def test_methods_of_the_main_comparison_hold_the_same_capacity():
    runs, labels = plan_runs(CONFIG), method_labels(CONFIG)
    assert list(labels) == [name for name in METHODS if name != "text_positions"]
    window, streaming = (runs[labels[method]] for method in ("window", "streaming"))
    assert sum(window["cfg"].values()) == sum(streaming["cfg"].values()) == 1028
    assert (window["method"], streaming["method"]) == ("window", "streaming")


def test_sink_ablation_holds_the_capacity_fixed():
    assert {cfg.capacity for cfg in sink_ablation(CONFIG)} == {1028, 260}
