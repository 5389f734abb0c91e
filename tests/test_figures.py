import copy
import re
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from conftest import VOCAB, score_by_name, tiny_llama
from drawn import (
    assert_printable,
    assert_tabled,
    assert_uncluttered,
    assert_written,
    bars,
    error_bars,
    lines,
)
from numpy.testing import assert_allclose
from PIL import Image

from streamlm.cache.attention import streaming_mask
from streamlm.config import METHODS
from streamlm.figures.ablation_n_sink import plot_ablation_n_sink
from streamlm.figures.ablation_window_size import plot_ablation_window_size
from streamlm.figures.main_comparison import plot_main_comparison
from streamlm.figures.results_summary import plot_results_summary
from streamlm.figures.schemes import DRAWN, SKETCH, plot_schemes, sketch_of
from streamlm.figures.style import (
    save_figures,
)
from streamlm.records.files import write_array, write_json
from streamlm.stats import BootstrapConfig
from streamlm.summaries.main import collect_ablation, collect_result, result_rows
from streamlm.summaries.tables import as_text

PACKAGE = Path(__file__).parent.parent / "streamlm"
TEXTS = ("English Wikipedia sample", "Shakespeare, Project Gutenberg", "Letters of a random typewriter, 1890")
BOOTSTRAP = BootstrapConfig(block=16, resamples=200)
WINDOWS, CAPACITIES, SINKS = (8, 16, 32), (20, 36), (0, 1, 2, 4, 8, 16)
CHANGE = "ppl_increase_percent"
COMPARED = [name for name, method in METHODS.items() if method.is_compared]


@pytest.fixture(scope="session")
def measure(tmp_path_factory):
    """A function that scores 300 random ids with a tiny model, once per setting, and returns the path."""
    folder = tmp_path_factory.mktemp("figures")
    tiny_llama(max_position_embeddings=512).save_pretrained(folder / "model")

    def measured(text, method, n_sink, window_size):
        path = folder / text / f"{method}_{n_sink}_{window_size}.json"
        if not path.exists():
            ids = np.random.default_rng(TEXTS.index(text)).integers(VOCAB, size=300)
            record, losses = score_by_name(
                model_dir=folder / "model", ids=ids, dataset=text, method=method, n_sink=n_sink,
                window_size=window_size, positions=8, device="cpu", torch_threads=1, bootstrap=BOOTSTRAP,
                title="SmolLM2-135M-Instruct, Q4_1 dequantised",
            )  # fmt: skip
            record["environment"]["processor"] = "AMD EPYC 9R14 96-Core Processor"
            write_json(path, record)
            write_array(path.with_suffix(".npy"), losses)
        return path

    return measured


@pytest.fixture(scope="session")
def results(measure):
    return [
        collect_result({method: measure(text, method, 4, 28) for method in COMPARED}, BOOTSTRAP)
        for text in TEXTS
    ]


@pytest.fixture(scope="session")
def ablate(measure):
    """A function that returns the ablation of a kind over some texts."""

    def ablated(kind, texts):
        by_capacity = [(n, capacity - n) for capacity in CAPACITIES for n in SINKS]
        sizes = by_capacity if kind == "n_sink" else [(4, window) for window in WINDOWS]
        runs = [measure(text, "streaming", *size) for text in texts for size in sizes]
        return collect_ablation(kind, [measure(text, "dense", 4, 28) for text in texts], runs, BOOTSTRAP)

    return ablated


def assert_readable(figure, texts):
    """The figure is uncluttered; every name is there."""
    everything = assert_uncluttered(figure)
    setting = ("SmolLM2-135M-Instruct, Q4_1 dequantised", "AMD EPYC 9R14 96-Core Processor", "300 tokens")
    for name in (*texts, *setting, "intervals: 95 % moving-block bootstrap, within this text"):
        assert name in everything


