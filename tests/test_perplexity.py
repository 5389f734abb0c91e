import json

import numpy as np
import pytest
import torch
from conftest import VOCAB, score_by_name, tiny_llama
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
)

from streamlm.cache.models import load_model
from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache
from streamlm.config import METHODS, StreamConfig
from streamlm.measure.scoring import score_stream
from streamlm.records.files import write_array, write_json
from streamlm.stats import BootstrapConfig
from streamlm.summaries.answer import experiment_summary
from streamlm.summaries.main import (
    collect_ablation,
    collect_result,
    read_run,
    with_baseline,
)

BOOTSTRAP = BootstrapConfig(resamples=100)
IDS = np.random.default_rng(0).integers(0, VOCAB, 200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(path)
    return path


def measure(folder, **changes):
    options = {"ids": IDS, "method": "streaming", "n_sink": 4, "window_size": 28, "device": "cpu"}
    return score_by_name(
        model_dir=folder, dataset="random ids", bootstrap=BOOTSTRAP, torch_threads=1, **options | changes
    )


def stored(folder, runs_dir, name, **options):
    record, losses = measure(folder, **options)
    write_array(runs_dir / f"{name}.npy", losses)
    write_json(runs_dir / f"{name}.json", record)
    return runs_dir / f"{name}.json"


def test_quantised_window_costs_little_and_saves_memory(folder):
    (plain, exact), (record, losses) = measure(folder), measure(folder, kv_dtype="int8")
    assert (plain["storage"], record["storage"]) == ("float32", "int8")
    assert record["streaming"]["kv_bytes"] < 0.6 * plain["streaming"]["kv_bytes"]
    assert 0 < np.abs(losses - exact).mean() < 0.1


@given(n_tokens=st.integers(2, 60), chunk=st.integers(1, 70))
def test_every_token_but_the_first_is_scored_exactly_once(n_tokens, chunk):
    with prepare(tiny_llama()) as model:
        cfg = StreamConfig(n_sink=2, window_size=9)
        losses, cache = score_stream(model, IDS[:n_tokens], cfg, chunk=chunk)
    assert losses.shape == (n_tokens - 1,)
    assert np.isfinite(losses).all()
    assert cache.get_seq_length() == n_tokens - 1


def test_dense_is_what_transformers_computes(folder):
    _, losses = measure(folder, method="dense")
    with torch.inference_mode():
        logits = tiny_llama()(torch.from_numpy(IDS)[None]).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(IDS[1:]), reduction="none")
    assert_close(torch.from_numpy(losses), expected, rtol=0, atol=1e-4)


def test_a_window_longer_than_the_stream_is_the_dense_baseline(folder):
    record, losses = measure(folder, window_size=999_999)
    assert_close(losses, measure(folder, method="dense")[1], rtol=0, atol=1e-5)
    assert record["capacity"] == 4 + 999_999
    assert record["metrics"]["compression_ratio"] == 0
    assert record["streaming"]["after_eviction"] is None
    assert (
        record["streaming"]["kv_bytes"] <= measure(folder, method="dense")[0]["streaming"]["kv_bytes"] * 1.1
    )
    assert "trained to 64" in record["warnings"][0]


def test_memory_does_not_grow_with_the_stream():
    with prepare(tiny_llama()) as model:
        sizes = [
            score_stream(model, np.resize(IDS, n), StreamConfig(n_sink=2, window_size=9))[1].nbytes
            for n in (50, 3000)
        ]
    # (keys and values of 11 slots, unrotated keys of 2 sinks) x layers x heads x head size x bytes
    assert sizes[0] == sizes[1] == (2 * 11 + 2) * 2 * 2 * 8 * 4


def test_positions_stay_bounded_and_a_rebase_changes_no_loss():
    seen = []
    cfg = StreamConfig(n_sink=2, window_size=9)
    with prepare(tiny_llama()) as model:
        plain, _ = score_stream(model, np.resize(IDS, 400), cfg, chunk=16)
        rotary = model.model.rotary_emb
        rotary.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(int(kwargs["position_ids"].max())), with_kwargs=True
        )
        rebased, _ = score_stream(model, np.resize(IDS, 400), cfg, chunk=16, position_limit=40)
    assert max(seen) < 40
    assert_close(rebased, plain, rtol=0, atol=1e-4)


def test_record_says_what_was_measured(folder):
    record, losses = measure(folder, method="window", n_sink=4, window_size=28)
    assert (record["method"], record["n_sink"], record["window_size"], record["capacity"]) == (
        "window",
        0,
        32,
        32,
    )
    assert record["streaming"]["perplexity"] == pytest.approx(np.exp(losses.mean(dtype=np.float64)))
    assert record["streaming"]["after_eviction"]["scored"] == len(IDS) - 1 - 32
    assert record["metrics"]["compression_ratio"] == pytest.approx(1 - 32 / 199)
    assert record["baseline"] is None
    assert record["environment"]["dtype"] == "float32"
    json.dumps(record, allow_nan=False)


