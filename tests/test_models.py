import pytest
import reference
import torch
from conftest import MODELS, VOCAB, use_float64_angles
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from streamlm.cache.prepare import prepare
from streamlm.config import StreamConfig
from streamlm.measure.scoring import score_stream

GEOMETRIES = {"n_sink": st.integers(0, 6), "window_size": st.integers(1, 24)}
ORACLES = {"llama": reference.llama_losses, "neox": reference.neox_losses}


def random_ids(n_tokens, seed=0):
    made = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (n_tokens,), generator=made)


def losses_of(model, ids, chunk=1024, query_block=128, **geometry):
    with prepare(model), torch.inference_mode():
        losses, _ = score_stream(
            model, ids.numpy(), StreamConfig(**geometry), chunk=chunk, query_block=query_block
        )
    return torch.from_numpy(losses)


@pytest.mark.parametrize("family", sorted(MODELS))
@given(n_tokens=st.integers(2, 40), chunk=st.integers(1, 20), block=st.integers(1, 20), **GEOMETRIES)
def test_float64_losses_match_the_oracle(family, n_tokens, chunk, block, n_sink, window_size):
    model = use_float64_angles(MODELS[family]())
    ids = random_ids(n_tokens)
    fast = losses_of(model, ids, chunk, block, n_sink=n_sink, window_size=window_size)
    with torch.inference_mode():
        slow = ORACLES[family](model, ids.tolist(), n_sink, window_size)
    assert fast.dtype == torch.float64
    assert_close(fast, slow, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", sorted(MODELS))
@pytest.mark.parametrize(("n_sink", "window_size"), [(0, 8), (3, 5), (4, 60)])
def test_float32_losses_match_the_oracle(family, n_sink, window_size):
    model, ids = MODELS[family](), random_ids(60)
    fast = losses_of(model, ids, chunk=16, query_block=4, n_sink=n_sink, window_size=window_size)
    with torch.inference_mode():
        slow = ORACLES[family](model.double(), ids.tolist(), n_sink, window_size)
    assert fast.dtype == torch.float32
    assert_close(fast.double(), slow, rtol=0, atol=1e-4)


def test_attention_dropout_is_refused():
    model = MODELS["llama"](attention_dropout=0.25).train()
    refused = pytest.raises(ValueError, match="no attention dropout, and this one asks for 0")
    with refused, prepare(model):
        pass


@pytest.mark.kvpress
def test_prepared_model_is_the_same_once_kvpress_is_imported():
    """kvpress wraps every attention function that is registered, and hands dropout on by position."""
    model, ids = MODELS["llama"](), random_ids(30)
    before = losses_of(model, ids, n_sink=2, window_size=6)
    with prepare(model):
        pytest.importorskip("kvpress", reason="it does not allow this transformers")
        with torch.inference_mode():
            after, _ = score_stream(model, ids.numpy(), StreamConfig(n_sink=2, window_size=6))
    assert_close(torch.from_numpy(after), before)
