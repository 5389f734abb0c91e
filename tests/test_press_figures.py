"""What becomes of the runs beside kvpress: records of one text, a table, three figures."""

import copy

import numpy as np
import pytest
from conftest import MODELS, VOCAB
from drawn import across, assert_printable, assert_tabled, assert_uncluttered, assert_written, bars, curves
from numpy.testing import assert_allclose

from streamlm.config import Compute
from streamlm.figures.comparison_metrics_table import plot_comparison_metrics_table
from streamlm.figures.implementation_comparison import plot_implementation_comparison
from streamlm.figures.press_sweep import plot_press_sweep
from streamlm.presses.decoding import DecodeConfig, measure_decoding
from streamlm.presses.grammar import compared_methods
from streamlm.presses.prefill import ContextConfig, measure_compression
from streamlm.presses.setting import Setting
from streamlm.stats import BootstrapConfig, paired_increase
from streamlm.summaries.main import Run
from streamlm.summaries.press_findings import findings, notes_on_presses, press_findings
from streamlm.summaries.presses import collect_comparison, comparison_rows, entry_at
from streamlm.summaries.tables import as_text

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
        model_dir=folder, texts=texts, bootstrap=BOOTSTRAP, compute=Compute(device="cpu", torch_threads=1),
        title="SmolLM2-135M-Instruct, Q4_1 dequantised",
    )  # fmt: skip
    runs = {
        label: Run(*measure_compression(setting, method=method, contexts=CONTEXTS, budgets=BUDGETS, n_sink=2))
        for label, method in METHODS.items()
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
    entry, losses = ours["methods"]["streamlm"]["budgets"][1], runs["streamlm"].losses[0, 1]
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
            "was not measured on the contexts, sinks and budgets",
        ),
        ("environment", {**runs["streamlm"].record["environment"], "processor": "Z80"}, "Z80"),
    ):
        other = copy.deepcopy(runs["KnormPress"].record) | {part: value}
        mixed = {**runs, "KnormPress": Run(other, runs["KnormPress"].losses)}
        with pytest.raises(ValueError, match=message):
            collect_comparison(mixed, decoding, TEXTS[0], 20, BOOTSTRAP)


def test_table_has_a_row_for_every_method_under_both_protocols(comparisons):
    rows = comparison_rows(comparisons)
    assert len(rows) == 2 * (1 + len(METHODS) + 6)
    first = comparisons[0]
    decoded = [row for row in rows if (row["text"], row["protocol"]) == (TEXTS[0], "decoded at 20")]
    by_name = {row["method"]: row for row in decoded}
    assert by_name["streamlm"]["perplexity"] == first["decoding"]["methods"]["streamlm"]["perplexity"]
    assert by_name["streamlm"]["largest_difference_nats"] is None
    assert by_name["kvpress, interval 4"]["largest_difference_nats"] > 0
    refused = [part["method"] for part in first["methods"].values() if part["refused"]]
    assert [line.split(" is not")[0] for line in notes_on_presses(first)] == refused
    for name in refused:
        assert next(row for row in rows if row["method"] == name).keys() == {"text", "protocol", "method"}
    assert "(re-rotated, interval 1) differ by at most" in findings(first)[0]
    assert any("after 20 rounds of eviction, the first layer keeps" in line for line in findings(first))


def test_sweep_draws_the_paired_differences_of_every_method_at_every_budget(comparisons):
    figure = plot_press_sweep(comparisons)
    everything = assert_uncluttered(figure)
    for name in (*TEXTS, "KnormPress", "dense", "10 entries kept", "intervals: 95 %"):
        assert name in everything
    for record, row in zip(comparisons, np.reshape(figure.axes, (2, 2)), strict=True):
        parts = {label: part for label, part in record["methods"].items() if part["budgets"]}
        ours = parts.pop("streamlm")
        for axes, key in zip(row, ("ppl_increase_percent", "kl_difference_nats"), strict=True):
            drawn = [container.lines[0].get_xdata(orig=False) for container in axes.containers]
            for i in range(len(BUDGETS)):
                expected = [part["budgets"][i]["against_streamlm"][key] for part in parts.values()]
                assert_allclose(drawn[i][1:], expected)
            ends = [part["budgets"][0]["against_streamlm"][f"{key}_interval"] for part in parts.values()]
            assert_allclose(across(axes)[1 : len(parts) + 1], ends)
        assert_allclose(drawn[1][0], -ours["budgets"][1]["kl_nats"])  # dense is nearer to itself by this
    for line in notes_on_presses(comparisons[0]):
        assert line[:40] in everything  # a press that cannot work is named, with the reason


def test_chance_is_a_note_and_does_not_stretch_the_axes(comparisons):
    plain = plot_press_sweep(comparisons)
    with_random = copy.deepcopy(comparisons)
    for record in with_random:
        record["methods"]["RandomPress-seed-0"] = record["methods"]["KnormPress"] | {
            "method": "RandomPress(seed=0)"
        }
    figure = plot_press_sweep(with_random)
    for axes, other in zip(figure.axes, plain.axes, strict=True):
        assert axes.get_xlim() == other.get_xlim()
    entry = comparisons[0]["methods"]["KnormPress"]["budgets"][0]["against_streamlm"]
    change = f"10 kept: {entry['ppl_increase_percent']:+.1f} %, {entry['kl_difference_nats']:+.3f} nats"
    assert f"not drawn, RandomPress(seed=0), {TEXTS[0]}: {change}" in assert_uncluttered(figure)


