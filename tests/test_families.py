"""Every supported family against the naive cache run on the family's own code."""

import pytest
import reference
import torch
import transformers
from conftest import VOCAB, use_float64_angles
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache
from streamlm.cache.supported import layer_windows

SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8,
    "initializer_range": 0.4, "pad_token_id": 0,
}  # fmt: skip


def rope(**options):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0} | options}


MIXED = {
    "layer_types": ["full_attention", "sliding_attention"],
    "sliding_window": 6,
    "use_sliding_window": True,
}
FAMILIES = {
    "Llama": {},
    "Llama linear": rope(rope_type="linear", factor=2.0),
    "Llama llama3": rope(
        rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32,
    ),
    "Llama yarn": rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
    "Mistral": {"sliding_window": None},
    "Mistral sliding": {"sliding_window": 6},
    "Qwen2": {},
    "Qwen2 mixed": MIXED,
    "Qwen3": {},
    "Qwen3 mixed": MIXED,
    "Phi3": {"sliding_window": None} | rope(partial_rotary_factor=0.5),
    "Phi3 longrope": {
        "sliding_window": None, "max_position_embeddings": 128, "original_max_position_embeddings": 32,
    } | rope(rope_type="longrope", short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[2.0, 3.0, 4.0, 5.0]),
    "Gemma": {},
    "GPTNeoX": rope(partial_rotary_factor=0.25),
    "StableLm": rope(partial_rotary_factor=0.25),
    "Glm": rope(partial_rotary_factor=0.5),
    "Ernie4_5": {},
}  # fmt: skip
INTERLEAVED = {"Glm", "Ernie4_5"}


def build(family):
    torch.manual_seed(0)
    name = family.partition(" ")[0]
    config = getattr(transformers, f"{name}Config")(**SIZES | FAMILIES[family])
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
@given(
    n_tokens=st.integers(1, 30), chunk=st.integers(1, 12), limit=st.sampled_from([0, 10_000]),
    n_sink=st.integers(0, 4), window_size=st.integers(1, 9),
)  # fmt: skip
def test_family_matches_the_naive_cache_on_its_own_code(family, n_tokens, chunk, limit, n_sink, window_size):
    model = use_float64_angles(build(family))
    ids = torch.randint(VOCAB, (1, n_tokens), generator=torch.Generator().manual_seed(n_tokens))
    pairs = "neighbours" if family in INTERLEAVED else "halves"
    with torch.inference_mode():
        slow = reference.naive_logits(
            model, ids, [*layer_windows(model.config).values()], n_sink, window_size, pairs
        )
        with prepare(model):
            cache = SinkCache(model.config, n_sink, window_size, position_limit=limit)
            head, tail = ids[:, : 2 * chunk], ids[:, 2 * chunk :]
            parts = [*head.split(chunk, 1), *(tail.split(1, 1) if tail.shape[1] else ())]
            fast = torch.cat([model(part, past_key_values=cache).logits for part in parts], dim=1)
    assert_close(fast, slow, rtol=0, atol=1e-9)


def test_longrope_streams_on_its_short_frequencies():
    """Past 32 positions transformers takes other frequencies; the cache never goes there."""
    model, ids = build("Phi3 longrope"), torch.randint(VOCAB, (1, 100))
    with torch.inference_mode():
        slow = reference.naive_logits(model, ids, [None, None], 3, 9, "halves")
        with prepare(model):
            cache = SinkCache(model.config, 3, 9)
            fast = torch.cat([model(part, past_key_values=cache).logits for part in ids.split(5, 1)], dim=1)
            with pytest.raises(
                ValueError, match="this pass of 30 tokens goes to 41; feed at most 21 tokens at a time"
            ):
                model(ids[:, :30], past_key_values=cache)
    assert_close(fast, slow, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="use a window_size of at most 29"):
        SinkCache(model.config, 3, 30)
