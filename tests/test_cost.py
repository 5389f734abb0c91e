"""The arithmetic of benchmarks/cost.py against counted operations, published sizes and the library."""

import numpy as np
import pytest
from conftest import tiny_llama
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cost
from streamlm.cache import products
from streamlm.cache.attention import QUERY_BLOCK
from streamlm.cache.prepare import prepare
from streamlm.config import StreamConfig
from streamlm.measure.perplexity import KEEP_EVERY
from streamlm.measure.scoring import score_stream

PUBLISHED = {  # parameters
    "SmolLM2-135M": 134_515_008,
    "Pythia-2.8B": 2_775_208_960,
    "Pythia-6.9B": 6_857_302_016,
    "Pythia-12B": 11_846_072_320,
    "Llama-2-7B": 6_738_415_616,
    "Llama-2-70B": 68_976_648_192,
}


@pytest.mark.parametrize("model", [cost.MEASURED, *cost.PAPER], ids=lambda model: model.name)
def test_shapes_give_the_published_sizes(model):
    assert model.params == pytest.approx(PUBLISHED[model.name], rel=1e-3)


def test_operations_of_a_token_are_those_that_scoring_does(monkeypatch):
    monkeypatch.setattr(products, "mkl_is_slow", lambda: False)  # products of oneDNN are not counted
    model = tiny_llama()
    shape, cfg = model.config, StreamConfig(n_sink=4, window_size=60)
    ids = np.arange(6 * QUERY_BLOCK + 1) % shape.vocab_size

    def counted(n_tokens):
        with FlopCounterMode(display=False) as counter, prepare(model):
            score_stream(model, ids[: n_tokens + 1], cfg, chunk=2 * QUERY_BLOCK)
        return counter.get_total_flops()

    expected = cost.Model(
        "tiny", shape.num_hidden_layers, shape.hidden_size, shape.num_attention_heads,
        shape.num_key_value_heads, shape.intermediate_size, 3, shape.vocab_size, capacity=cfg.capacity,
    )  # fmt: skip
    # Between two lengths at which the window is full.
    per_token = (counted(6 * QUERY_BLOCK) - counted(4 * QUERY_BLOCK)) / (2 * QUERY_BLOCK)
    assert per_token == pytest.approx(expected.flops, rel=1e-3)  # rotary angles are not counted


def test_constants_are_the_library_s():
    assert (cost.QUERY_BLOCK, cost.KEEP_EVERY) == (QUERY_BLOCK, KEEP_EVERY)


def test_another_model_s_throughput_is_refused():
    text = cost.SCORING.read_text()
    assert cost.measured_rate(text) > 0
    for old in ("smollm2-135m-instruct", "4+508", "bfloat16, in 10 parts"):
        with pytest.raises(ValueError, match="long bfloat16 stream of SmolLM2-135M with 4\\+508"):
            cost.measured_rate(text.replace(old, "other"))


def test_tracked_tables_are_those_of_the_tracked_throughput(capsys):
    cost.main()
    printed = capsys.readouterr().out
    assert cost.SCORING.with_name("cost.txt").read_text() == printed
    page = (cost.SCORING.parents[1] / "docs" / "cost.md").read_text()
    assert all(line in page for line in printed.splitlines() if line.startswith("|") or "GPU-hours" in line)
