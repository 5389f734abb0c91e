"""What is made of what `snakemake paper` measures: records, figures, the page, verdicts."""

import json
import re
import shutil

import numpy as np
import pytest
from conftest import score_by_name
from drawn import assert_printable, assert_tabled, assert_uncluttered, assert_written
from numpy.testing import assert_allclose
from small_twins import train_twins
from test_figures import BOOTSTRAP
from test_paper_measures import SHARED, TEXTS, TITLE

from streamlm.config import StreamConfig
from streamlm.experiment.verdicts import CONFIRMED, CONSISTENT, REFUTED, SAMPLED, verify_results
from streamlm.figures.attention_maps import plot_attention_maps
from streamlm.figures.catalogue import FIGURES, PAPER_FIGURES, find_figure
from streamlm.figures.methods_along import plot_methods_along
from streamlm.figures.positions import plot_positions
from streamlm.figures.sink_mass import plot_sink_mass
from streamlm.figures.sink_tokens import plot_sink_tokens
from streamlm.measure.attention_maps import (
    SentenceConfig,
    measure_attention_maps,
)
from streamlm.measure.sink_mass import SinkMassConfig, measure_sink_mass
from streamlm.measure.sink_tokens import measure_sink_tokens
from streamlm.records.fields import check_record
from streamlm.records.files import read_losses, read_record, write_array, write_json
from streamlm.records.paper import MethodsAlongRecord, PositionsRecord
from streamlm.summaries.escape import escape_markdown
from streamlm.summaries.main import collect_ablation
from streamlm.summaries.methods_along import PART, collect_methods_along
from streamlm.summaries.paper import ITEMS, MISSING, paper_page
from streamlm.summaries.positions import collect_positions, position_summary
from streamlm.summaries.sink_mass import collect_sink_mass
from streamlm.summaries.twins import collect_twins
from streamlm.tasks.methods import ComparedCaches
from streamlm.tasks.stream_eval import measure_stream_eval
from streamlm.tasks.stream_text import StreamText

# Positions and methods along a stream


RUNS = {
    "whole": ("dense", 0, 5000, 5000), "sinkless": ("window", 0, 16, 5000),
    "dense": ("dense", 0, 2500, 2100), "window": ("window", 0, 64, 2500),
    "recompute": ("recompute", 4, 60, 5000),
    "cache": ("streaming", 4, 60, 5000), "small": ("streaming", 4, 12, 5000),
    "text": ("text_positions", 4, 60, 5000), "small_text": ("text_positions", 4, 12, 5000),
    "yarn_text": ("text_positions", 4, 12, 5000),
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory, prose_model):
    """Paths of runs over each text, by name."""
    place, paths = tmp_path_factory.mktemp("runs"), {}
    for seed, text in enumerate(TEXTS):
        stream = np.random.default_rng(seed).integers(256, size=5000)
        for name, (method, n_sink, window_size, n_tokens) in RUNS.items():
            record, losses = score_by_name(
                model_dir=prose_model, ids=stream[:n_tokens], dataset=text, method=method, n_sink=n_sink,
                window_size=window_size, bootstrap=BOOTSTRAP, title=TITLE, positions=20,
                **({"yarn": 4.0} if name == "yarn_text" else {}),
            )  # fmt: skip
            path = place / text / f"{name}.json"
            write_json(path, record)
            write_array(path.with_suffix(".npy"), losses)
            paths.setdefault(text, {})[name] = path
    return paths


def collected(runs):
    in_text = ("small_text", "text", "yarn_text")
    return [
        collect_positions([paths["small"], paths["cache"]], [paths[name] for name in in_text], BOOTSTRAP)
        for paths in runs.values()
    ]


def test_positions_are_paired_by_geometry(runs):
    for record, paths in zip(collected(runs), runs.values(), strict=True):
        check_record(record, PositionsRecord, "it")
        pairs = (("small_text", "small"), ("text", "cache"), ("yarn_text", "small"))
        for row, (name, partner) in zip(record["rows"], pairs, strict=True):
            apart = read_losses(paths[name]).astype(float) - read_losses(paths[partner])
            assert_allclose(row["difference_nats"], [apart[:PART].mean(), apart[PART : 2 * PART].mean()])
            assert_allclose(row["past_trained"]["nll_difference_nats"], apart[3000:].mean())
            assert_allclose(
                row["within_trained"]["nll_difference_nats"], apart[row["capacity"] : 3000].mean()
            )
            assert (np.abs(apart[: row["capacity"]]) < 1e-4).all() or "yarn" in row
        assert record["rows"][-1]["yarn"] == 4
        assert record["rows"][0]["difference_nats"] != record["rows"][2]["difference_nats"]
    rows = position_summary(collected(runs))
    assert [row["kept"] for row in rows[:3]] == ["4+12", "4+60", "4+12, stretched 4 times (YaRN)"]


