"""What becomes of the runs beside kvpress: records of one text, a table, three figures."""

import copy

import numpy as np
import pytest
from conftest import MODELS, VOCAB
from drawn import assert_printable, assert_tabled, assert_uncluttered, assert_written, bars, curves
from numpy.testing import assert_allclose

from streamlm.config import Compute
from streamlm.figures.presses import (
    plot_comparison_metrics_table,
    plot_implementation_comparison,
    plot_press_sweep,
)
from streamlm.presses.decoding import DecodeConfig, measure_decoding
from streamlm.presses.grammar import compared_methods
from streamlm.presses.prefill import ContextConfig, measure_compression
from streamlm.presses.setting import Setting
from streamlm.stats import BootstrapConfig, paired_increase
from streamlm.summaries.main import Run
from streamlm.summaries.presses import (
    COMPARISON_HEADERS,
    collect_comparison,
    comparison_rows,
    findings,
    refusals,
)

pytestmark = pytest.mark.kvpress

TEXTS = ("English Wikipedia sample", "Shakespeare, Project Gutenberg")
CONTEXTS = ContextConfig(contexts=2, context_tokens=40, scored_tokens=16)
DECODE = DecodeConfig(capacity=20, tokens=84, interval=4)
BOOTSTRAP = BootstrapConfig(block=8, resamples=100)
METHODS = compared_methods(2, ["KnormPress", "SnapKVPress(window_size=4)"])
BUDGETS = [10, 20, 30]


@pytest.fixture(scope="module", params=sorted(MODELS))
def measured(request, tmp_path_factory):
    """The runs of every method, by label, and of decoding."""
    folder = tmp_path_factory.mktemp(request.param)
    MODELS[request.param]().save_pretrained(folder)
    texts = {name: np.random.default_rng(i).integers(0, VOCAB, 200) for i, name in enumerate(TEXTS)}
    setting = Setting(
        model_dir=folder,
        title="SmolLM2-135M-Instruct, Q4_1 dequantised",
        texts=texts,
        compute=Compute(device="cpu", torch_threads=1),
        bootstrap=BOOTSTRAP,
    )
    same = {"contexts": CONTEXTS, "n_sink": 2, "budgets": BUDGETS}
    runs = {
        label: Run(*measure_compression(setting, method=method, **same)) for label, method in METHODS.items()
    }
    return runs, Run(*measure_decoding(setting, n_sink=2, decode=DECODE))


@pytest.fixture(scope="module")
def comparisons(measured):
    return [collect_comparison(*measured, text, 20, BOOTSTRAP)[1] for text in TEXTS]


def test_records_hold_what_was_measured_and_paired_differences(measured):
    runs, decoding = measured
    kvpress, both, ours = collect_comparison(runs, decoding, TEXTS[1], 20, BOOTSTRAP)
    assert list(kvpress["methods"]) == list(METHODS)
    assert (kvpress["method"], ours["method"]) == (METHODS["StreamingLLMPress"], "streamlm")
    assert both["decoding"]["dataset"] == ours["dataset"] == TEXTS[1]
    assert "decoding" not in kvpress
    assert list(ours["decoding"]["methods"]) == ["dense", "streamlm"]
    entry, losses = ours["methods"]["streamlm"]["budgets"][1], runs["streamlm"].losses[1]
    assert entry["capacity"] == ours["capacity"] == 20
    expected = paired_increase(losses[2], losses[0], BOOTSTRAP)
    assert entry["against_dense"].items() >= expected.items()
    assert ours["metrics"]["ppl_increase_percent"] == expected["ppl_increase_percent"]
    assert ours["metrics"]["compression_ratio"] == 0.5
    assert ours["metrics"]["speedup"] == ours["baseline"]["runtime_sec"] / ours["streaming"]["runtime_sec"]


def test_runs_of_other_contexts_or_machines_are_not_brought_together(measured):
    runs, decoding = measured
    for part, value, message in (
        (
            "contexts",
            {**runs["streamlm"].record["contexts"], "contexts": 1},
            "was not measured on the contexts",
        ),
        ("environment", {**runs["streamlm"].record["environment"], "processor": "Z80"}, "Z80"),
    ):
        other = copy.deepcopy(runs["KnormPress"].record) | {part: value}
        mixed = {**runs, "KnormPress": Run(other, runs["KnormPress"].losses)}
        with pytest.raises(ValueError, match=message):
            collect_comparison(mixed, decoding, TEXTS[0], 20, BOOTSTRAP)