def test_findings_name_a_press_where_the_interval_excludes_zero(comparisons):
    record = copy.deepcopy(comparisons[0])
    against = entry_at(record["methods"]["KnormPress"], 20)["against_streamlm_dense_prefill"]
    for interval, words in (
        ([-0.3, -0.1], "nearer to dense: KnormPress (-0.200 [-0.300, -0.100])"),
        ([0.1, 0.3], "further from dense: KnormPress (0.200 [0.100, 0.300])"),
        ([-0.3, 0.1], "KnormPress (-0.100 [-0.300, 0.100])"),
    ):
        against |= {"kl_difference_nats": sum(interval) / 2, "kl_difference_nats_interval": interval}
        (line,) = press_findings(record)
        assert words in line
    start = "Cut once to 20 of 40, difference of mean KL from dense to streamlm, prefilled densely, nats: "
    assert line.startswith(start)


def test_presses_of_other_budgets_are_not_paired(measured):
    runs, decoding = measured
    other = copy.deepcopy(runs["KnormPress"].record)
    for text in other["texts"]:
        text["budgets"].reverse()
    mixed = {**runs, "KnormPress": Run(other, runs["KnormPress"].losses)}
    with pytest.raises(ValueError, match="not measured on the contexts, sinks and budgets"):
        collect_comparison(mixed, decoding, TEXTS[0], 20, BOOTSTRAP)


def test_differences_are_paired_token_by_token(measured, comparisons):
    runs, _ = measured
    entry = entry_at(comparisons[1]["methods"]["KnormPress"], 20)
    losses, divergences = runs["KnormPress"].losses[:, 1, 2].astype("f8")
    for label in ("streamlm", "streamlm_dense_prefill"):
        other = runs[label].losses[:, 1, 2].astype("f8")
        found = entry[f"against_{label}"]
        assert found["nll_difference_nats"] == pytest.approx((losses - other[0]).mean(), abs=1e-12)
        assert found["kl_difference_nats"] == pytest.approx((divergences - other[1]).mean(), abs=1e-12)
        low, high = found["kl_difference_nats_interval"]
        assert low <= found["kl_difference_nats"] <= high


def test_scores_of_another_version_are_refused(measured):
    runs, decoding = measured
    old = {label: Run(run.record, run.losses[0]) for label, run in runs.items()}
    with pytest.raises(ValueError, match="of another version of streamlm has no divergences; measure again"):
        collect_comparison(old, decoding, TEXTS[0], 20, BOOTSTRAP)


def test_implementations_are_drawn_with_the_records_numbers(comparisons):
    figure = plot_implementation_comparison(comparisons)
    everything = assert_uncluttered(figure)
    for name in (*TEXTS, "kvpress, re-rotated, interval 1", "kvpress, interval 4", "20 entries kept"):
        assert name in everything
    decodings = [record["decoding"]["methods"] for record in comparisons]
    for axes, key in zip(figure.axes, ("perplexity", "kl_nats", "step_ms"), strict=False):
        expected = [decoding[label][key] for label in decodings[0] for decoding in decodings]
        assert_allclose(bars(axes), expected)
    held = decodings[0]["kvpress_every_4"]["survivors"]
    assert_allclose(curves(figure.axes[4])[-2], held["sinks"])
    assert_allclose(curves(figure.axes[5])[-2], held["recent"])


@pytest.mark.parametrize("plot", [plot_press_sweep, plot_implementation_comparison])
def test_figures_hold_any_number_of_texts_methods_and_budgets(comparisons, plot):
    many = []
    for name in ("English Wikipedia sample", "Shakespeare, Project Gutenberg", "War and Peace", "Notes"):
        record = copy.deepcopy(comparisons[0]) | {"dataset": name}
        record["decoding"] |= {"dataset": name}
        for part in record["methods"].values():
            part["budgets"] += [entry | {"capacity": entry["capacity"] + 3} for entry in part["budgets"]]
        for i in range(6):
            press = f"AdaKVPress(ExpectedAttentionPress(epsilon=0.{i}1))"
            record["methods"][f"press{i}"] = record["methods"]["KnormPress"] | {"method": press}
        many.append(record)
    for records in (many, many[:1]):
        everything = assert_uncluttered(plot(records))
        assert all(record["dataset"] in everything for record in records)


@pytest.mark.parametrize("plot", [plot_press_sweep, plot_implementation_comparison])
def test_every_number_drawn_is_tabled_and_readable(comparisons, plot, tmp_path):
    figure = plot(comparisons)
    assert_printable(figure)
    assert_tabled(figure, plot.__name__.removeprefix("plot_"), comparisons, tmp_path)


def test_every_number_of_the_metrics_table_is_in_its_file(comparisons, tmp_path):
    assert_written("comparison_metrics_table", comparisons, tmp_path)


def test_metrics_table_is_written_out(comparisons):
    everything = assert_uncluttered(plot_comparison_metrics_table(comparisons))
    for row in as_text(comparison_rows(comparisons))[1]:
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