def part_losses(tmp_path, runs, name, values):
    """Return a copy of a run with other losses."""
    paths = runs[TEXTS[0]]
    path = tmp_path / f"{name}.json"
    path.write_text(paths[name].read_text())
    write_array(path.with_suffix(".npy"), values.astype(np.float32))
    return path


@pytest.mark.parametrize(
    ("levels", "apart_from"), [([0, 1], PART), ([1, 1], 0), ([1, 0], None), ([0, 0], None), ([-1, 1], PART)]
)
def test_the_length_at_which_they_part(tmp_path, runs, levels, apart_from):
    noise = np.random.default_rng(0).normal(0, 0.1, 4999)
    noise -= noise.mean()
    level = np.repeat([*levels, levels[-1]], PART)[:4999]
    zero = part_losses(tmp_path, runs, "cache", np.zeros(4999))
    text = part_losses(tmp_path, runs, "text", level + noise)
    (row,) = collect_positions([zero], [text], BOOTSTRAP)["rows"]
    if levels != [0, 0]:
        assert row["apart_from"] == apart_from


def test_a_run_without_partner_is_refused(runs):
    paths = runs[TEXTS[0]]
    with pytest.raises(ValueError, match=r"no run with positions in the cache keeps 4\+60"):
        collect_positions([paths["small"]], [paths["text"]], BOOTSTRAP)
    with pytest.raises(ValueError, match="stream of tokens"):
        collect_positions([paths["small"]], [runs[TEXTS[1]]["small_text"]], BOOTSTRAP)


ALONG = ("dense", "window", "recompute", "cache")


def test_methods_along_are_means_of_stretches(runs):
    for paths in runs.values():
        record = collect_methods_along([paths[name] for name in ALONG], BOOTSTRAP)
        check_record(record, MethodsAlongRecord, "it")
        for row, name in zip(record["rows"], ALONG, strict=True):
            losses = read_losses(paths[name]).astype(float)
            parts = [losses[start : start + PART].mean() for start in range(0, len(losses) - PART + 1, PART)]
            assert row["tokens_seen"] == [PART * (i + 1) for i in range(len(parts))]
            if name == "recompute":
                assert row["sampled"] == 20
                assert (np.ptp(row["nll_interval"], axis=1) > 0).all()
                sample = json.loads(paths[name].read_text())["recomputed"]
                at, drawn = np.array(sample["positions"]), np.array(sample["losses_nats"])
                for i, mean in enumerate(row["nll_nats"]):
                    here = at // PART == i
                    share = 1 if i else 1 - row["capacity"] / PART  # before it all methods are the same
                    assert_allclose(mean, parts[i] + share * (drawn[here] - losses[at[here]]).mean())
            else:
                assert_allclose(row["nll_nats"], parts)


def test_a_stretch_without_a_recomputed_token_is_refused(tmp_path, runs):
    path = runs[TEXTS[0]]["recompute"]
    record = json.loads(path.read_text())
    first = [i for i, position in enumerate(record["recomputed"]["positions"]) if position < PART]
    for key in ("positions", "losses_nats"):
        record["recomputed"][key] = [x for i, x in enumerate(record["recomputed"][key]) if i not in first]
    copy = tmp_path / "recompute.json"
    copy.write_text(json.dumps(record))
    write_array(copy.with_suffix(".npy"), read_losses(path))
    with pytest.raises(ValueError, match="no token from 0 to 2,048 was recomputed"):
        collect_methods_along([copy], BOOTSTRAP)


# Figures and the page


STREAM = StreamText(lines=12, every=4, distances=[2, 5], streams=2, candidates=3)


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    return train_twins(tmp_path_factory.mktemp("twins"))


@pytest.fixture(scope="module")
def records(prose_model, prose_ids, runs, twins):
    """Records of every kind, of both texts, by the name of their figure."""
    sizes = SinkMassConfig(n_sink=4, capacity=20, contexts=2, context_tokens=150, stream_tokens=1000)
    sentences, cfg = SentenceConfig(sentences=8, sentence_tokens=6), StreamConfig(n_sink=4, window_size=60)
    ablation = collect_ablation(
        "n_sink",
        [paths["whole"] for paths in runs.values()],
        [paths[name] for paths in runs.values() for name in ("cache", "small", "sinkless")],
        BOOTSTRAP,
    )
    texts = [
        {"model_dir": prose_model, "ids": text, "dataset": name, **SHARED} for name, text in prose_ids.items()
    ]
    return {
        "ablation_n_sink": [ablation],
        "ablation_window_size": [ablation],
        "positions": collected(runs),
        "methods_along": [
            collect_methods_along([paths[name] for name in ALONG], BOOTSTRAP) for paths in runs.values()
        ],
        "attention_maps": [measure_attention_maps(sentences=sentences, **text)[0] for text in texts],
        "sink_mass": [collect_sink_mass(measure_sink_mass(sizes=sizes, **text), ablation) for text in texts],
        "sink_tokens": [measure_sink_tokens(cfg=cfg, **text)[0] for text in texts],
        "stream_eval": [
            measure_stream_eval(
                model_dir=prose_model,
                cfg=STREAM,
                kept=ComparedCaches(n_sink=2, capacities=[24, 16], presses=[]),
                **{key: value for key, value in SHARED.items() if key != "dataset"},
            )
        ],
        "twins": [collect_twins([read_record(path) for path in twins.values()])],
    }


