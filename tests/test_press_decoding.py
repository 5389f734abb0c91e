import numpy as np
import pytest
import reference
import torch
from conftest import MODELS, VOCAB
from numpy.testing import assert_allclose
from transformers import DynamicCache

from streamlm.config import Compute
from streamlm.presses.adapter import attached, make_decoding_press
from streamlm.presses.decoding import TURN_TOKENS, DecodeConfig, Survivors, measure_decoding
from streamlm.presses.grammar import parse_press
from streamlm.presses.setting import Setting
from streamlm.stats import BootstrapConfig

pytestmark = pytest.mark.kvpress

SCORER = parse_press("StreamingLLMPress(n_sink=2)")


def text(n_tokens):
    return np.random.default_rng(0).integers(0, VOCAB, n_tokens)


@pytest.fixture(scope="module")
def measure(tmp_path_factory):
    """A function that decodes random ids with a tiny model; returns record, losses by method."""
    folders = {}

    def measured(name, n_sink, dtype="float32", **sizes):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            MODELS[name]().save_pretrained(folders[name])
        decode = DecodeConfig(**sizes)
        setting = Setting(
            model_dir=folders[name],
            texts={"random": text(decode.n_ids)},
            compute=Compute(dtype=dtype, device="cpu", torch_threads=1),
            bootstrap=BootstrapConfig(resamples=100),
        )
        record, scores = measure_decoding(setting, n_sink=n_sink, decode=decode)
        return record, dict(zip(record["texts"][0]["methods"], scores[0, 0], strict=True))

    return measured


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("n_sink", "capacity", "tokens"), [(1, 3, 30), (2, 9, TURN_TOKENS), (4, 24, TURN_TOKENS + 1), (3, 40, 90)]
)
def test_faithful_kvpress_equals_streamlm(measure, name, n_sink, capacity, tokens):
    record, losses = measure(name, n_sink, capacity=capacity, tokens=tokens, interval=4)
    assert_allclose(losses["kvpress_faithful"], losses["streamlm"], atol=1e-4)
    survivors = record["texts"][0]["methods"]["kvpress_faithful"]["survivors"]
    assert survivors["sinks"] == [n_sink] * tokens
    assert survivors["recent"] == [capacity - 1 - n_sink] * tokens


@pytest.mark.parametrize("name", MODELS)
def test_streamlm_and_dense_are_what_they_are_said_to_be(measure, name):
    record, losses = measure(name, 2, dtype="float64", capacity=9, tokens=25, interval=4)
    model, ids = MODELS[name]().double(), text(34)
    twin = reference.llama_losses if name == "llama" else reference.neox_losses
    assert_allclose(losses["streamlm"], twin(model, ids.tolist(), 2, 7)[8:].detach(), atol=1e-5)
    logits = model(torch.from_numpy(ids)[None]).logits[0, 8:-1]
    dense = torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids[9:]), reduction="none")
    assert_allclose(losses["dense"], dense.detach(), atol=1e-5)
    methods = record["texts"][0]["methods"]
    assert methods["dense"]["kl_nats"] == 0
    assert methods["streamlm"]["kl_nats"] > 0
    sizes = [methods[label]["kv_bytes"] for label in ("kvpress_every_1", "kvpress_every_4", "dense")]
    assert sizes[0] < sizes[1] < sizes[2]


def test_kvpress_as_it_is_runs_as_under_its_own_context_manager(measure):
    """Cut every 4 tokens, each token at its position in the text."""
    _, losses = measure("llama", 2, capacity=9, tokens=24, interval=4)
    model, ids = MODELS["llama"](), torch.from_numpy(text(33))
    press, cache = make_decoding_press(SCORER, model, 8, 4), DynamicCache()
    expected = []
    with press(model), torch.inference_mode():
        model(ids[None, :8], past_key_values=cache)
        for t in range(8, 32):
            logits = model(
                ids[None, t : t + 1], past_key_values=cache, position_ids=torch.tensor([[t]])
            ).logits
            expected.append(torch.nn.functional.cross_entropy(logits[0], ids[t + 1 : t + 2]))
    assert_allclose(losses["kvpress_every_4"], torch.stack(expected), atol=1e-4)


