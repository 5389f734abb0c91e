"""One captured step serves the stream: on a GPU as a CUDA graph, here as a trace with the same blindness."""

import pytest
import torch
from conftest import MODELS, tiny_llama, use_float64_angles
from test_sink_cache import feed, random_ids
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from streamlm.cache.captured_step import CapturedStep, cuda_graph
from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache


def trace(run):
    """Like a CUDA graph, a trace replays operators on the tensors they met; all Python numbers are frozen."""
    run()
    return make_fx(lambda: run())()  # a bound method would count as having an argument


@pytest.mark.parametrize("family", sorted(MODELS))
@pytest.mark.parametrize("limit", [0, 10_000])
def test_replays_of_one_step_are_the_stream(family, limit):
    ids = random_ids(2, 80)
    with prepare(use_float64_angles(MODELS[family]())) as model:
        cache, plain = (SinkCache(model.config, 3, 9, position_limit=limit) for _ in range(2))
        expected = feed(model, plain, ids, [20, 1])
        feed(model, cache, ids[:, :20], [20])
        step = CapturedStep(model, cache, trace)
        logits = [step(ids[:, t : t + 1]).clone() for t in range(20, 60)]
        assert_close(torch.cat(logits, dim=1), expected[:, 20:60], rtol=0, atol=1e-9)
        assert_close(feed(model, cache, ids[:, 60:], [7, 1]), expected[:, 60:], rtol=0, atol=1e-9)


def test_step_of_another_size_or_of_a_reset_cache_is_refused():
    ids = random_ids(2, 20)
    with prepare(tiny_llama()) as model:
        cache = SinkCache(model.config, 3, 9)
        feed(model, cache, ids, [20])
        step = CapturedStep(model, cache, trace)
        with pytest.raises(ValueError, match=r"captured for tokens \(2, 1\) .* was given \(1, 1\)"):
            step(ids[:1, :1])
        cache.reset()
        with pytest.raises(ValueError, match="0 tokens were seen of 12"):
            step(ids[:, :1])


def test_cache_that_is_not_full_is_not_captured():
    with prepare(tiny_llama()) as model:
        cache = SinkCache(model.config, 3, 9)
        feed(model, cache, random_ids(1, 8), [8])
        with pytest.raises(ValueError, match="8 tokens were seen of 12"):
            CapturedStep(model, cache, trace)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_cuda_graph_is_the_stream():
    ids = random_ids(2, 80).cuda()
    with prepare(tiny_llama().cuda()) as model:
        cache, plain = SinkCache(model.config, 3, 9), SinkCache(model.config, 3, 9)
        expected = feed(model, plain, ids, [20, 1])
        feed(model, cache, ids[:, :20], [20])
        step = CapturedStep(model, cache, cuda_graph)
        logits = [step(ids[:, t : t + 1]).clone() for t in range(20, 80)]
    assert_close(torch.cat(logits, dim=1), expected[:, 20:], rtol=0, atol=1e-4)