@pytest.mark.parametrize("name", PAPER_FIGURES)
@pytest.mark.parametrize("n_texts", [1, 2])
def test_figures_are_printable_and_their_tables_complete(tmp_path, records, name, n_texts):
    drawn = records[name][:n_texts]
    figure = find_figure(name).plot(drawn)
    assert_uncluttered(figure)
    if n_texts == 2 and name != "sink_tokens":
        assert_printable(figure)
    if name == "sink_tokens":
        assert_written(name, drawn, tmp_path)
    elif name != "attention_maps":  # its table has the share of the first token alone
        assert_tabled(figure, name, drawn, tmp_path)


def test_curves_are_those_of_the_records(records):
    for record, axes in zip(records["positions"], plot_positions(records["positions"]).axes[:2], strict=True):
        for row, curve in zip(record["rows"], lines_of(axes), strict=False):
            assert_allclose(curve, row["difference_nats"])
    figure = plot_methods_along(records["methods_along"])
    for record, axes in zip(records["methods_along"], figure.axes, strict=True):
        for row, curve in zip(record["rows"], lines_of(axes), strict=False):
            assert_allclose(curve, row["nll_nats"])
    record = records["sink_mass"][0]
    by_layer = plot_sink_mass([record]).axes[0]
    first = [100 * layer["share"][0] for layer in record["methods"]["dense"]]
    assert_allclose(lines_of(by_layer)[0], first)
    image = plot_attention_maps(records["attention_maps"][:1]).axes[0].images[0]
    layer = records["attention_maps"][0]["layers"][0]
    assert_allclose(image.get_array()[2, :3], layer["logits"][2])
    assert plot_sink_tokens(records["sink_tokens"])


@pytest.fixture
def results(tmp_path, records, runs, prose_model, prose_ids, twins):
    """A results folder with the records of one text, and the tokens of all its runs."""
    text, paths = next(iter(runs.items()))
    labels = {
        "dense": "long_dense", "window": "long_sink0_window64", "recompute": "long_recompute",
        "cache": "long_sink4_window60", "small": "long_sink4_window12",
        "text": "long_text_positions_sink4_window60", "small_text": "long_text_positions_sink4_window12",
        "yarn_text": "long_yarn_text_positions_sink4_window12",
    }  # fmt: skip
    for name, label in labels.items():
        for suffix in (".json", ".npy"):
            target = tmp_path / "results" / "runs" / "notes" / f"{label}{suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(paths[name].with_suffix(suffix).read_bytes())
    place = tmp_path / "results" / "paper"
    for name in PAPER_FIGURES:
        pattern = find_figure(name).records.pattern
        write_json(tmp_path / "results" / pattern.format(corpus="notes"), records[name][0])
    write_json(place / "twins.json", records["twins"][0])
    shutil.copytree(next(iter(twins.values())).parent, place / "twins")
    write_json(tmp_path / "results/streaming_llm/ablation_n_sink.json", records["ablation_n_sink"][0])
    write_json(place / "runs" / "notes_sink_mass.json", {
        key: value for key, value in records["sink_mass"][0].items() if key != "ablation"
    })  # fmt: skip
    losses = measure_sink_tokens(
        model_dir=prose_model,
        ids=prose_ids[text],
        dataset=text,
        cfg=StreamConfig(n_sink=4, window_size=60),
        **SHARED,
    )[1]
    write_array(place / "notes_sink_tokens.npy", losses)
    write_array(tmp_path / "tokens" / "notes.npy", np.random.default_rng(0).integers(256, size=5000))
    return tmp_path / "results"


def verified(results, prose_model):
    found = verify_results(
        results, model_dir=prose_model, tokens_dir=results.parent / "tokens", max_tokens=300, device="cpu",
        title=TITLE,
    )  # fmt: skip
    return {verdict.name: verdict for verdict in found if verdict.name.startswith(("paper/", "runs/"))}


