"""The models that are trained here: what they attend to, that they can be resumed, what is said of them."""

from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from drawn import assert_printable, assert_tabled, assert_uncluttered, assert_written
from numpy.testing import assert_allclose
from safetensors import safe_open
from small_twins import HELD_OUT, SHAPE, SINKS, TEXT, TRAINING, train_twins
from test_figures import BOOTSTRAP
from torch.nn import functional
from torch.testing import assert_close

from streamlm.cache.models import load_model
from streamlm.config import TWINS, StreamConfig
from streamlm.experiment.follow import Refuted, follow_paper
from streamlm.figures.catalogue import TWIN_FIGURES, find_figure
from streamlm.measure.scoring import score_stream
from streamlm.pretrain import training
from streamlm.pretrain.scores import MAP_TOKENS, TwinSinks
from streamlm.pretrain.texts import read_texts
from streamlm.pretrain.training import Training, draw_batch, learning_rate, train
from streamlm.pretrain.twins import (
    SINK,
    TwinShape,
    give_zero_sink,
    new_twin,
    write_twin,
    zero_sink_attention,
)
from streamlm.records.fields import check_record
from streamlm.records.files import read_record, write_array, write_json
from streamlm.records.paper import TwinRecord, TwinsRecord
from streamlm.sources.corpus import Document, write_sample
from streamlm.stats import describe_losses, paired_increase
from streamlm.summaries.twins import collect_twins, twin_sink_rows


@pytest.mark.parametrize("n_tokens", [1, 2, 33])
def test_zero_sink_adds_one_to_the_denominator(n_tokens):
    q, k, v = torch.randn(3, 2, 4, n_tokens, 8, dtype=torch.float64)
    found, _ = zero_sink_attention(None, q, k, v, None, scaling=0.3)
    assert_close(found.transpose(1, 2), reference.zero_sink_attention(q, k, v, 0.3))


def wide(twin, shape, folder, seed=0):
    """Return a twin in float64 with weights large enough to be seen in losses, and the same one prepared."""
    own = new_twin(twin, shape, seed).double()
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.mul_(4) if parameter.ndim == 2 else None
    write_twin(own, folder)
    prepared = load_model(folder, dtype=torch.float64)
    if twin == "zero_sink":
        give_zero_sink(prepared)
    return own, prepared


@torch.no_grad()
def own_losses(model, ids):
    logits = model(ids[None], use_cache=False).logits[0, :-1]
    return functional.cross_entropy(logits, ids[1:], reduction="none").numpy()


@pytest.mark.parametrize("twin", TWINS)
def test_scoring_reads_a_twin_as_training_did(twin, tmp_path):
    own, prepared = wide(twin, SHAPE, tmp_path / "twin")
    ids = torch.from_numpy(HELD_OUT[0].astype(np.int64))
    losses, _ = score_stream(prepared, ids.numpy(), StreamConfig(n_sink=0, window_size=200))
    assert_allclose(losses, own_losses(own, ids), atol=1e-10)


@pytest.mark.parametrize("twin", TWINS)
def test_a_window_of_one_layer_is_its_tokens_alone(twin, tmp_path):
    own, prepared = wide(twin, TwinShape(layers=1, hidden=16, heads=2, context_tokens=40), tmp_path / "twin")
    ids, size = torch.from_numpy(HELD_OUT[0][:40].astype(np.int64)), 7
    losses, _ = score_stream(prepared, ids.numpy(), StreamConfig(n_sink=0, window_size=size))
    alone = [own_losses(own, ids[max(0, t - size + 1) : t + 2])[-1] for t in range(39)]
    assert_allclose(losses, alone, atol=1e-10)


def test_zero_sink_is_another_model_than_the_plain_one(tmp_path):
    own, _ = wide("zero_sink", SHAPE, tmp_path / "zero")
    plain, _ = wide("plain", SHAPE, tmp_path / "plain")
    ids = torch.from_numpy(HELD_OUT[0].astype(np.int64))
    assert np.abs(own_losses(own, ids) - own_losses(plain, ids)).max() > 0.01


def test_twins_of_a_seed_begin_alike_and_read_the_same_bytes():
    states = [new_twin(twin, SHAPE, 5).state_dict() for twin in TWINS]
    for state in states[1:]:
        assert_close(state, states[0], rtol=0, atol=0)
    other = new_twin("plain", SHAPE, 6).state_dict()
    assert not torch.equal(other["model.embed_tokens.weight"], states[0]["model.embed_tokens.weight"])
    plain, zero, sink = (draw_batch(twin, SHAPE, TRAINING, TEXT, 5, 3) for twin in TWINS)
    assert plain.shape == (3, 41)
    assert torch.equal(plain, zero)
    assert torch.equal(plain[:, 1:], sink[:, 1:]), "the targets differ"
    assert (sink[:, 0] == SINK).all()
    assert not torch.equal(plain, draw_batch("plain", SHAPE, TRAINING, TEXT, 5, 4))


