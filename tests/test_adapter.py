"""kvpress's presses on tiny models."""

import pytest
import torch
from conftest import MODELS, VOCAB, tiny_llama, tiny_neox
from hypothesis import given
from hypothesis import strategies as st
from reference import rotate
from torch.testing import assert_close
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from streamlm.presses.adapter import (
    KeptLayer,
    attached,
    attention_modules,
    check_budget,
    check_model,
    exact_ratio,
    make_press,
    refusal,
    rerotate_keys,
)
from streamlm.presses.grammar import PRESSES, parse_press

pytestmark = pytest.mark.kvpress

N_TOKENS = 24


def as_written(name, spec):
    """The press with as few arguments as the short text of these tests allows."""
    arguments = ["KnormPress"] * spec.wraps + ["window_size=4"] * (spec.window_size > 0)
    return f"{name}({', '.join(arguments)})"


TEXTS = [
    *(as_written(name, spec) for name, spec in PRESSES.items()),
    "KeyRerotationPress(StreamingLLMPress(n_sink=2))",
    "LagKVPress(n_sink=2, lag_size=4)",
    "CURPress(num_sinks=2, leverage_type='key', use_random_leverage=True)",
]
KEYS_ONLY = [text for text in TEXTS if not parse_press(text).needs_queries]


def ids():
    return torch.randint(VOCAB, (1, N_TOKENS), generator=torch.Generator().manual_seed(1))


def compressed(model, text, n_kept, *, own=False):
    """The layers after a pass that a press has cut, by our hook or by kvpress's own context manager."""
    press, cache = make_press(parse_press(text)), DynamicCache(config=model.config)
    press.compression_ratio = exact_ratio(N_TOKENS, n_kept)
    press.post_init_from_model(model)
    torch.manual_seed(0)
    with press(model) if own else attached(press.forward_hook, model), torch.inference_mode():
        model.base_model(ids(), past_key_values=cache)
    masks = [getattr(module, "masked_key_indices", None) for module in attention_modules(model)]
    return [
        KeptLayer(layer.keys, layer.values, mask) for layer, mask in zip(cache.layers, masks, strict=True)
    ]


@given(st.data())
def test_ratio_keeps_exactly_the_budget(data):
    n_tokens = data.draw(st.integers(2, 1_000_000))
    n_kept = data.draw(st.integers(1, n_tokens - 1))
    assert int(n_tokens * (1 - exact_ratio(n_tokens, n_kept))) == n_kept


def test_obvious_ratio_would_fall_short():
    sizes = [(n, k) for n in range(2, 200) for k in range(1, n)]
    assert any(int(n * (1 - (1 - k / n))) < k for n, k in sizes)


@pytest.mark.parametrize("n_kept", [9, 16, 23])
@pytest.mark.parametrize("text", TEXTS)
def test_every_press_keeps_exactly_the_budget_as_kvpress_does(text, n_kept):
    ours, theirs = (compressed(tiny_llama(), text, n_kept, own=own) for own in (False, True))
    check_budget(ours, n_kept)
    for layer, other in zip(ours, theirs, strict=True):
        assert_close(layer.keys, other.keys)
        assert_close(layer.values, other.values)
        assert (layer.masked is not None) == PRESSES[parse_press(text).name].masks
        assert_close(layer.masked, other.masked)


def test_wrong_count_is_an_error():
    cache = compressed(tiny_llama(), "KnormPress", 9)
    with pytest.raises(ValueError, match="layers keep 9 to 9 tokens where the budget is 10"):
        check_budget(cache, 10)


@pytest.mark.parametrize("text", KEYS_ONLY)
def test_presses_that_need_only_keys_run_on_neox(text):
    check_budget(compressed(tiny_neox(), text, 9), 9)


def test_other_presses_are_refused_on_neox_with_the_reason():
    model = tiny_neox()
    for text in TEXTS:
        press = parse_press(text)
        reason = refusal(press, model)
        assert (reason is None) == (text in KEYS_ONLY)
        assert refusal(press, tiny_llama()) is None
        if reason is not None:
            assert "GPT-NeoX has one joint query_key_value" in reason
            with pytest.raises((AttributeError, NotImplementedError)):
                compressed(model, text, 9)


@pytest.mark.parametrize("name", MODELS)
def test_adapter_is_undone_even_after_an_error(name):
    model = MODELS[name]()
    lent = [(module, name) for module in attention_modules(model) for name in ("rotary_emb", "head_dim")]
    before = [hasattr(*each) for each in lent]
    assert not all(before)
    with pytest.raises(ZeroDivisionError), attached(lambda *_: 1 / 0, model):
        model.base_model(ids(), past_key_values=DynamicCache(config=model.config))
    assert [hasattr(*each) for each in lent] == before
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_kept_keys_are_rotated_to_cache_positions_and_other_features_stay(name):
    model = MODELS[name]().double()
    module = attention_modules(model)[0]
    module.rotary_emb = model.base_model.rotary_emb
    inv_freq = module.rotary_emb.inv_freq.double()
    raw = torch.randn(1, 2, 10, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    written = torch.stack([rotate(raw[:, :, t], t, inv_freq) for t in range(10)], dim=2)
    kept = torch.tensor([0, 1, 6, 8])
    rotated = rerotate_keys(module, kept.expand(1, 2, -1), written)
    expected = torch.stack([rotate(raw[:, :, t], slot, inv_freq) for slot, t in enumerate(kept)], dim=2)
    assert_close(rotated, expected, atol=1e-5, rtol=1e-5)  # kvpress forms its angles in float32


def test_models_of_other_families_are_refused():
    learned = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=VOCAB))
    with pytest.raises(ValueError, match="cannot be compared on GPT2LMHeadModel; they can on models of the"):
        check_model(learned)
    sliding = MODELS["llama"]()
    sliding.config.model_type = "gemma3"
    with pytest.raises(ValueError, match="llama, mistral, phi3"):
        check_model(sliding)
