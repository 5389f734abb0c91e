"""Layers with a state of fixed size beside those that attend; exactness is in test_every_family."""

import pytest
import torch
import transformers
from families import build
from judge import ids_of
from torch.testing import assert_close
from transformers import Cache

import streamlm.cache.sink_cache
from streamlm.cache.captured_step import CapturedStep
from streamlm.cache.footprint import dense_bytes, describe_layout
from streamlm.cache.kept_state import kept_states
from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache
from streamlm.measure.memory import held_bytes

NAMES = ("lfm2 convolutions", "qwen3_next", "qwen3_5_text", "olmo_hybrid")
IS_THERE = hasattr(Cache, "get_recurrent_state")
newer = pytest.mark.skipif(not IS_THERE, reason="transformers keeps no such state in a cache of any kind")


@pytest.fixture(params=NAMES)
def model(request):
    with prepare(build(request.param)) as prepared, torch.inference_mode():
        yield prepared


def feed(model, cache, ids, sizes=(7, 3)):
    first, second, rest = ids.split([*sizes, ids.shape[1] - sum(sizes)], dim=1)
    parts = [first, second, *rest.split(1, 1)]
    return torch.cat([model(part, past_key_values=cache).logits for part in parts], dim=1)


@pytest.mark.parametrize("name", NAMES[:3])  # which every version has
def test_layers_with_a_state_hold_no_keys(name):
    layout = describe_layout(build(name).config)
    attending = 2 if name == "lfm2 convolutions" else 1
    assert layout.layers - layout.state_layers == attending
    assert dense_bytes(layout, 1, torch.float32) == attending * 2 * layout.kv_heads * layout.head_size * 4


@pytest.mark.skipif(IS_THERE, reason="this transformers can")
def test_older_transformers_is_named():
    with pytest.raises(
        ValueError,
        match=rf"^transformers {transformers.__version__} keeps a state .* of lfm2 have.*5.24.0 lets",
    ):
        SinkCache(build("lfm2 convolutions").config)


@newer
def test_reset_forgets_the_state(model):
    cache, ids = SinkCache(model.config, 2, 6), ids_of("x")[None]
    before = feed(model, cache, ids)
    cache.reset()
    assert_close(feed(model, cache, ids), before)


@newer
def test_saved_state_goes_on_as_if_never_saved(model, tmp_path):
    ids = ids_of("x")[None]
    cache = SinkCache(model.config, 2, 6)
    feed(model, cache, ids)
    cache.save(tmp_path / "it")
    other = SinkCache.load(tmp_path / "it", model)
    assert torch.equal(*(feed(model, each, ids) for each in (cache, other)))
    assert other.nbytes == cache.nbytes


@newer
def test_state_of_another_model_is_refused(model):
    ids, cache = ids_of("x")[None], SinkCache(model.config, 2, 6)
    feed(model, cache, ids)
    state = cache.state_dict() | {"0.phases": torch.ones(1)}
    with pytest.raises(ValueError, match=r"the state holds 0\.phases, which this SinkCache does not have"):
        SinkCache(model.config, 2, 6).load_state_dict(state)


@newer
def test_state_without_a_layer_is_refused(model):
    cache = SinkCache(model.config, 2, 6)
    feed(model, cache, ids_of("x")[None])
    state = {name: tensor for name, tensor in cache.state_dict().items() if not name.startswith("0.")}
    with pytest.raises(ValueError, match="the state has no layer 0; it was made for another model"):
        SinkCache(model.config, 2, 6).load_state_dict(state)


@newer
def test_rows_follow_selection(model):
    ids, cache = torch.stack([ids_of("x"), ids_of("longer")]), SinkCache(model.config, 2, 6)
    feed(model, cache, ids)
    cache.reorder_cache(torch.tensor([1, 0]))
    crossed = feed(model, cache, ids)
    for row, tokens in enumerate((ids[1], ids[0])):
        alone = SinkCache(model.config, 2, 6)
        feed(model, alone, tokens[None])
        assert_close(crossed[row], feed(model, alone, ids[row : row + 1])[0], rtol=0, atol=1e-3)


@newer
def test_generation_is_token_by_token_decoding(model):
    ids = ids_of("x")[None, :9]
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=SinkCache(model.config, 2, 6),
        max_new_tokens=20,
        do_sample=False,
    )
    cache, expected = SinkCache(model.config, 2, 6), ids
    logits = model(ids, past_key_values=cache).logits
    for _ in range(20):
        expected = torch.cat([expected, logits[:, -1:].argmax(-1)], dim=1)
        logits = model(expected[:, -1:], past_key_values=cache).logits
    assert out.tolist() == expected.tolist()


@newer
def test_left_pads_are_refused(model):
    ids, mask = ids_of("x").view(2, -1), torch.ones(2, 14, dtype=torch.int64)
    mask[1, :3] = 0
    with pytest.raises(
        ValueError, match="would read left pads as tokens; give the model one prompt at a time"
    ):
        model(ids, attention_mask=mask, past_key_values=SinkCache(model.config, 2, 6))


@newer
def test_going_back_is_refused(model):
    cache = SinkCache(model.config, 2, 60)
    model(ids_of("x")[None], past_key_values=cache)
    cache.crop(28)
    with pytest.raises(
        ValueError, match="cannot go back from 28 to 20 tokens: the model has layers with a state"
    ):
        cache.crop(20)


@newer
def test_capture_is_refused(model):
    cache = SinkCache(model.config, 2, 6)
    feed(model, cache, ids_of("x")[None])
    with pytest.raises(ValueError, match="a step cannot be captured where layers have a state of fixed size"):
        CapturedStep(model, cache, lambda run: run)


@newer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_state_that_a_chunk_does_not_hand_on_is_noticed(monkeypatch, name, dtype):
    def forgetful(config, attending):
        layers = kept_states(config, attending)
        for layer in layers.values():
            layer.update_conv_state = forget(layer, layer.update_conv_state)
        return layers

    def forget(layer, right):
        def update(states, *args, **options):
            seen = right(states, *args, **options)
            layer.has_previous_state[0] = False
            return seen

        return update

    model = build(name).to(dtype)
    with prepare(model):
        pass
    monkeypatch.setattr(streamlm.cache.sink_cache, "kept_states", forgetful)
    with pytest.raises(ValueError, match="computes something else with this cache"), prepare(model):
        pass


@newer
@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_those_held(name):
    model, ids = build(name), ids_of("x")[None]
    plain = held_bytes(model(ids, use_cache=True)["cache"])
    with prepare(model), torch.inference_mode():
        cache = SinkCache(model.config, 0, 28)
        feed(model, cache, ids)
    assert held_bytes(cache) == cache.nbytes == plain