def test_a_new_twin_leaves_the_seed_of_others_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    new_twin("plain", SHAPE, 0)
    assert torch.equal(torch.rand(1), expected)


def test_learning_rate_rises_and_falls():
    cfg = Training(steps=1000, batch=1, learning_rate=0.5)
    rates = [learning_rate(step, cfg) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert np.argmax(rates) == training.WARMUP - 1
    assert rates[-1] == pytest.approx(0.05, rel=1e-3)


class Killed(Exception):
    """Stands for the signal."""


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_killed_training_goes_on_to_the_same_weights(at, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "KEEP_EVERY", 2)
    torch.set_num_threads(1)
    whole = new_twin("plain", SHAPE, 0)
    expected = train(whole, "plain", SHAPE, TRAINING, TEXT, 0)
    steps = iter(range(at))

    def kill():
        if next(steps, None) is None:
            raise Killed

    path = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        train(new_twin("plain", SHAPE, 0), "plain", SHAPE, TRAINING, TEXT, 0, checkpoint=path, on_step=kill)
    resumed, done = new_twin("plain", SHAPE, 0), []
    losses = train(
        resumed, "plain", SHAPE, TRAINING, TEXT, 0, checkpoint=path, on_step=lambda: done.append(1)
    )
    assert len(done) == TRAINING.steps - at // 2 * 2, "it did not go on from the last state"
    np.testing.assert_array_equal(losses, expected)
    assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def trained_state(path, seed=0, twin="plain"):
    cfg = Training(steps=4, batch=2, learning_rate=0.01)
    done = []
    model = new_twin(twin, SHAPE, seed)
    train(model, twin, SHAPE, cfg, TEXT, seed, checkpoint=path, on_step=lambda: done.append(1))
    return len(done)


def test_a_state_of_another_training_is_not_taken_up(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "KEEP_EVERY", 2)
    path = tmp_path / "state.safetensors"
    assert trained_state(path) == 4
    assert trained_state(path) == 0
    assert trained_state(path, seed=1) == 4
    assert trained_state(path, seed=1, twin="zero_sink") == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "folder"])
def test_a_damaged_state_is_refused_in_a_line(damage, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "KEEP_EVERY", 2)
    path = tmp_path / "state.safetensors"
    trained_state(path)
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes(content[:-100] if damage == "cut" else b"")
    with pytest.raises(ValueError, match=r"the checkpoint .* is damaged .*; remove it") as refused:
        trained_state(path)
    assert "\n" not in str(refused.value)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="hidden 18 must be a multiple of twice the heads, 4"):
        TwinShape(layers=1, hidden=18, heads=2, context_tokens=8)
    with pytest.raises(ValueError, match="capacity 3 leaves no window beside 3 sinks"):
        TwinSinks(n_sinks=[0, 3], capacity=3)
    with pytest.raises(ValueError, match="40 bytes are no context of 40; take more text"):
        train(new_twin("plain", SHAPE, 0), "plain", SHAPE, TRAINING, TEXT[:40], 0)
    with pytest.raises(ValueError, match=r"the loss of step . is not finite; take a smaller learning_rate"):
        wild = Training(steps=9, batch=2, learning_rate=1e30)
        train(new_twin("plain", SHAPE, 0), "plain", SHAPE, wild, TEXT, 0)