def test_table_has_a_row_for_every_method_under_both_protocols(comparisons):
    rows = comparison_rows(comparisons)
    assert all(len(row) == len(COMPARISON_HEADERS) for row in rows)
    assert len(rows) == 2 * (1 + len(METHODS) + 5)
    first = comparisons[0]
    by_name = {row[1]: row for row in rows if row[0] == f"{TEXTS[0]}: decoded at 20"}
    entry = first["decoding"]["methods"]["streamlm"]
    assert by_name["streamlm"][2].startswith(f"{entry['perplexity']:.2f} ")
    assert by_name["kvpress as it is, every 4 tokens"][-1] != "-"
    refused = [part["method"] for part in first["methods"].values() if part["refused"]]
    assert [line.split(" is not")[0] for line in refusals(first)] == refused
    for name in refused:
        assert next(row for row in rows if row[1] == name)[2:] == ("-",) * 8
    assert "used faithfully and streamlm differ by at most" in findings(first)[0]
    assert any("after 20 rounds of eviction the first layer holds" in line for line in findings(first))


def test_sweep_draws_every_method_at_every_budget(comparisons):
    figure = plot_press_sweep(comparisons)
    everything = assert_uncluttered(figure)
    for name in (*TEXTS, "streamlm", "KnormPress", "interval: 95 %"):
        assert name in everything
    parts = [part for part in comparisons[1]["methods"].values() if part["budgets"]]
    for axes, key in zip(figure.axes[1::2], ("perplexity", "kl_nats"), strict=True):  # of the second text
        assert_allclose(curves(axes), [[entry[key] for entry in part["budgets"]] for part in parts])
    for line in refusals(comparisons[0]):
        assert line[:40] in everything  # a press that cannot work is named, with the reason


def test_implementations_are_drawn_with_the_records_numbers(comparisons):
    figure = plot_implementation_comparison(comparisons)
    everything = assert_uncluttered(figure)
    for name in (*TEXTS, "kvpress used faithfully", "kvpress as it is, every 4 tokens", "20 entries held"):
        assert name in everything
    decodings = [record["decoding"]["methods"] for record in comparisons]
    for axes, key in zip(figure.axes, ("perplexity", "kl_nats", "step_ms"), strict=False):
        expected = [decoding[label][key] for label in decodings[0] for decoding in decodings]
        assert_allclose(bars(axes), expected)
    held = decodings[0]["kvpress_every_4"]["survivors"]
    assert_allclose(curves(figure.axes[4])[-1], held["sinks"])
    assert_allclose(curves(figure.axes[5])[-1], held["recent"])


@pytest.mark.parametrize("plot", [plot_press_sweep, plot_implementation_comparison])
def test_every_number_drawn_is_tabled_and_readable(comparisons, plot, tmp_path):
    figure = plot(comparisons)
    assert_printable(figure)
    assert_tabled(figure, plot.__name__.removeprefix("plot_"), comparisons, tmp_path)


def test_every_number_of_the_metrics_table_is_in_its_file(comparisons, tmp_path):
    assert_written("comparison_metrics_table", comparisons, comparison_rows(comparisons), tmp_path)


def test_metrics_table_is_written_out(comparisons):
    everything = assert_uncluttered(plot_comparison_metrics_table(comparisons))
    for row in comparison_rows(comparisons):
        for cell in row[1:]:
            assert " ".join(cell.split()) in everything


@pytest.mark.parametrize(
    "plot", [plot_press_sweep, plot_implementation_comparison, plot_comparison_metrics_table]
)
def test_machines_are_never_mixed_in_a_figure(comparisons, plot):
    other = copy.deepcopy(comparisons[1])
    other["environment"]["processor"] = "Z80"
    with pytest.raises(ValueError, match="Z80"):
        plot([comparisons[0], other])
