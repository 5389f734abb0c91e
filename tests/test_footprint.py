import pytest
import torch
from conftest import MODELS, tiny_llama
from transformers import Gemma2Config, LlamaConfig, MistralConfig, MistralForCausalLM

from streamlm.cache.footprint import (
    dense_bytes,
    describe_costs,
    describe_layout,
    sink_cache_bytes,
)
from streamlm.cache.prepare import prepare
from streamlm.cache.probe import ask_layers
from streamlm.cache.sink_cache import SinkCache
from streamlm.cache.stored import read_config
from streamlm.config import StreamConfig


def tiny_mistral():
    """Both layers with a sliding window of 5 of their own."""
    torch.manual_seed(0)
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, sliding_window=5,
        )
    ).eval()  # fmt: skip


@pytest.mark.parametrize("make", [*MODELS.values(), tiny_mistral])
@pytest.mark.parametrize("kv_dtype", [None, torch.int8, torch.bfloat16])
def test_bytes_of_a_cache_are_those_it_takes(make, kv_dtype):
    model, cfg = make(), StreamConfig(n_sink=3, window_size=9)
    cache = SinkCache(model.config, n_sink=3, window_size=9, kv_dtype=kv_dtype)
    with prepare(model):
        model(torch.arange(30)[None], past_key_values=cache)
    assert sink_cache_bytes(describe_layout(model.config), cfg, model.dtype, kv_dtype) == cache.nbytes


@pytest.mark.parametrize("make", [*MODELS.values(), tiny_mistral])
def test_dense_bytes_are_those_that_transformers_holds(make):
    model = make()
    held = model(torch.arange(30)[None]).past_key_values
    expected = sum(layer.keys.nbytes + layer.values.nbytes for layer in held.layers)
    if make is tiny_mistral:  # transformers keeps what the next query sees, one less than the window
        expected = expected * 5 // 4
    assert dense_bytes(describe_layout(model.config), 30, model.dtype) == expected


def test_layout_is_read_from_the_config(tmp_path):
    tiny_llama(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}).save_pretrained(
        tmp_path
    )
    layout = describe_layout(read_config(tmp_path))
    assert (layout.layers, layout.heads, layout.kv_heads, layout.head_size) == (2, 4, 2, 8)
    assert (layout.rotary, layout.rotary_size, layout.rotary_theta) == ("linear", 8, 500.0)
    assert (layout.trained_length, layout.vocabulary, layout.dtype) == (64, 61, "float32")
    assert layout.refused is None


@pytest.mark.parametrize("make", MODELS.values())
def test_rotary_features_are_those_that_the_model_rotates(make):
    model = make()
    assert describe_layout(model.config).rotary_size == 2 * len(ask_layers(model)[0].inv_freq)


def test_model_that_the_cache_refuses_is_described_with_the_reason():
    config = LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0})
    assert "rope type 'dynamic'" in describe_layout(config).refused


def test_sliding_layers_hold_no_more_than_their_window():
    config = Gemma2Config(num_hidden_layers=4, sliding_window=4096)
    layout = describe_layout(config)
    assert layout.sliding_windows == (4096, 4096)
    per_token = 2 * layout.kv_heads * layout.head_size * 2
    assert dense_bytes(layout, 10_000, torch.bfloat16) == per_token * 2 * (10_000 + 4096)


def test_costs_are_of_dense_over_the_cache():
    layout = describe_layout(tiny_llama().config)
    sizes = [StreamConfig(n_sink=0, window_size=10), StreamConfig(n_sink=0, window_size=100)]
    costs = describe_costs(layout, sizes, [100], torch.float32, None)
    assert costs["kv_bytes_per_token"] == 2 * 2 * 2 * 8 * 4
    assert [cache["against_dense"][0]["dense_over_this"] for cache in costs["caches"]] == [10, 1]


def test_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match="it has no config"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no such"}')
    with pytest.raises(ValueError, match="cannot be read"):
        read_config(tmp_path)
