"""Attention that is shown is that of the slow twin, and of the model itself."""

import numpy as np
import pytest
import reference
import torch
from conftest import VOCAB, tiny_llama, tiny_neox, use_float64_angles

from streamlm.cache.forward import cache_argument
from streamlm.cache.prepare import observing, prepare
from streamlm.cache.sink_cache import SinkCache

IDS = torch.as_tensor(np.random.default_rng(2).integers(VOCAB, size=50))


@torch.inference_mode()
def observe(model, sizes, ids=IDS, **options):
    """Return {(layer, query): weights (Hq, N) by token of the text}, and the logits likewise."""
    weights, logits = {}, {}

    def see(layer, seen):
        for i, query in enumerate(seen.queries.tolist()):
            by_token = torch.zeros(seen.weights.shape[1], len(ids), dtype=torch.float64)
            weights[layer, query] = by_token.index_add(1, seen.keys, seen.weights[0, :, i].double())
            best = torch.full_like(by_token, -torch.inf)
            logits[layer, query] = best.scatter_reduce(
                1, seen.keys.expand(len(best), -1), seen.logits[0, :, i].double(), "amax"
            )

    with prepare(model), observing(see):
        cache = SinkCache(model.config, **options)
        for part in ids.split(sizes):
            model(part[None], **cache_argument(model, cache))
    return weights, logits


@pytest.mark.parametrize(("n_sink", "window_size"), [(0, 6), (1, 1), (2, 6), (3, 40), (4, 60)])
@pytest.mark.parametrize("sizes", [[50], [9, 20, 21], [7] + [1] * 43])
def test_weights_are_those_of_the_slow_twin(n_sink, window_size, sizes):
    caches = [reference.Evicting(n_sink, window_size) for _ in range(2)]
    with torch.inference_mode():
        reference.llama_losses(
            use_float64_angles(tiny_llama()), [*IDS.tolist(), 0], n_sink, window_size, caches
        )
    options = {"n_sink": n_sink, "window_size": window_size, "position_limit": 20, "query_block": 8}
    found, _ = observe(use_float64_angles(tiny_llama()), sizes, **options)
    assert len(found) == 2 * len(IDS)
    for (layer, query), weights in found.items():
        slow = torch.zeros_like(weights)
        for token, shares in caches[layer].seen[query].items():
            slow[:, token] = shares
        torch.testing.assert_close(weights, slow, rtol=0, atol=1e-9)


@pytest.mark.parametrize("make", [tiny_llama, tiny_neox])
def test_dense_weights_are_those_that_the_model_gives_out(make):
    small = {"initializer_range": 0.1}  # eager attention rounds scores to float32
    plain = use_float64_angles(make(**small))
    plain.set_attn_implementation("eager")
    with torch.inference_mode():
        given = plain(IDS[None], output_attentions=True).attentions
    found, logits = observe(use_float64_angles(make(**small)), [20, 30], n_sink=2, window_size=50)
    for (layer, query), weights in found.items():
        torch.testing.assert_close(weights, given[layer][0, :, query].double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(logits[layer, query].softmax(-1), weights, rtol=0, atol=1e-6)


def test_left_pads_are_refused():
    with prepare(tiny_llama()) as model, observing(lambda *_: None):
        cache = SinkCache(model.config, n_sink=1, window_size=8)
        mask = torch.ones(2, 10, dtype=torch.long)
        mask[0, :2] = 0
        with pytest.raises(ValueError, match="without left pads"):
            model(IDS[:20].view(2, 10), attention_mask=mask, **cache_argument(model, cache))


def test_nothing_is_shown_after_the_block():
    seen = []
    with prepare(tiny_llama()) as model:
        for _ in range(2):
            with observing(lambda layer, block: seen.append(layer)):
                pass
        model(IDS[None], **cache_argument(model, SinkCache(model.config, n_sink=1, window_size=8)))
    assert not seen