def test_kvpress_in_order_keeps_sinks_and_recent_tokens_at_their_positions(measure):
    """Every 4 tokens, of what is held, the first 2 and the last 6 stay as they are."""
    record, losses = measure("llama", 2, capacity=9, tokens=24, interval=4)
    model, ids, cache = MODELS["llama"](), torch.from_numpy(text(33)), DynamicCache()
    expected = []
    with torch.inference_mode():
        model(ids[None, :8], past_key_values=cache)
        for t in range(8, 32):
            position = torch.tensor([[t]])
            logits = model(ids[None, t : t + 1], past_key_values=cache, position_ids=position).logits
            expected.append(torch.nn.functional.cross_entropy(logits[0], ids[t + 1 : t + 2]))
            if (t - 7) % 4 == 0:
                for layer in cache.layers:
                    layer.keys = torch.cat((layer.keys[:, :, :2], layer.keys[:, :, -6:]), dim=2)
                    layer.values = torch.cat((layer.values[:, :, :2], layer.values[:, :, -6:]), dim=2)
    assert_allclose(losses["kvpress_in_order_every_4"], torch.stack(expected), atol=1e-4)
    survivors = record["texts"][0]["methods"]["kvpress_in_order_every_4"]["survivors"]
    assert (survivors["sinks"], survivors["recent"]) == ([2] * 6, [6] * 6)


@pytest.mark.parametrize("name", MODELS)
def test_kvpress_as_it_is_loses_sinks_and_recent_tokens(measure, name):
    """It keeps the order of `topk`, and takes the first entries for the sinks."""
    record, losses = measure(name, 4, capacity=64, tokens=160, interval=8)
    methods = record["texts"][0]["methods"]
    survivors = methods["kvpress_every_8"]["survivors"]
    assert (survivors["interval"], survivors["after_rounds"], len(survivors["sinks"])) == (8, 20, 20)
    assert survivors["sinks_after"] == survivors["sinks"][-1] < 4
    assert survivors["recent_after"] == survivors["recent"][-1] < 59
    assert np.abs(losses["kvpress_every_8"] - losses["streamlm"]).max() > 1e-2


def test_survivors_are_those_whose_values_are_kept():
    """Values that equal their position are kept exactly where the survivors say, in every head."""
    model = MODELS["llama"]()
    press, watched = (make_decoding_press(SCORER, model, 8, 3) for _ in "ab")
    survivors = Survivors(2, 8, 3)
    survivors.watch(watched)
    cache = DynamicCache()
    for t in range(0, 8 + 12):
        keys = torch.randn(1, 2, 1, 8)
        cache.update(keys, torch.full((1, 2, 1, 8), float(t)), 0)
        if t >= 8 and (t - 7) % 3 == 0:
            layer, module = cache.layers[0], model.model.layers[0].self_attn
            arguments = (module, torch.zeros(1, 1, 32), layer.keys, layer.values, None, {})
            layer.keys, layer.values = press.compress(*arguments)
            kept = watched.compress(*arguments)[1]
            assert torch.equal(kept, layer.values)
            assert torch.equal(survivors.positions.float(), layer.values[0, :, :, 0])


def test_press_that_keeps_another_number_is_an_error():
    model = MODELS["llama"]()
    press = make_decoding_press(SCORER, model, 7, 1)
    Survivors(2, 8, 1).watch(press)
    cache, ids = DynamicCache(), torch.from_numpy(text(10))[None]
    with attached(press.forward_hook, model), torch.inference_mode():
        model(ids[:, :8], past_key_values=cache)
        with pytest.raises(ValueError, match="kvpress keeps 7 tokens where the budget is 8"):
            model(ids[:, 8:9], past_key_values=cache)


def test_sinks_must_leave_room_for_a_recent_token(measure):
    with pytest.raises(ValueError, match="a budget of 4 leaves no window beside 4 sinks"):
        measure("llama", 4, capacity=5, tokens=3, interval=1)
    with pytest.raises(ValueError, match="interval must be >= 1, got 0"):
        DecodeConfig(capacity=5, tokens=3, interval=0)