def test_nothing_that_is_scored_is_trained_on(tmp_path):
    texts = ["é" * 30 + "first end", "second text" * 5]
    for i, text in enumerate(texts):
        write_sample(tmp_path / f"{i}.json", "a", {}, [Document("a", text[:20]), Document("b", text[20:])])
    text, held_out = read_texts([tmp_path / "0.json", tmp_path / "1.json"], 9)
    joined = [f"{text[:20]}\n\n{text[20:]}".encode() for text in texts]
    assert text.tobytes() == joined[0][:-9] + joined[1][:-9]
    assert [end.tobytes() for end in held_out] == [b"first end", joined[1][-9:]]
    with pytest.raises(ValueError, match="57 bytes, too few to keep 29 of them apart"):
        read_texts([tmp_path / "1.json"], 29)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return train_twins(tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize("twin", TWINS)
def test_every_number_of_sinks_is_scored_on_the_same_bytes(twin, measured):
    record, losses = read_record(measured[twin, 1]), np.load(measured[twin, 1].with_suffix(".npy"))
    check_record(record, TwinRecord, twin)
    model = load_model(measured[twin, 1].parents[2] / "twins" / f"{twin}_seed1")
    if twin == "zero_sink":
        give_zero_sink(model)
    before = [SINK] if twin == "sink_token" else []
    for row, of_row in zip(record["rows"], losses, strict=True):
        assert row["capacity"] == row["n_sink"] + row["window_size"] == 12
        cfg = StreamConfig(n_sink=row["n_sink"], window_size=row["window_size"])
        ends = [score_stream(model, np.array([*before, *text]), cfg)[0][-(149 - 12) :] for text in HELD_OUT]
        assert_allclose(of_row, np.concatenate(ends), atol=1e-5)
        expected = describe_losses(of_row, BOOTSTRAP) | paired_increase(of_row, losses[2], BOOTSTRAP)
        for key, value in expected.items():
            assert row["common"][key] == pytest.approx(value), key
    assert [row["n_sink"] for row in record["rows"]] == SINKS.n_sinks


@pytest.mark.parametrize("twin", TWINS)
def test_shares_of_attention_are_those_of_its_own_weights(twin, measured):
    record = read_record(measured[twin, 0])
    assert record["contexts"] == {"count": 8, "tokens": MAP_TOKENS}
    for layer in record["layers"]:
        assert sum(layer["weights"][-1]) + layer["zero_sink"] == pytest.approx(1, abs=1e-6)
        assert (layer["zero_sink"] > 1e-3) == (twin == "zero_sink")
        assert layer["first_token"] == pytest.approx(layer["weights"][-1][0], rel=1e-5)


def test_the_losses_of_a_twin_must_be_those_of_its_record(measured, tmp_path):
    path = tmp_path / "twins" / "plain_seed0.json"
    record, losses = (
        read_record(measured["plain", 0]),
        np.load(measured["plain", 0].with_suffix(".npy")),
    )
    write_json(path, record)
    write_array(path.with_suffix(".npy"), losses)
    follow_paper(path)
    write_array(path.with_suffix(".npy"), losses + np.float32(0.01))
    with pytest.raises(Refuted, match=r"rows\[0\]"):
        follow_paper(path)


def test_rows_span_the_seeds(measured):
    record = collect_twins([read_record(path) for path in measured.values()])
    check_record(record, TwinsRecord, "it")
    rows = twin_sink_rows([record])
    assert [row["kept"] for row in rows] == ["0+12", "1+11", "3+9"] * 3
    seeds = [read_record(measured["zero_sink", seed])["rows"][1]["common"] for seed in (0, 1)]
    row = next(row for row in rows if (row["trained"], row["sinks"]) == ("zero sink", 1))
    perplexities = [common["perplexity"] for common in seeds]
    assert row["perplexity_per_byte"] == pytest.approx(np.mean(perplexities))
    assert row["perplexity_per_byte_low"] == min(perplexities)
    intervals = [common["ppl_increase_percent_interval"] for common in seeds]
    assert row["change_to_most_sinks_percent_high"] == max(high for _, high in intervals)


def test_records_of_other_texts_are_not_put_together(measured):
    first, second = (read_record(path) for path in list(measured.values())[:2])
    with pytest.raises(ValueError, match="their stream of tokens differs"):
        collect_twins([first, {**second, "tokens": {**second["tokens"], "sha256": "0"}}])


@pytest.mark.parametrize("name", TWIN_FIGURES)
def test_figures_of_twins_are_readable(name, measured, tmp_path):
    record = collect_twins([read_record(path) for path in measured.values()])
    figure = find_figure(name).plot([record])
    written = assert_uncluttered(figure)
    assert all(title in written for title in TWINS.values())
    if name == "twin_sinks":
        assert_written(name, [record], tmp_path)
    if name == "twin_losses":
        assert_tabled(figure, name, [record], tmp_path)
    if name == "twin_maps":
        assert_printable(figure)


def test_a_twin_is_a_folder_of_safetensors(measured):
    folder = Path(measured["plain", 0].parents[2] / "twins" / "plain_seed0")
    assert {"config.json", "model.safetensors"} <= {file.name for file in folder.iterdir()}
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.get_slice("model.embed_tokens.weight").get_shape() == [SINK + 1, SHAPE.hidden]