def test_verify_follows_every_record(results, prose_model, twins):
    found = verified(results, prose_model)
    assert all(found[f"runs/notes/{path.name}"].rescored for path in (results / "runs/notes").glob("*.json"))
    assert found["runs/notes/long_yarn_text_positions_sink4_window12.json"].outcome == SAMPLED
    outcomes = {name: verdict.outcome for name, verdict in found.items() if name.startswith("paper/")}
    assert outcomes == {
        **{f"paper/notes_{name}.json": CONFIRMED for name in ("positions", "methods_along", "sink_mass")},
        **{f"paper/notes_{name}.json": CONSISTENT for name in ("attention_maps", "sink_tokens")},
        "paper/runs/notes_sink_mass.json": CONSISTENT,
        "paper/stream_eval.json": CONSISTENT,
        "paper/twins.json": CONFIRMED,
        **{f"paper/twins/{path.name}": CONSISTENT for path in twins.values()},
    }


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("notes_positions", ("rows", 1, "difference_nats", 0), 0.5),
        ("notes_methods_along", ("rows", 2, "nll_nats", 1), 0.5),
        ("notes_sink_mass", ("along", "share", 0), 0.5),
        ("notes_sink_tokens", ("rows", 3, "common", "perplexity"), 5.0),
        ("notes_attention_maps", ("layers", 0, "first_token_by_head", 1), 1.5),
        ("stream_eval", ("rows", 1, "distances", 0, "chosen_share"), 0.55),
        ("twins", ("twins", 2, "rows", 0, "common", "perplexity"), 5.0),
        ("twins/plain_seed0", ("rows", 0, "common", "perplexity"), 5.0),
        ("twins/zero_sink_seed1", ("layers", 0, "first_token_by_head", 0), -0.5),
    ],
)
def test_verify_refutes_a_changed_number(results, prose_model, name, path, value):
    file = results / "paper" / f"{name}.json"
    record = json.loads(file.read_text())
    section = record
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    file.write_text(json.dumps(record))
    assert verified(results, prose_model)[f"paper/{name}.json"].outcome == REFUTED


def test_every_model_is_a_row_of_the_methods_along_a_stream(tmp_path, records):
    both = records["methods_along"]
    for inside, model in (("", TITLE), ("models/b/", "Another model")):
        for corpus, record in zip(("pg19", "wikitext"), both[::-1], strict=True):
            write_json(tmp_path / f"{inside}paper/{corpus}_methods_along.json", {**record, "model": model})
    read = find_figure("methods_along").records.read(tmp_path)
    assert [(record["model"], record["dataset"]) for record in read] == [
        (model, text) for model in (TITLE, "Another model") for text in TEXTS
    ]
    figure = plot_methods_along(read)
    written = assert_uncluttered(figure)
    assert_printable(figure)
    assert_tabled(figure, "methods_along", read, tmp_path)
    assert len(figure.axes) == 4
    assert "Another model" in written


def lines_of(axes):
    return [np.asarray(line.get_ydata(orig=False), float) for line in axes.lines]


def test_page_has_every_item_and_its_numbers(records, prose_ids):
    page = paper_page(records)
    for item in ITEMS:
        assert f"\n## {item.number}: {item.shows}\n" in page
        assert item.figure is None or item.status != MISSING
        assert item.figure is None or item.figure in FIGURES
    assert "{" not in page
    assert f"{escape_markdown(TITLE)} instead of Llama-2-7B, and 8 sentences of 6 tokens" in page
    assert "the last 128 tokens of 2 contexts of 150 instead" in page
    assert f"and {len(prose_ids[TEXTS[0]]):,} tokens of each text instead of 400,000" in page
    assert "and 5,000 tokens of each text; `long_stream" in page
    assert page.count("float32, cpu") == sum((item.records or item.figure) in records for item in ITEMS)
    assert "```text\n" + "\n".join(records["stream_eval"][0]["example"].splitlines()[:6]) in page
    size = f"{records['twins'][0]['parameters']:,}"
    assert f"3 models of {size} parameters that read bytes, 6 steps each and 2 seeds" in page
    n_here = sum(item.status != MISSING for item in ITEMS)
    assert f"{n_here} of {len(ITEMS)}" in page
    row = records["sink_tokens"][0]["rows"][1]
    assert re.search(rf"\| line feeds +\| 4\+60 +\| {row['common']['perplexity']:.2f} \[", page)
    assert re.search(r"\| Llama-2-7B, 4,096 tokens \| 3359.95 +\| 11.88 ", page)
    anchors = {
        "".join(c for c in line[3:].lower() if c.isalnum() or c in " -").replace(" ", "-")
        for line in page.splitlines()
        if line.startswith("## ")
    }
    assert set(re.findall(r"\]\(#(.+?)\)", page)) == anchors