def test_result_fills_the_baseline_from_a_dense_record_of_the_same_tokens(folder, tmp_path):
    runs = {name: stored(folder, tmp_path, name, method=name, positions=9) for name in METHODS}
    result = collect_result(runs, BOOTSTRAP)
    dense, streaming = read_run(runs["dense"]), read_run(runs["streaming"])
    assert result["baseline"]["perplexity"] == dense.record["streaming"]["perplexity"]
    ratio = np.exp((streaming.losses - dense.losses.astype(np.float64))[32:].mean()) - 1
    assert result["common"]["ppl_increase_percent"] == pytest.approx(100 * ratio)
    assert result["metrics"]["speedup"] == pytest.approx(
        dense.record["streaming"]["runtime_sec"] / streaming.record["streaming"]["runtime_sec"]
    )
    assert list(result["methods"]) == list(METHODS)
    summary = experiment_summary([result], [])
    assert "random ids" in summary
    assert "That was done for 9 seeded tokens" in summary
    assert "too narrow" in summary  # 167 tokens are not two blocks


def test_recompute_at_every_position_is_its_own_mean(folder, tmp_path):
    """From a sample of all there is nothing left to estimate."""
    record, losses = measure(folder, method="recompute", positions=10_000)
    sample, scores = record["recomputed"], record["streaming"]
    assert sample["positions"] == list(range(32, 199))
    assert np.array_equal(losses, measure(folder)[1])  # of the streaming pass it is paired with
    again = np.array(sample["losses_nats"])
    assert scores["after_eviction"]["nll_nats"] == pytest.approx(again.mean(), abs=1e-6)
    assert scores["nll_nats"] == pytest.approx(np.r_[losses[:32], again].mean(), abs=1e-6)
    assert (scores["runtime_sec"], scores["kv_tokens"]) == (None, 32)
    assert scores["tokens_per_sec"] > 0
    dense = read_run(stored(folder, tmp_path, "dense", method="dense"))
    filled = with_baseline(
        read_run(stored(folder, tmp_path, "r", method="recompute", positions=10_000)), dense, 40, BOOTSTRAP
    )
    assert filled["metrics"]["speedup"] is None
    expected = (again - dense.losses[32:])[8:].mean()
    # the mean difference is that of all positions, the tokens behind 40 are judged
    shift = sample["difference_nats"] - (again - losses[32:])[8:].mean()
    assert filled["common"]["nll_difference_nats"] == pytest.approx(expected + shift, abs=1e-6)


def test_recompute_from_a_sample_has_the_wider_interval(folder):
    few, all_of_them = (measure(folder, method="recompute", positions=n)[0] for n in (6, 10_000))
    widths = [np.diff(record["recomputed"]["difference_interval"])[0] for record in (few, all_of_them)]
    assert 0 < widths[1] < widths[0]
    assert len(few["recomputed"]["losses_nats"]) == 6


def test_recompute_before_any_eviction_is_dense(folder):
    record, _ = measure(folder, method="recompute", positions=4, window_size=999)
    assert record["recomputed"]["positions"] == []
    assert record["streaming"]["nll_nats"] == pytest.approx(
        measure(folder, method="dense")[1].mean(), abs=1e-5
    )


def test_text_that_never_fills_the_cache_is_refused(folder, tmp_path):
    ids = IDS[:30]
    runs = {name: stored(folder, tmp_path, name, method=name, ids=ids) for name in ("dense", "streaming")}
    with pytest.raises(ValueError, match="nothing is evicted at capacity 32 in the 30 tokens of random ids"):
        collect_result(runs, BOOTSTRAP)


def test_records_of_other_tokens_or_machines_are_never_compared(folder, tmp_path):
    dense = read_run(stored(folder, tmp_path, "dense", method="dense"))
    other = read_run(stored(folder, tmp_path, "other", ids=IDS[:150]))
    with pytest.raises(ValueError, match="stream of tokens differs"):
        with_baseline(other, dense, 32, BOOTSTRAP)
    moved = read_run(stored(folder, tmp_path, "moved"))
    moved.record["environment"]["processor"] = "another"
    with pytest.raises(ValueError, match="processor differs"):
        with_baseline(moved, dense, 32, BOOTSTRAP)


