"""What `snakemake paper` measures: attention maps, sink mass, and losses with other sinks."""

import numpy as np
import pytest
import reference
import torch
from conftest import tiny_llama, tiny_neox, use_float64_angles
from numpy.testing import assert_allclose
from test_figures import BOOTSTRAP
from tiny_model import byte_tokenizer

from streamlm.cache.prepare import prepare
from streamlm.config import SHARE_QUERIES, Compute, StreamConfig
from streamlm.measure.attention_maps import (
    SentenceConfig,
    draw_sentences,
    mean_attention,
)
from streamlm.measure.sink_mass import SinkMassConfig, cut_contexts, measure_sink_mass
from streamlm.measure.sink_tokens import draw_prefixes, measure_sink_tokens
from streamlm.records.fields import check_record
from streamlm.records.paper import SinkMassRecord, SinkTokensRecord

TEXTS = ("English Wikipedia sample", "Shakespeare, Project Gutenberg")
TITLE = "SmolLM2-135M-Instruct, Q4_1 dequantised"
COMPUTE = Compute(dtype="float32", device="cpu", torch_threads=1)


SHARED = {"title": TITLE, "compute": COMPUTE, "bootstrap": BOOTSTRAP}


# Attention maps


class Words:
    """A tokenizer whose tokens are words."""

    words = ("The", " rain", ".", " We", " went", "!", " home", " It", "?\n", " is")

    def decode(self, tokens):
        return "".join(self.words[token] for token in tokens)


def test_sentences_are_those_that_follow_an_end():
    ids = np.array([0, 1, 2, 3, 4, 5, 6, 8, 7, 9, 2, 3, 4, 4])
    sizes = SentenceConfig(sentences=2, sentence_tokens=3)
    assert draw_sentences(ids, Words(), SentenceConfig(sentences=3, sentence_tokens=3), 0).tolist() == [
        3,
        8,
        11,
    ]
    assert set(draw_sentences(ids, Words(), sizes, 0)) < {3, 8, 11}
    with pytest.raises(ValueError, match="and 4 are asked for; take fewer"):
        draw_sentences(ids, Words(), SentenceConfig(sentences=4, sentence_tokens=3), 0)
    spelled = np.array(byte_tokenizer()("No. It is. it was")["input_ids"])
    assert draw_sentences(spelled, byte_tokenizer(), SentenceConfig(sentences=1, sentence_tokens=4), 0) == [3]
    with pytest.raises(ValueError, match="2 sentences"):
        draw_sentences(ids, Words(), SentenceConfig(sentences=3, sentence_tokens=4), 0)


@pytest.mark.parametrize("make", [tiny_llama, tiny_neox])
def test_maps_are_the_mean_of_what_the_model_gives_out(make):
    rows = np.random.default_rng(0).integers(60, size=(70, 9))
    plain = use_float64_angles(make())
    plain.set_attn_implementation("eager")
    with torch.inference_mode():
        given = torch.stack(
            plain(torch.as_tensor(rows), output_attentions=True).attentions
        )  # (L, S, H, T, T)
    with prepare(use_float64_angles(make())) as model:
        layers, (logits, weights), shares = mean_attention(model, rows)
    assert layers == [0, 1]
    assert_allclose(weights, given.double().mean(1).numpy(), atol=1e-6)
    assert_allclose(shares, given[:, :, :, -1, 0].transpose(0, 1).double().numpy(), atol=1e-6)
    seen = np.tril(np.ones((9, 9), bool))
    assert np.isnan(logits[..., ~seen]).all()
    # The first query sees one key: its logit is a product, its weight is 1.
    assert_allclose(weights[:, :, 0, 0], 1)
    with prepare(use_float64_angles(make())) as model:
        _, (one, _), _ = mean_attention(model, rows[:1])
    filled = np.where(seen, one, -np.inf)
    soft = np.exp(filled - filled.max(-1, keepdims=True))
    assert_allclose(soft / soft.sum(-1, keepdims=True), given[:, 0].double().numpy(), atol=1e-6)


# Sink mass


def test_contexts_do_not_overlap():
    sizes = SinkMassConfig(n_sink=1, capacity=8, contexts=3, context_tokens=200, stream_tokens=10)
    contexts = cut_contexts(np.arange(700), sizes)
    assert contexts.shape == (3, 200)
    assert contexts[:, 0].tolist() == [0, 250, 500]
    with pytest.raises(ValueError, match="3 contexts of 200 tokens take 600, and the text has 599"):
        cut_contexts(np.arange(599), sizes)
    with pytest.raises(ValueError, match="at least 129 tokens, got 100"):
        SinkMassConfig(n_sink=1, capacity=8, contexts=3, context_tokens=100, stream_tokens=10)