@pytest.mark.parametrize("n_texts", [1, 2, 3])
def test_main_comparison_shows_the_records_numbers(results, n_texts):
    figure = plot_main_comparison(results[:n_texts])
    assert_readable(figure, TEXTS[:n_texts])
    parts = [result["methods"][method] for method in COMPARED for result in results[:n_texts]]
    perplexity, runtime, speedup, dropped = figure.axes
    assert_allclose(bars(perplexity), [part["common"]["perplexity"] for part in parts])
    assert_allclose(error_bars(perplexity), [part["common"]["perplexity_interval"] for part in parts])
    assert_allclose(bars(runtime), [part["streaming"]["runtime_sec"] or 0 for part in parts])
    assert_allclose(bars(speedup), [part["metrics"]["speedup"] or 0 for part in parts])
    assert_allclose(bars(dropped), [100 * part["metrics"]["compression_ratio"] for part in parts])
    for axes in figure.axes:
        written = [text.get_text().replace(",", "") for text in axes.texts]
        assert written.count("n/a") == (n_texts if axes in (runtime, speedup) else 0)  # of recompute
        numbers = [0 if text == "n/a" else float(text) for text in written]
        assert_allclose(numbers, bars(axes), rtol=1e-3, atol=0.005)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [label.split(": ")[1] for label in legend] == [
        "all tokens",
        "0+32 tokens",
        "0+32 tokens",
        "4+28 tokens",
    ]


def test_main_comparison_draws_bars_over_their_own_text(results):
    figure = plot_main_comparison(results)
    centres = [container[0].get_center()[0] for container in figure.axes[0].containers if len(container) == 1]
    assert np.round(centres).tolist() == [0, 1, 2] * len(COMPARED)
    ticks = [label.get_text().replace("\n", " ") for label in figure.axes[0].get_xticklabels()]
    assert ticks == list(TEXTS)


def test_missing_values_are_named_not_drawn(results):
    changed = copy.deepcopy(results)
    for part in changed[0]["methods"].values():
        part["metrics"]["speedup"] = part["common"] = None
    figure = plot_main_comparison(changed)
    assert_readable(figure, TEXTS)
    others = len(TEXTS) - 1  # there recompute has no speed-up either
    for axes, expected in ((figure.axes[0], len(COMPARED)), (figure.axes[2], len(COMPARED) + others)):
        assert [text.get_text() for text in axes.texts].count("n/a") == expected


@pytest.mark.parametrize("texts", [TEXTS[:1], TEXTS[:2], TEXTS])
@pytest.mark.parametrize(
    ("kind", "plot", "line_key"),
    [
        ("window_size", plot_ablation_window_size, "n_sink"),
        ("n_sink", plot_ablation_n_sink, "capacity"),
    ],
)
def test_ablation_shows_the_records_numbers(ablate, texts, kind, plot, line_key):
    ablation = ablate(kind, texts)
    figure = plot([ablation])
    assert_readable(figure, texts)
    upper, lower = figure.axes[: len(texts)], figure.axes[len(texts) :]
    for text, above, below in zip(texts, upper, lower, strict=True):
        rows = [row for row in ablation["rows"] if row["dataset"] == text]
        rows.sort(key=lambda row: (row[line_key], row[kind]))
        commons, dense = [row["common"] for row in rows], ablation["baseline"][text]["common"]
        for axes, key in ((above, "perplexity"), (below, CHANGE)):
            places, values = lines(axes)
            assert_allclose(np.concatenate(values), [common[key] for common in commons])
            assert_allclose(error_bars(axes), [common[f"{key}_interval"] for common in commons])
            ticks = dict(zip(axes.get_xticks(), axes.get_xticklabels(), strict=True))
            places = np.concatenate(places)
            nearest = [min(ticks, key=lambda tick: abs(tick - place)) for place in places]
            assert_allclose(places, nearest, atol=0.2)
            assert [ticks[tick].get_text() for tick in nearest] == [str(row[kind]) for row in rows]
        assert above.get_title().startswith(f"{text}\ndense: {dense['perplexity']:.2f} [")
        references = [line.get_ydata()[0] for line in above.lines if line.get_label().startswith("_child")]
        assert dense["perplexity"] in references
        band = above.patches[0].get_extents().transformed(above.transData.inverted())
        assert_allclose([band.y0, band.y1], dense["perplexity_interval"])


