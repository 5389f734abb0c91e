"""Batches: every method decodes what one row would, and the record and figure say what it took."""

import json

import numpy as np
import pytest
import torch
from conftest import MODELS, VOCAB
from drawn import assert_printable, assert_tabled, assert_uncluttered
from torch.testing import assert_close

from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache
from streamlm.config import Compute
from streamlm.experiment.follow import Refuted, follow_paper
from streamlm.figures.batches import plot_batches
from streamlm.measure.latency import share_weights
from streamlm.presses.batches import BatchConfig, BatchDecoder, _Context, measure_batches
from streamlm.records.fields import check_record
from streamlm.records.files import write_json
from streamlm.records.types import BatchesRecord
from streamlm.summaries.tasks import batch_rows

pytestmark = pytest.mark.kvpress

BATCH = BatchConfig(context_tokens=40, capacity=12, timed_tokens=3, runs=2)
PRESSES = ["KnormPress", "KeyRerotationPress(KnormPress)", "AdaKVPress(KnormPress, alpha_safeguard=0)"]
IDS = np.random.default_rng(0).integers(0, VOCAB, size=60)


def logits_of(decoder: BatchDecoder, n_steps):
    """The logits of steps that are not cut back, of every row."""
    seen, head = [], decoder.model.get_output_embeddings()
    with head.register_forward_hook(lambda module, args, output: seen.append(output[:, -1])):
        for _ in range(n_steps):
            decoder.make_ready()
            decoder.step()
    return torch.stack(seen, dim=1)


@torch.inference_mode()
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_row_decodes_as_one_alone_does(name):
    plain = MODELS[name]().double().eval()
    with prepare(share_weights(plain)) as prepared:
        context = _Context(plain, prepared, torch.from_numpy(IDS[None, :40]), 2, BATCH, PRESSES)
        sinks, stream, expected = SinkCache(prepared.config, 2, 10), IDS[:40].tolist(), []
        for t in range(43):
            logits = prepared(torch.tensor([stream[t : t + 1]]), past_key_values=sinks).logits[0, -1]
            if t >= 39:
                expected.append(logits)
                stream.append(int(logits.argmax()))
        alone, three = (
            {method: logits_of(decoder, 4) for method, decoder in context.decoders(size).items()}
            for size in (1, 3)
        )
    assert list(alone) == ["dense", "streaming", *PRESSES]
    for method, logits in three.items():
        assert logits.shape == (3, 4, VOCAB)
        assert_close(logits, alone[method].expand(3, -1, -1), msg=method)
    assert_close(alone["streaming"][0], torch.stack(expected))
    assert_close(alone["dense"][0, 0], plain(torch.from_numpy(IDS[None, :40])).logits[0, -1])
    assert len({round(float(logits.sum()), 6) for logits in alone.values()}) == len(alone)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    MODELS["llama"]().save_pretrained(folder)
    found = measure_batches(
        model_dir=folder, compute=Compute(device="cpu", torch_threads=1), title="A & B", ids=IDS,
        dataset="its name", n_sink=2, presses=PRESSES[:2], sizes=[4, 1], batch=BATCH,
    )  # fmt: skip
    return json.loads(json.dumps(found))


def test_a_record_has_every_method_at_every_size(record):
    check_record(record, BatchesRecord, "it")
    cases = [(row["batch"], row["method"]) for row in record["rows"]]
    assert cases == [(size, name) for size in (1, 4) for name in ("dense", "streaming", *PRESSES[:2])]
    for row in record["rows"]:
        assert row["attended_tokens"] == (40 if row["method"] == "dense" else 12)
        assert row["tokens_per_sec"] == pytest.approx(1e3 * row["batch"] / row["step_ms"]["median"])
        assert len(row["step_ms"]["runs"]) == BATCH.runs
    one, four = (
        {row["method"]: row["kv_bytes"] for row in record["rows"] if row["batch"] == size} for size in (1, 4)
    )
    assert four == {name: 4 * size for name, size in one.items()}
    # 12 slots and 2 sinks as written, against 12 entries and 40 of keys and values
    assert one["streaming"] * 12 == one["KnormPress"] * 13
    assert one["dense"] * 12 == one["KnormPress"] * 40


def test_the_figure_shows_the_table(record, tmp_path):
    figure = plot_batches([record])
    assert_uncluttered(figure)
    assert_printable(figure)
    assert_tabled(figure, "batches", [record], tmp_path)
    assert len(batch_rows([record])) == len(record["rows"])


def test_a_text_shorter_than_the_context_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a context has 40 tokens, and the text 39"):
        measure_batches(
            model_dir=tmp_path, compute=Compute(), ids=IDS[:39], dataset="x", n_sink=2, presses=[],
            sizes=[1], batch=BATCH,
        )  # fmt: skip


def test_speeds_must_follow_from_the_times(record, tmp_path):
    path = tmp_path / "tasks" / "batches.json"
    write_json(path, record)
    follow_paper(path)
    for change in ({"tokens_per_sec": 1.0}, {"step_ms": {**record["rows"][1]["step_ms"], "median": 1e9}}):
        changed = json.loads(json.dumps(record))
        changed["rows"][1] |= change
        write_json(path, changed)
        with pytest.raises(Refuted, match="streaming, batch 1"):
            follow_paper(path)
