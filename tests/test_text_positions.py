"""Positions in the text: sinks stay as far from a query as they are in the text."""

import numpy as np
import pytest
import reference
import torch
from conftest import VOCAB, tiny_llama, tiny_neox, use_float64_angles

from streamlm.cache.forward import cache_argument
from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache
from streamlm.config import StreamConfig
from streamlm.measure.scoring import score_stream

IDS = np.random.default_rng(1).integers(VOCAB, size=90)


def score(make, cfg, n_ids=90, **options):
    """Return losses in float64, of the fast path and of the slow twin."""
    slow = reference.masked_losses(
        use_float64_angles(make()), IDS[:n_ids].tolist(), cfg.n_sink, cfg.window_size
    )
    with prepare(use_float64_angles(make())) as model:
        losses, _ = score_stream(model, IDS[:n_ids], cfg, **options)
    return losses, slow.numpy()


@pytest.mark.parametrize("make", [tiny_llama, tiny_neox])
@pytest.mark.parametrize("n_sink", [0, 1, 3])
@pytest.mark.parametrize("options", [{}, {"chunk": 7}, {"chunk": 16, "query_block": 5, "position_limit": 24}])
def test_chunks_are_one_masked_pass(make, n_sink, options):
    losses, slow = score(make, StreamConfig(n_sink=n_sink, window_size=6, positions="text"), **options)
    np.testing.assert_allclose(losses, slow, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n_ids", [2, 8, 9, 10, 11, 90])  # one loss, just full, first eviction, far past
def test_every_length_is_one_masked_pass(n_ids):
    cfg = StreamConfig(n_sink=2, window_size=7, positions="text")
    losses, slow = score(tiny_llama, cfg, n_ids, chunk=4, position_limit=20)
    np.testing.assert_allclose(losses, slow, rtol=0, atol=1e-9)


@pytest.mark.parametrize("window", [4, 9, 12])  # of half of the layers, below, at and above the capacity
def test_a_layers_own_window_is_kept(window):
    """A layer that by itself sees less keeps its window, wherever sinks are."""

    def losses(positions):
        model = use_float64_angles(tiny_sliding(window))
        with prepare(model):
            cfg = StreamConfig(n_sink=2, window_size=7, positions=positions)
            return score_stream(model, IDS, cfg, chunk=8)[0]

    assert np.isfinite(losses("text")).all()
    assert not np.allclose(losses("text"), losses("cache"))


def tiny_sliding(window):
    """A Qwen2 whose second layer has a sliding window."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.4, use_sliding_window=True,
        sliding_window=window, layer_types=["full_attention", "sliding_attention"],
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


@torch.inference_mode()
def test_single_tokens_are_one_masked_pass_whatever_is_rebased():
    slow = reference.masked_losses(use_float64_angles(tiny_llama()), IDS.tolist(), 2, 6)
    with prepare(use_float64_angles(tiny_llama())) as model:
        cache = SinkCache(model.config, n_sink=2, window_size=6, positions="text", position_limit=20)
        logits = [
            model(torch.tensor([[token]]), **cache_argument(model, cache)).logits[0, 0] for token in IDS
        ]
    losses = -torch.stack(logits)[:-1].log_softmax(-1)[torch.arange(len(IDS) - 1), IDS[1:]]
    torch.testing.assert_close(losses, slow, rtol=0, atol=1e-9)


@torch.inference_mode()
@pytest.mark.parametrize("sizes", [[5] + [1] * 35, [13, 20, 7]])
def test_left_pads_change_nothing(sizes):
    def hidden(rows, mask):
        with prepare(use_float64_angles(tiny_llama())) as model:
            cache = SinkCache(model.config, n_sink=2, window_size=6, positions="text", position_limit=20)
            out = []
            for ids, end in zip(rows.split(sizes, dim=1), np.cumsum(sizes), strict=True):
                options = {} if mask is None else {"attention_mask": mask[:, :end]}
                out.append(model(ids, **options, **cache_argument(model, cache)).logits)
            return torch.cat(out, dim=1)

    ids = torch.as_tensor(IDS[:80]).view(2, 40)
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1, :3] = 0
    padded = hidden(ids, mask)
    with prepare(use_float64_angles(tiny_llama())) as model:
        cache = SinkCache(model.config, n_sink=2, window_size=6, positions="text")
        alone = model(ids[1:, 3:], **cache_argument(model, cache)).logits
    torch.testing.assert_close(padded[1:, 3:], alone, rtol=0, atol=1e-9)


def test_a_model_that_rotates_otherwise_later_is_refused_there():
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    config = Phi3Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, original_max_position_embeddings=32,
        pad_token_id=0, rope_parameters=rope,
    )  # fmt: skip
    with prepare(Phi3ForCausalLM(config).eval()) as model:
        for positions in ("cache", "text"):
            cfg = StreamConfig(n_sink=2, window_size=6, positions=positions)
            assert np.isfinite(score_stream(model, IDS[:30], cfg, chunk=8)[0]).all()
            if positions == "cache":
                score_stream(model, IDS, cfg, chunk=8)
            else:
                with pytest.raises(ValueError, match="rotates or scales otherwise after 32 positions"):
                    score_stream(model, IDS, cfg, chunk=8)


def test_another_word_is_refused():
    with pytest.raises(ValueError, match='positions must be "cache" or "text", got \'rope\''):
        StreamConfig(n_sink=1, window_size=4, positions="rope")