def test_every_number_drawn_is_tabled(results, ablate, tmp_path):
    assert_tabled(plot_main_comparison(results), "main_comparison", results, tmp_path)
    for kind, plot in (("window_size", plot_ablation_window_size), ("n_sink", plot_ablation_n_sink)):
        ablation = ablate(kind, TEXTS)
        assert_tabled(plot([ablation]), f"ablation_{kind}", [ablation], tmp_path)


def test_every_number_of_the_summary_is_in_its_file(results, tmp_path):
    assert_written("results_summary", results, tmp_path)


def test_window_axis_is_logarithmic(ablate):
    axes = plot_ablation_window_size([ablate("window_size", TEXTS[:1])]).axes[0]
    assert_allclose(np.diff(axes.get_xticks()), np.diff(np.log2(WINDOWS)))


def test_one_window_makes_a_figure(ablate):
    ablation = ablate("window_size", TEXTS[:1])
    ablation["rows"] = ablation["rows"][:1]
    assert_readable(plot_ablation_window_size([ablation]), TEXTS[:1])


@pytest.mark.parametrize("factor", [1.2, 300])
def test_a_collapse_without_sinks_is_written_and_leaves_the_rest_readable(ablate, factor):
    ablation = ablate("n_sink", TEXTS[:2])
    for row in ablation["rows"]:
        common, scale = row["common"], factor if row["n_sink"] == 0 else 1
        value = 100 * (scale - 1) + row["n_sink"] / 10
        common |= {CHANGE: value, f"{CHANGE}_interval": [value - 0.5, value + 0.5]}
        common |= {"perplexity": 600 * scale, "perplexity_interval": [400 * scale, 800 * scale]}
    figure = plot_ablation_n_sink([ablation])
    assert_readable(figure, TEXTS[:2])
    for axes in figure.axes[:2]:
        assert axes.get_yscale() == ("log" if factor == 300 else "linear")
    for axes in figure.axes[2:]:
        low, high = axes.get_ylim()
        assert low < -0.4
        assert 2.1 < high < 4
        change = f"{100 * (factor - 1):+,.0f} %"
        assert axes.texts[0].get_text().split("\n")[1:] == [f"{size}: {change}" for size in CAPACITIES]


def test_only_a_row_far_off_is_left_out_of_the_scale(ablate):
    ablation = ablate("n_sink", TEXTS[:1])
    for row in ablation["rows"]:
        value = 1.0 if row["n_sink"] else {20: 119.0, 36: 3.0}[row["capacity"]]
        row["common"] |= {CHANGE: value, f"{CHANGE}_interval": [value - 0.5, value + 0.5]}
    axes = plot_ablation_n_sink([ablation]).axes[1]
    assert axes.texts[0].get_text() == "off scale ↑\n20: +119 %"
    assert 3.5 < axes.get_ylim()[1] < 10


def test_equal_changes_keep_every_point_in_view(ablate):
    ablation = ablate("n_sink", TEXTS[:1])
    for row in ablation["rows"]:
        row["common"] |= {CHANGE: 1.0, f"{CHANGE}_interval": [0.5, 1.5]}
    axes = plot_ablation_n_sink([ablation]).axes[1]
    assert not axes.texts
    low, high = axes.get_ylim()
    assert low < 0
    assert high > 1.5


@pytest.mark.parametrize("n_texts", [1, 3])
def test_summary_writes_every_cell(results, n_texts):
    figure = plot_results_summary(results[:n_texts])
    assert_readable(figure, TEXTS[:n_texts])
    written = [" ".join(text.get_text().split()) for text in figure.axes[0].texts]
    headings, rows = as_text(result_rows(results[:n_texts]))
    names = [result["dataset"] for result in results[:n_texts]]
    assert sorted(written) == sorted([*headings, *names, *(cell for row in rows for cell in row[1:])])


