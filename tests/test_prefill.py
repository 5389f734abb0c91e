import numpy as np
import pytest
import reference
import torch
from conftest import MODELS, VOCAB
from numpy.testing import assert_allclose
from torch.testing import assert_close
from transformers import DynamicCache

from streamlm.cache.rope import Rotary
from streamlm.config import Compute
from streamlm.presses import prefill
from streamlm.presses.adapter import exact_ratio, make_press
from streamlm.presses.grammar import compared_methods, parse_press
from streamlm.presses.prefill import ContextConfig, evict, measure_compression
from streamlm.presses.setting import Setting
from streamlm.stats import BootstrapConfig

pytestmark = pytest.mark.kvpress

CONTEXTS = ContextConfig(contexts=2, context_tokens=20, scored_tokens=7)
N_SINK, BUDGETS = 2, [6, 13, 19]
METHODS = compared_methods(N_SINK, ["KnormPress", "SnapKVPress(window_size=4)"])
SEEN = CONTEXTS.context_tokens + CONTEXTS.scored_tokens + 1


def text(seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, CONTEXTS.n_ids + 5)


@pytest.fixture(scope="module", params=sorted(MODELS))
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    MODELS[request.param]().save_pretrained(path)
    return path


def measure(folder, method, *, budgets=BUDGETS, dtype="float64", texts=None):
    setting = Setting(
        model_dir=folder, title="tiny", texts={"random": text()} if texts is None else texts,
        compute=Compute(dtype=dtype, device="cpu", torch_threads=1), bootstrap=BootstrapConfig(resamples=100),
    )  # fmt: skip
    record, scores = measure_compression(
        setting, method=method, contexts=CONTEXTS, n_sink=N_SINK, budgets=budgets
    )
    for entry, (_, divergences) in zip(record["texts"], np.moveaxis(scores, 1, 0), strict=True):
        means = [part["kl_nats"] for part in (entry["dense"], *entry["budgets"])]
        assert_allclose(divergences.mean(-1), means, rtol=1e-4, atol=1e-9)
    return record, scores[0]


def pieces():
    return torch.from_numpy(text()[: CONTEXTS.n_ids]).view(2, SEEN)


def own_losses(model, piece, cache):
    """Losses of the scored tokens of a piece after a filled cache, by transformers, at their positions.

    They are read one by one: kvpress finds a key to mask others with for few queries alone.
    """
    with torch.inference_mode():
        steps = [
            model(piece[None, t : t + 1], past_key_values=cache, position_ids=torch.tensor([[t]])).logits[0]
            for t in range(CONTEXTS.context_tokens, len(piece) - 1)
        ]
    logits = torch.cat(steps)
    return torch.nn.functional.cross_entropy(logits, piece[CONTEXTS.context_tokens + 1 :], reduction="none")


def load(folder):
    return next(make() for name, make in MODELS.items() if name in folder.name).double()


def test_dense_losses_are_the_models_own(folder):
    model, (record, losses) = load(folder), measure(folder, "streamlm_dense_prefill")
    whole = model(pieces()).logits[:, CONTEXTS.context_tokens : -1]
    targets = pieces()[:, CONTEXTS.context_tokens + 1 :]
    expected = torch.nn.functional.cross_entropy(whole.transpose(1, 2), targets, reduction="none")
    assert_allclose(losses[0, 0], expected.flatten().detach(), atol=1e-5)
    dense = record["texts"][0]["dense"]
    assert (dense["capacity"], dense["kl_nats"], dense["top1_agreement"]) == (20, 0, 1)
    assert dense["perplexity"] == pytest.approx(np.exp(losses[0, 0].mean(dtype=np.float64)), rel=1e-5)


def test_streamlm_is_the_paper_token_by_token(folder):
    model, (_, losses) = load(folder), measure(folder, "streamlm")
    twin = reference.llama_losses if "llama" in folder.name else reference.neox_losses
    for row, budget in zip(losses[0, 1:], BUDGETS, strict=True):
        expected = [twin(model, piece.tolist(), N_SINK, budget - N_SINK) for piece in pieces()]
        tails = torch.cat([each[CONTEXTS.context_tokens :] for each in expected])
        assert_allclose(row, tails.detach(), atol=1e-5)


def test_dense_prefill_and_eviction_equal_kvpress_with_keys_rerotated(folder):
    ours = measure(folder, "streamlm_dense_prefill")[1]
    theirs = measure(folder, METHODS["KeyRerotationPress"])[1]
    assert_allclose(ours, theirs, atol=1e-4)
    as_it_is = measure(folder, METHODS["StreamingLLMPress"])[1]
    assert np.abs(as_it_is - ours)[0, 1].max() > 1e-3  # its sinks keep other positions


@pytest.mark.parametrize(
    "text", ["StreamingLLMPress(n_sink=2)", "KnormPress", "AdaKVPress(KnormPress, alpha_safeguard=0)"]
)
def test_press_is_scored_as_kvpress_uses_it(tmp_path, text):
    """After kvpress's own context manager, the following tokens at their positions in the text."""
    model = MODELS["llama"]()
    model.save_pretrained(tmp_path)
    _, losses = measure(tmp_path, text, dtype="float32")
    for row, budget in zip(losses[0, 1:], BUDGETS, strict=True):
        expected = []
        for piece in pieces():
            press, cache = make_press(parse_press(text)), DynamicCache(config=model.config)
            press.compression_ratio = exact_ratio(CONTEXTS.context_tokens, budget)
            with press(model), torch.inference_mode():
                model(piece[None, : CONTEXTS.context_tokens], past_key_values=cache)
            expected.append(own_losses(model, piece, cache))
        assert_allclose(row, torch.cat(expected), atol=1e-4)


