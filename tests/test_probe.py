"""What a model is asked when it is prepared; every answer that is not understood refuses it."""

import copy
import pickle

import pytest
import torch
from conftest import VOCAB, tiny_llama
from families import build
from torch.testing import assert_close
from transformers.models.llama import modeling_llama

from streamlm.cache.prepare import prepare
from streamlm.cache.probe import ask_layers, describe_rotations
from streamlm.cache.sink_cache import SinkCache

IDS = torch.randint(VOCAB, (1, 40), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", [(4, False, 0)] * 4),
        ("gpt_neox partial", [(1, False, 0)] * 4),
        ("glm", [(2, True, 0)] * 4),
        ("smollm3", [(4, False, 0)] * 3 + [None]),
        ("deepseek_v3", [(4, False, 8)] * 4),
        ("deepseek_v2", [(4, True, 8)] * 4),
    ],
)
def test_every_layer_shows_how_it_rotates(name, expected, dtype):
    found = ask_layers(build(name).to(dtype))
    assert [r and (len(r.inv_freq), r.interleaved, r.first) for r in found] == expected


def test_layers_of_several_rotations_have_their_own_frequencies():
    model = build("gemma3_text 6")
    own = model.model.rotary_emb
    kinds = {
        "sliding_attention": own.sliding_attention_inv_freq,
        "full_attention": own.full_attention_inv_freq,
    }
    for rotary, kind in zip(ask_layers(model), model.config.layer_types, strict=True):
        assert_close(rotary.inv_freq, kinds[kind])


def test_frequencies_that_need_more_than_the_config_are_those_of_the_buffers():
    model = build("llama")
    model.model.rotary_emb.rope_init_fn = lambda config, layer_type: None
    assert all(rotary.inv_freq is model.model.rotary_emb.inv_freq for rotary in ask_layers(model))


def test_rotation_the_other_way_is_found():
    assert all(bool((rotary.inv_freq < 0).all()) for rotary in ask_layers(build("nanochat")))
    with prepare(build("nanochat")) as model:
        assert "backwards" in describe_rotations(model)


def refused(model, match):
    with pytest.raises(ValueError, match=match), prepare(model):
        pass


def test_unknown_use_of_positions_is_refused():
    model = tiny_llama()
    rotary = model.model.rotary_emb
    plain = rotary.forward
    rotary.forward = lambda x, position_ids: plain(x, position_ids**2)
    refused(model, "changes queries or keys of layer 0 by their position in a way that is not known")


def test_queries_that_grow_with_the_position_are_refused():
    model = tiny_llama()
    plain = model.model.rotary_emb.forward

    def scaled(x, position_ids):
        cos, sin = plain(x, position_ids)
        return cos * (1 + 0.1 * position_ids[..., None]), sin * (1 + 0.1 * position_ids[..., None])

    model.model.rotary_emb.forward = scaled
    refused(model, "changes queries or keys of layer 0")


def test_window_that_the_config_does_not_say_is_refused():
    model = build("mistral sliding 6")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamlm.cache.probe.layer_windows", lambda config: dict.fromkeys(range(4), 7))
        refused(model, "lets layer 0 see through a window of 6 tokens, where its config says 7")


def test_attention_of_another_kind_is_refused(monkeypatch):
    eager = modeling_llama.eager_attention_forward

    def squared(module, query, key, value, mask, **options):
        out, weights = eager(module, query, key, value, mask, **options)
        return out**2, weights

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", squared)
    refused(tiny_llama(), "attends in another way, in layer 0")


def test_argument_that_is_not_known_is_refused(monkeypatch):
    forward = modeling_llama.LlamaAttention.forward

    def with_more(self, *args, **kwargs):
        return forward(self, *args, **kwargs, bias_of_mine=torch.ones(1))

    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", with_more)
    refused(tiny_llama(), "gives its attention 'bias_of_mine', which is not known here")


def test_keys_that_change_after_they_are_stored_are_refused(monkeypatch):
    repeat = modeling_llama.ALL_ATTENTION_FUNCTIONS.get_interface

    def doubled(*args):
        attend = repeat(*args)
        return lambda module, query, key, *rest, **options: attend(module, query, 2 * key, *rest, **options)

    monkeypatch.setattr(modeling_llama.ALL_ATTENTION_FUNCTIONS, "get_interface", doubled)
    refused(tiny_llama(), "changes the keys of layer 0 after they are stored")


def test_copies_of_a_prepared_model_are_prepared():
    with prepare(tiny_llama()) as model, torch.inference_mode():
        expected = model(IDS, past_key_values=SinkCache(model.config, 3, 9)).logits
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert_close(other(IDS, past_key_values=SinkCache(model.config, 3, 9)).logits, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_features_beside_large_ones_show_their_rotation(dtype):
    """The slowest pair, which hardly moves, is a thousand times as large as the others."""
    model = build("llama").to(dtype)
    with torch.no_grad():
        for layer in model.model.layers:
            for weight in (layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight):
                weight.view(-1, 8, weight.shape[1])[:, [3, 7]] *= 1000
    found = ask_layers(model)
    assert [rotary and len(rotary.inv_freq) for rotary in found] == [4] * 4
    plain = model.model.rotary_emb.forward

    def twice_but_the_slowest(x, position_ids):
        twice, once = plain(x, position_ids * 2), plain(x, position_ids)
        for changed, kept in zip(twice, once, strict=True):
            changed[..., [3, 7]] = kept[..., [3, 7]]
        return twice

    model.model.rotary_emb.forward = twice_but_the_slowest
    with pytest.raises(ValueError, match="changes queries or keys of layer 0"):
        ask_layers(model)
