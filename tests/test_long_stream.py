"""Far past the trained length: the record shows the losses, the figure shows the record."""

import numpy as np
import pytest
from conftest import VOCAB, score_by_name, tiny_llama
from drawn import assert_printable, assert_tabled, assert_uncluttered, curves
from numpy.testing import assert_allclose
from test_figures import BOOTSTRAP

from streamlm.figures.long_stream import plot_long_stream
from streamlm.records.files import read_losses, read_record, write_array, write_json
from streamlm.stats import BootstrapConfig, describe_losses
from streamlm.summaries.long_stream import PART, collect_long_stream, running_interval

TEXTS = ("English Wikipedia sample", "Shakespeare, Project Gutenberg")
SIZES = (
    ("dense", 0, 2000, 2000),
    ("window", 0, 64, 5000),
    ("streaming", 4, 12, 5000),
    ("streaming", 4, 60, 5000),
)


@pytest.fixture(scope="session")
def long_runs(tmp_path_factory):
    """Paths of the runs over each text."""
    folder = tmp_path_factory.mktemp("long")
    tiny_llama(max_position_embeddings=1500).save_pretrained(folder / "model")
    paths = {}
    for seed, text in enumerate(TEXTS):
        ids = np.random.default_rng(seed).integers(VOCAB, size=5000)
        for method, n_sink, window_size, n_tokens in SIZES:
            record, losses = score_by_name(
                model_dir=folder / "model", ids=ids[:n_tokens], dataset=text, method=method, n_sink=n_sink,
                window_size=window_size, device="cpu", torch_threads=1, bootstrap=BOOTSTRAP,
                title="SmolLM2-135M-Instruct, Q4_1 dequantised",
            )  # fmt: skip
            path = folder / text / f"{method}_{window_size}.json"
            write_json(path, record)
            write_array(path.with_suffix(".npy"), losses)
            paths.setdefault(text, []).append(path)
    return paths


@pytest.fixture
def streams(long_runs):
    return [collect_long_stream(paths, BOOTSTRAP) for paths in long_runs.values()]


def test_curves_are_those_of_the_losses(streams, long_runs):
    for stream, paths in zip(streams, long_runs.values(), strict=True):
        reference = read_losses(paths[-1]).astype(np.float64)
        for row, path in zip(stream["rows"], paths, strict=True):
            losses = read_losses(path).astype(np.float64)
            n = len(losses) // PART
            assert row["tokens_seen"] == [PART * (i + 1) for i in range(n)]
            assert_allclose(
                row["running_perplexity"], [np.exp(losses[: PART * (i + 1)].mean()) for i in range(n)]
            )
            parts = (losses - reference[: len(losses)])[: n * PART].reshape(n, PART).mean(axis=1)
            assert_allclose(row["part_difference_nats"], parts, atol=1e-12)
            past = row["past_trained_length"]
            assert past["scored"] == len(losses) - 1500
            assert past["nll_difference_nats"] == pytest.approx(
                (losses - reference[: len(losses)])[1500:].mean()
            )
            scores = read_record(path)["streaming"]
            assert row["kv_bytes"][-1] * (len(losses) if row["method"] == "dense" else 1) == pytest.approx(
                scores["kv_bytes"] * (n * PART if row["method"] == "dense" else 1)
            )


def test_memory_of_dense_grows_and_that_of_the_others_does_not(streams):
    dense, *bounded = streams[0]["rows"]
    assert_allclose(np.diff(dense["kv_bytes"]), dense["kv_bytes"][0])
    for row in bounded:
        assert len(set(row["kv_bytes"])) == 1


def test_long_stream_shows_the_records_numbers(streams):
    figure = plot_long_stream(streams)
    written = assert_uncluttered(figure)
    for column, stream in zip(np.reshape(figure.axes, (3, 2)).T, streams, strict=True):
        perplexity, difference, memory = column
        rows = stream["rows"]
        for axes, key, drawn in (
            (perplexity, "running_perplexity", rows),
            (difference, "part_difference_nats", rows[:-1]),
        ):
            for values, row in zip(curves(axes), drawn, strict=True):
                assert_allclose(values, row[key])
        for values, row in zip(curves(memory), rows, strict=True):
            assert_allclose(values, np.array(row["kv_bytes"]) / 2**20)
        assert [line.get_xdata()[0] for line in perplexity.lines if len(line.get_xdata()) == 2] == [1500]
    for name in (
        *TEXTS,
        "SmolLM2-135M-Instruct, Q4_1 dequantised",
        "5,000 tokens",
        "to 1,536",
        "1,500",
    ):
        assert name in written


def test_every_number_drawn_is_tabled_and_readable(streams, tmp_path):
    figure = plot_long_stream(streams)
    assert_printable(figure)
    assert_tabled(figure, "long_stream", streams, tmp_path)


def test_interval_along_the_stream_is_that_of_the_bootstrap():
    rng = np.random.default_rng(0)
    losses = np.repeat(rng.normal(3, 1, 2000), 10) + rng.normal(0, 0.1, 20_000)  # dependent over ten tokens
    cfg = BootstrapConfig(block=50, resamples=4000)
    ends = np.array([8_000, 20_000])
    for end, (low, high) in zip(ends, running_interval(losses, ends, cfg), strict=True):
        found = describe_losses(losses[:end], cfg)
        assert low < found["perplexity"] < high
        assert_allclose(np.log([low, high]), np.log(found["perplexity_interval"]), atol=0.01)
    assert np.ptp(running_interval(losses, np.array([60]), cfg)) == 0  # one block tells nothing
    assert running_interval(losses[:20], np.array([], dtype=int), cfg).shape == (0, 2)


def test_one_text_makes_a_figure(streams):
    assert_uncluttered(plot_long_stream(streams[:1]))


def test_runs_of_other_texts_or_machines_are_refused(long_runs, tmp_path):
    first, second = long_runs.values()
    with pytest.raises(ValueError, match="is not the beginning of"):
        collect_long_stream([second[0], first[-1]], BOOTSTRAP)
    moved = read_record(first[0])
    moved["environment"]["processor"] = "another"
    write_json(tmp_path / "moved.json", moved)
    write_array(tmp_path / "moved.npy", read_losses(first[0]))
    with pytest.raises(ValueError, match=r"processor differs.*measure both on the same machine"):
        collect_long_stream([tmp_path / "moved.json", first[-1]], BOOTSTRAP)
