"""Configs with faults at searched or drawn keys: each is refused in lines, or can be planned."""

from copy import deepcopy
from datetime import date

import pytest
import yaml
from changed_config import CONFIG, LINE, path_source, report
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlm.config import Compute, StreamConfig, find_method
from streamlm.experiment import plan
from streamlm.experiment.check import check_config, warn_beyond_training
from streamlm.measure.attention_maps import SentenceConfig
from streamlm.measure.latency import LatencyConfig
from streamlm.measure.sink_mass import SinkMassConfig
from streamlm.presses.batches import BatchConfig
from streamlm.presses.decoding import DecodeConfig
from streamlm.presses.prefill import ContextConfig
from streamlm.pretrain.scores import TwinSinks
from streamlm.pretrain.training import Training
from streamlm.pretrain.twins import TwinShape
from streamlm.stats import BootstrapConfig
from streamlm.tasks.methods import ComparedCaches
from streamlm.tasks.retrieval_text import RetrievalText
from streamlm.tasks.stream_text import StreamText


def paths(config, here=()):
    """Yield the path of every section, value and item."""
    items = config.items() if isinstance(config, dict) else enumerate(config)
    for key, item in items:
        yield (*here, key)
        if isinstance(item, (dict, list)):
            yield from paths(item, (*here, key))


def parent_of(config, path):
    for key in path[:-1]:
        config = config[key]
    return config


@pytest.mark.parametrize("wrong", [3.25, date(2024, 2, 29), {"a": "b"}, [[None]]], ids=str)
def test_wrong_type_anywhere_is_one_line_about_it(wrong):
    tried = 0
    for path in paths(CONFIG):
        config = deepcopy(CONFIG)
        parent = parent_of(config, path)
        has_limits = path in {("bootstrap", "confidence"), ("paper", "positions", "yarn")}
        if has_limits or isinstance(parent[path[-1]], type(wrong)):
            continue  # a number has its own limits, sections and lists their own faults
        parent[path[-1]] = wrong
        lines = [line for line in report(config) if not line.startswith("comparison.capacity: 256 must be")]
        assert len(lines) == 1
        assert lines[0].startswith(".".join(map(str, path)) + ": ")
        tried += 1
    assert tried > 80


def test_misspelt_key_anywhere_is_named_with_what_is_meant():
    tried = 0
    for path in paths(CONFIG):
        config = deepcopy(CONFIG)
        parent, key = parent_of(config, path), path[-1]
        if isinstance(parent, dict) and path[:-1] not in (("models",), ("corpora",)) and key != "kind":
            parent[f"{key}x"] = parent.pop(key)
            name = ".".join(map(str, path))
            lines = report(config)
            assert any(
                line.startswith(f"{name}x: ") and f" unknown key; did you mean {key}? known are " in line
                for line in lines
            )
            missing = [line for line in lines if "is missing" in line]
            assert len(missing) == 1
            assert f"{key!r} is missing; " in missing[0]
            tried += 1
    assert tried > 60


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.integers(-(2**70), 2**70),
    st.sampled_from([128, 256, 512, 1028, 4096, 10**12]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["auto", "cuda:0", "1e3", "float16", "path", "package", "text", "README.md", "pg19", "tests"]
    ),
    st.sampled_from(["RandomPress(seed={[]: 1})", "KnormPress\0", "SnapKVPress(**x)", "StreamingLLMPress()"]),
    st.dates(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@st.composite
def mutants(draw):
    """Draw a config of which some values are replaced, deleted, renamed or added."""
    config = deepcopy(CONFIG)
    if draw(st.booleans()):
        for corpus in config["corpora"].values():
            corpus["source"] = path_source("README.md")
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(list(paths(config)) or [None]))
        if path is None:
            break
        parent, key = parent_of(config, path), path[-1]
        match draw(st.sampled_from(["size", "replace", "borrow", "delete", "rename", "insert"])):
            case "size" if type(parent[key]) is int:
                parent[key] = draw(st.integers(1, 5000))
            case "replace" | "size":
                parent[key] = draw(VALUES)
            case "borrow":
                other = draw(st.sampled_from(list(paths(config))))
                parent[key] = deepcopy(parent_of(config, other)[other[-1]])
            case "delete":
                del parent[key]
            case "rename" if isinstance(parent, dict):
                parent[draw(st.text(max_size=6) | st.integers())] = parent.pop(key)
            case _ if isinstance(parent, dict):
                parent[draw(st.text(max_size=6))] = draw(VALUES)
            case _:
                parent.append(draw(VALUES))
    return config


def plan_everything(config):
    """Plan an experiment as the workflow does, and take its settings as the library does."""
    runs = plan.plan_runs(config)
    points = [*plan.window_ablation(config), *plan.sink_ablation(config)]
    labels = {plan.run_label(point) for point in points}
    labels |= {*plan.method_labels(config).values(), *plan.long_stream_labels(config)}
    labels |= {*plan.methods_along_labels(config)}.union(*plan.positions_labels(config).values())
    assert labels == runs.keys()
    for run in runs.values():
        find_method(run["method"]).geometry(StreamConfig(**run["cfg"]), run["max_eval_tokens"])
        Compute(**run["compute"])
    for method, n_sink in plan.latency_cases(config):
        for capacity in config["decoding_latency"]["capacities"]:
            assert plan.latency_label(method, capacity, n_sink)
            assert n_sink < capacity
    StreamConfig(**plan.long_run_geometry(config))
    compared = plan.plan_comparison(config)
    assert all(len(label) < 200 for label in [*runs, *compared])
    LatencyConfig(**plan.latency_settings(config))
    ContextConfig(**plan.compared_contexts(config))
    DecodeConfig(**plan.compared_decoding(config))
    BootstrapConfig(**config["bootstrap"])
    SentenceConfig(**config["paper"]["attention_maps"])
    SinkMassConfig(**plan.sink_mass_sizes(config))
    for text, of in ((StreamText, plan.stream_eval_settings), (RetrievalText, plan.retrieval_settings)):
        text(**of(config)["task"])
        ComparedCaches(**of(config)["kept"])
    BatchConfig(**plan.batch_settings(config)["batch"])
    TwinShape(**plan.twin_settings(config, "layers", "hidden", "heads", "context_tokens"))
    Training(**plan.twin_settings(config, "steps", "batch", "learning_rate"))
    TwinSinks(**plan.twin_settings(config, "n_sinks", "capacity"))
    plan.model_files(config, config["experiment"]["model"])
    titles = [config["corpora"][name]["title"] for name in config["experiment"]["corpora"]]
    assert len(set(titles)) == len(titles)
    assert all(LINE.fullmatch(f"  {line}") for line in warn_beyond_training(config))


@settings(max_examples=150)
@given(config=mutants())
def test_any_config_is_planned_or_refused_in_lines(config):
    config = yaml.load(yaml.dump(config), yaml.FullLoader)  # as a file would give it
    try:
        check_config(config)
    except ValueError:
        report(config)
    else:
        plan_everything(config)