def test_mass_is_that_of_the_slow_twin(prose_model, prose_ids):
    text = prose_ids[TEXTS[0]]
    sizes = SinkMassConfig(n_sink=2, capacity=20, contexts=2, context_tokens=150, stream_tokens=300)
    record = measure_sink_mass(model_dir=prose_model, ids=text, dataset=TEXTS[0], sizes=sizes, **SHARED)
    check_record(record, SinkMassRecord, "it")
    model = tiny_llama(vocab_size=257, max_position_embeddings=3000)
    model.double()

    def slow(tokens, window_size):
        caches = [reference.Evicting(2, window_size) for _ in range(2)]
        with torch.inference_mode():
            reference.llama_losses(model, [*tokens.tolist(), 0], 2, window_size, caches)
        # (L, T, H, 2)
        return np.array(
            [[torch.stack([step.get(t, torch.zeros(4)) for t in (0, 1)], -1).numpy() for step in cache.seen]
             for cache in caches]
        )  # fmt: skip

    for method, window_size in (("dense", 150), ("streaming", 18)):
        shares = np.stack(
            [slow(row, window_size)[:, -SHARE_QUERIES:].mean(1) for row in cut_contexts(text, sizes)]
        )
        for layer, found in enumerate(record["methods"][method]):
            assert_allclose(found["share"], shares[:, layer].mean((0, 1)), atol=2e-6)
            assert_allclose(found["by_head"], shares[:, layer].mean(0).sum(-1), atol=2e-6)
            assert all(low <= high for low, high in found["share_interval"])
    along = slow(text[:300], 18).sum(-1).mean((0, 2))
    assert record["along"]["tokens_seen"] == [300]
    assert_allclose(record["along"]["share"], [along.mean()], atol=2e-6)


# What sinks are


def test_sinks_of_every_kind_are_put_before_the_stream(prose_model, prose_ids):
    text, cfg = prose_ids[TEXTS[0]][:600], StreamConfig(n_sink=2, window_size=30)
    record, losses = measure_sink_tokens(model_dir=prose_model, ids=text, dataset=TEXTS[0], cfg=cfg, **SHARED)
    check_record(record, SinkTokensRecord, "it")
    kinds = {row["sinks"]: row for row in record["rows"]}
    assert list(kinds) == [
        "first tokens", "line feeds", *(f"random tokens {letter}" for letter in "ABC"),
        "BOS, then first tokens", "none",
    ]  # fmt: skip
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(kinds["line feeds"]["prefix"]) == "\n\n"
    assert kinds["BOS, then first tokens"]["prefix"] == [tokenizer.bos_token_id]
    assert tokenizer.bos_token_id not in kinds["random tokens A"]["prefix"]
    assert losses.shape == (len(kinds), len(text) - 1)
    for found, row in zip(losses, record["rows"], strict=True):
        assert row["capacity"] == 32
        slow = reference.llama_losses(
            tiny_llama(vocab_size=257).double(),
            [*row["prefix"], *text.tolist()],
            row["n_sink"],
            row["window_size"],
        )
        assert_allclose(found, slow[len(row["prefix"]) :].detach().numpy(), atol=2e-4)
        tail = found[32:].astype(float)
        assert_allclose(row["common"]["nll_nats"], tail.mean())
        assert_allclose(row["common"]["nll_difference_nats"], (tail - losses[0][32:]).mean(), atol=1e-9)


def test_a_tokenizer_without_a_line_feed_is_refused():
    class Lines:
        all_special_ids, bos_token_id = [], None

        def __call__(self, text, add_special_tokens):
            return {"input_ids": [3]}

        def decode(self, tokens):
            return "\n\n"

    with pytest.raises(ValueError, match="no token that is a line feed"):
        draw_prefixes(Lines(), np.arange(5), 2, 0)


def test_nothing_evicted_is_refused(prose_model, prose_ids):
    with pytest.raises(ValueError, match="nothing is evicted at capacity 64 in 60 tokens"):
        measure_sink_tokens(
            model_dir=prose_model, ids=prose_ids[TEXTS[0]][:60], dataset=TEXTS[0],
            cfg=StreamConfig(n_sink=4, window_size=60), **SHARED,
        )  # fmt: skip