def test_every_scored_token_saw_the_cut_cache(folder):
    """A cut after the pass does not change the pass: its tokens would have the dense losses."""
    _, losses = measure(folder, METHODS["StreamingLLMPress"], budgets=[N_SINK + 1])
    dense, cut = losses[0].reshape(2, CONTEXTS.contexts, CONTEXTS.scored_tokens)
    assert (np.abs(cut - dense) > 1e-6).all()


@pytest.mark.parametrize("n_sink", [1, 3])
@pytest.mark.parametrize("budget", [4, 7, 11])
def test_eviction_is_that_of_the_slow_twin(budget, n_sink):
    torch.manual_seed(budget)
    raw, values = torch.randn(2, 1, 2, 12, 8, dtype=torch.float64)
    inv_freq = torch.tensor([1.0, 0.3, 0.05], dtype=torch.float64)  # 6 of 8 features
    query = torch.randn(1, 2, 8, dtype=torch.float64)
    written = torch.stack([reference.rotate(raw[:, :, t], t, inv_freq) for t in range(12)], dim=2)
    keys, kept = evict(written, values, n_sink, budget, Rotary(inv_freq))
    expected_keys, expected = reference.evict(raw, values, n_sink, budget, inv_freq)
    assert_close(kept, expected)
    # ours keep their positions in the text, the twin's are those in the cache: the next query's scores agree
    scores = keys @ reference.rotate(query, 12, inv_freq)[..., None]
    assert_close(scores, expected_keys @ reference.rotate(query, budget, inv_freq)[..., None])


def test_memory_is_bounded_for_streamlm_alone(folder):
    ours, theirs = (measure(folder, method)[0]["texts"][0] for method in ("streamlm", "KnormPress"))
    model = load(folder)
    config = model.config
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    per_token = 2 * config.num_hidden_layers * heads * 8 * 8  # float64
    for entry, budget in zip(theirs["budgets"], BUDGETS, strict=True):
        assert entry["kv_bytes"] == per_token * budget
        assert entry["kv_bytes_at_end"] == per_token * (budget + CONTEXTS.scored_tokens)
    for entry in ours["budgets"]:
        assert entry["kv_bytes"] == entry["kv_bytes_at_end"]


def test_press_that_cannot_work_is_listed_with_its_reason(folder):
    record, losses = measure(folder, METHODS["SnapKVPress-window_size-4"])
    if "llama" in folder.name:
        assert record["refused"] is None
        assert losses.shape == (1, 4, 14)
    else:
        assert "GPT-NeoX has one joint query_key_value" in record["refused"]
        assert record["texts"][0]["budgets"] == []
        assert losses.shape == (1, 1, 14)


def test_every_text_is_measured_by_itself(folder):
    both, losses = measure(folder, "KnormPress", texts={"one": text(1), "two": text(2)})
    alone, expected = measure(folder, "KnormPress", texts={"two": text(2)})
    assert [entry["dataset"] for entry in both["texts"]] == ["one", "two"]
    assert both["texts"][1]["tokens"] == alone["texts"][0]["tokens"]
    assert_allclose(losses[1], expected[0], atol=1e-6)


def test_text_that_holds_fewer_contexts_is_measured_on_those_with_a_warning(folder):
    texts = {"long": text(1), "short": text(2)[:55]}
    with pytest.warns(UserWarning, match="the shortest text holds 1 of 2 contexts"):
        record, losses = measure(folder, "KnormPress", texts=texts)
    assert record["contexts"]["contexts"] == 1
    assert losses.shape == (2, 4, CONTEXTS.scored_tokens)
    whole = measure(folder, "KnormPress", texts={"long": text(1)})[1]
    assert_allclose(losses[0], whole[0, :, : CONTEXTS.scored_tokens], atol=1e-6)


def test_ratio_that_falls_short_is_an_error(folder, monkeypatch):
    monkeypatch.setattr(prefill, "exact_ratio", lambda n_tokens, n_kept: 1 - (n_kept - 0.5) / n_tokens)
    with pytest.raises(ValueError, match="layers keep 5 to 5 tokens where the budget is 6"):
        measure(folder, "KnormPress")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": [20]}, "a budget of 20 keeps all of a context of 20 tokens"),
        ({"budgets": [2]}, "a budget of 2 leaves no window beside 2 sinks"),
        ({"texts": {"short": text()[:27]}}, "28 tokens are compared and short has 27; take a longer text"),
        ({"texts": {"foreign": text() + VOCAB}}, "outside the vocabulary of 61"),
    ],
)
def test_mistake_is_an_error(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        measure(folder, "KnormPress", **changes)


def test_numbers_below_one_are_refused():
    with pytest.raises(ValueError, match="scored_tokens must be >= 1, got 0"):
        ContextConfig(contexts=1, context_tokens=5, scored_tokens=0)