def test_ablation_judges_every_row_on_the_tokens_past_the_largest_capacity(folder, tmp_path):
    dense = stored(folder, tmp_path, "dense", method="dense")
    runs = [stored(folder, tmp_path, f"w{w}", window_size=w) for w in (8, 60)]
    ablation = collect_ablation("window_size", [dense], runs, BOOTSTRAP)
    assert ablation["first_token"] == 64
    assert [row["common"]["scored"] for row in ablation["rows"]] == [199 - 64] * 2
    assert ablation["baseline"]["random ids"]["common"]["first_token"] == 64
    with pytest.raises(ValueError, match="nothing is evicted at capacity 304"):
        collect_ablation(
            "window_size", [dense], [stored(folder, tmp_path, "big", window_size=300)], BOOTSTRAP
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_sink": -1}, "n_sink must be >= 0, got -1"),
        ({"window_size": 0}, "window_size must be >= 1, got 0"),
        ({"method": "recompute"}, "recompute is estimated at positions >= 1, got 0"),
        ({"method": "steaming"}, "unknown method 'steaming'; known are dense, window, recompute, streaming"),
        ({"ids": np.array([1, VOCAB])}, f"token id {VOCAB} is outside the vocabulary of {VOCAB}"),
        ({"ids": np.array([1, -1])}, "token id -1 is outside the vocabulary"),
        ({"ids": np.array([1])}, "at least 2 are needed"),
        ({"dtype": "int64"}, "unknown dtype 'int64'"),
        ({"device": "cuda:77"}, "device 'cuda:77' cannot be used"),
        ({"device": "meta"}, "unknown device 'meta'"),
    ],
)
def test_bad_input_is_one_clear_line(folder, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        measure(folder, **options)
    assert "\n" not in str(caught.value)


UNSUPPORTED = {
    "learned positions": (GPT2LMHeadModel, GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=1, n_head=2)),
    "ALiBi": (BloomForCausalLM, BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=1, n_head=2)),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_model_that_cannot_be_exact_is_refused_and_left_as_it_was(kind):
    build, config = UNSUPPORTED[kind]
    model = build(config).eval()
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match="positions, which are not rotary, of") as caught, prepare(model):
        pass
    assert "\n" not in str(caught.value)
    assert model.config._attn_implementation == before
    model(torch.tensor([[1, 2, 3]]))


def test_rotation_that_follows_the_length_is_refused():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with (
        pytest.raises(ValueError, match="rope type 'dynamic'"),
        prepare(tiny_llama(rope_parameters=rope)),
    ):
        pass


def test_attention_that_is_not_known_here_is_refused():
    model = tiny_llama()
    for layer in model.model.layers:
        layer.self_attn.scaling = 3.0  # honoured by ours
    with prepare(model):
        pass
    rotary, plain = model.model.rotary_emb, model.model.rotary_emb.forward
    rotary.forward = lambda x, position_ids: plain(x, position_ids * 2)  # not what inv_freq says
    with (
        pytest.raises(ValueError, match="changes queries or keys of layer 0 by their position in a way"),
        prepare(model),
    ):
        pass


def test_prepared_model_refuses_to_run_without_a_sink_cache():
    with prepare(tiny_llama()) as model, pytest.raises(ValueError, match="needs a SinkCache"):
        model(torch.tensor([[1, 2, 3]]))


def test_unprepared_model_refuses_a_sink_cache():
    model = tiny_llama()
    with pytest.raises(ValueError, match="not prepared"):
        model(torch.tensor([[1, 2, 3]]), past_key_values=SinkCache(model.config, 2, 4))


def test_prepare_undoes_itself():
    model, ids = tiny_llama(), torch.tensor([[1, 2, 3]])
    before = model(ids).logits
    with prepare(model):
        pass
    assert torch.equal(model(ids).logits, before)


def test_weights_that_give_nan_are_refused(tmp_path):
    model = tiny_llama()
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not finite"):
        load_model(tmp_path, dtype=torch.float32, device="cpu")


def test_nan_that_only_some_tokens_meet_is_refused(tmp_path):
    model = tiny_llama(tie_word_embeddings=False)
    model.model.embed_tokens.weight.data[1] = torch.nan  # not among the tokens that are tried at load
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the loss of token \d+ is not finite"):
        measure(tmp_path, ids=np.array([0, 3, 1, 5]))


def test_damaged_or_missing_model_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="is not a model folder"):
        load_model(tmp_path / "nowhere", dtype=torch.float32, device="cpu")
    tiny_llama().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ValueError, match="cannot be read") as caught:
        load_model(tmp_path, dtype=torch.float32, device="cpu")
    assert "\n" not in str(caught.value)


def test_weights_that_lack_or_add_a_tensor_are_refused(tmp_path):
    """What is missing would be filled with random numbers, and scored."""
    tiny_llama().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    for changed in (
        {name: x for name, x in weights.items() if "layers.1.mlp.up_proj" not in name},
        weights | {"model.layers.7.mlp.up_proj.weight": torch.ones(2)},
    ):
        save_file(changed, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"weights in .* do not fit its config") as caught:
            load_model(tmp_path, dtype=torch.float32, device="cpu")
        assert "\n" not in str(caught.value)


def test_losses_are_of_logits_as_the_model_finishes_them():
    config = GraniteConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, logits_scaling=0.25,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GraniteForCausalLM(config).eval()
    with torch.inference_mode():
        logits = model(torch.from_numpy(IDS)[None]).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(IDS[1:]), reduction="none")
    with prepare(model):
        losses, _ = score_stream(model, IDS, StreamConfig(n_sink=0, window_size=len(IDS)))
    assert_close(torch.from_numpy(losses), expected, rtol=0, atol=1e-4)