def test_schemes_show_costs_and_the_records_perplexities(results, tmp_path):
    figure = plot_schemes(results[:2])
    assert_printable(figure)
    assert_uncluttered(figure)
    for axes, method in zip(figure.axes, COMPARED, strict=True):
        written = " ".join(axes.texts[0].get_text().split())
        assert f"attention: {METHODS[method].cost}" in written
        for result in results[:2]:
            perplexity = result["methods"][method]["common"]["perplexity"]
            assert f"{result['dataset']}: {perplexity:,.2f}" in written
    assert_written("schemes", results, tmp_path)


def test_sketches_are_the_masks_of_the_library():
    tokens = torch.arange(SKETCH)
    for method in METHODS.values():
        mask = streaming_mask(tokens, tokens, method.geometry(DRAWN, SKETCH))
        drawn = sketch_of(method)
        assert np.array_equal(drawn[-1], mask.numpy()[-1]), method.name
        assert np.array_equal(drawn, mask.numpy()) or method.sketch is not None, method.name


def test_figures_hold_any_number_of_methods(results, monkeypatch):
    for i, style in enumerate(("#cc79a7", "#56b4e9"), 1):
        added = replace(METHODS["streaming"], name=f"added{i}", title=f"added method {i}", color=style)
        monkeypatch.setitem(METHODS, added.name, added)
    more = copy.deepcopy(results[:2])
    for result in more:
        result["methods"] |= dict.fromkeys(("added1", "added2"), result["methods"]["streaming"])
    for plot in (plot_main_comparison, plot_schemes, plot_results_summary):
        assert "added method 2" in assert_uncluttered(plot(more))


@pytest.fixture(scope="session")
def drawn(results, ablate):
    """A function that draws one of the figures."""
    plots = {
        "main": lambda: plot_main_comparison(results[:2]),
        "table": lambda: plot_results_summary(results[:2]),
        "window_size": lambda: plot_ablation_window_size([ablate("window_size", TEXTS[:2])]),
        "n_sink": lambda: plot_ablation_n_sink([ablate("n_sink", TEXTS[:2])]),
    }
    return lambda name: plots[name]()


@pytest.mark.parametrize("name", ["main", "table", "window_size", "n_sink"])
def test_same_record_gives_the_same_bytes_and_nothing_but_the_picture(drawn, name, tmp_path, monkeypatch):
    names = [f"{name}.png", f"{name}.pdf"]
    save_figures([tmp_path / file for file in names], drawn(name))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")  # as if drawn in another year
    save_figures([tmp_path / "again" / file for file in names], drawn(name))
    for file in names:
        assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    with Image.open(tmp_path / names[0]) as image:
        assert set(image.info) == {"dpi", "Software"}
        assert image.info["Software"] == "streamlm"
        assert_allclose(image.info["dpi"], 300, rtol=1e-3)
    pdf = (tmp_path / names[1]).read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/Subtype /Type0" in pdf  # letters as letters,
    assert b"/Type3" not in pdf
    assert b"/Subtype /Image" not in pdf  # lines as lines
    assert b"/Creator (streamlm)" in pdf
    assert not re.search(rb"/(CreationDate|ModDate|Producer)", pdf)


@pytest.mark.parametrize("name", ["main", "window_size", "n_sink"])
def test_letters_are_readable_in_print(drawn, name):
    assert_printable(drawn(name))


def test_figures_of_one_text_fit_a_column(ablate):
    figure = plot_ablation_n_sink([ablate("n_sink", TEXTS[:1])])
    assert figure.get_figwidth() <= 3.5
    assert_readable(figure, TEXTS[:1])


def test_plotting_leaves_the_settings_of_matplotlib_alone(results, tmp_path):
    before = dict(matplotlib.rcParams)
    save_figures([tmp_path / "table.png"], plot_results_summary(results))
    assert dict(matplotlib.rcParams) == before
