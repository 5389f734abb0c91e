"""Every decoder that transformers can build small is exact, or refused in one line; none is wrong."""

import families
import pytest
import torch
from families import build, every_family
from judge import drawn, ids_of, judge, losses_of, nats
from oracle import oracle_logits
from transformers import Cache

from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache
from streamlm.cache.supported import layer_windows
from streamlm.config import StreamConfig


def built(name):
    try:
        return build(name)
    except Exception as error:  # of any config and any model
        if name in families.NOT_BUILT or name not in families.EXACT | families.REFUSED:
            pytest.skip(f"not built from these sizes: {error}")
        raise


@pytest.mark.parametrize("name", every_family())
def test_family_is_exact_or_refused_in_one_line(name):
    found = judge(name, built(name))
    if found.refused:
        assert name not in families.EXACT, found.refused
        assert "\n" not in found.refused
        assert len(found.refused) < 500
    else:
        assert found.nats < 1e-3


@pytest.mark.parametrize("name", sorted(families.EXACT & {*every_family()}))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_exact_family_is_taken_in_half_precision_too(name, dtype):
    with prepare(built(name).to(dtype)):
        pass


def test_most_families_are_exact():
    assert len(families.EXACT) >= 64


STATEFUL = ("qwen3_next", "olmo_hybrid") if hasattr(Cache, "get_recurrent_state") else ()
# A kind of each: plain, experts, no rotation in some layers, several rotations, soft caps, learned sinks,
# latent attention, finished logits.
KINDS = ("llama", "qwen3_moe", "smollm3", "gemma3_text 6", "gemma2 64", "gpt_oss 6", "deepseek_v3", "granite")


@pytest.mark.parametrize("name", KINDS)
def test_rows_with_left_pads_are_as_if_alone(name):
    model, lengths = build(name), (20, 13)
    (cfg, chunk, limit), *_ = drawn(name, 1)
    rows = [ids_of(name)[:length] for length in lengths]
    ids, mask = torch.zeros(2, 20, dtype=torch.int64), torch.zeros(2, 20, dtype=torch.int64)
    for row, tokens in enumerate(rows):
        ids[row, -len(tokens) :], mask[row, -len(tokens) :] = tokens, 1
    with prepare(model), torch.inference_mode():
        cache = SinkCache(model.config, cfg.n_sink, cfg.window_size, position_limit=limit)
        parts = zip(ids.split(chunk, 1), mask.split(chunk, 1), strict=True)
        logits = torch.cat(
            [model(part, attention_mask=visible, past_key_values=cache).logits for part, visible in parts],
            dim=1,
        )
    for row, tokens in enumerate(rows):
        slow = oracle_logits(model, tokens, layer_windows(model.config), cfg.n_sink, cfg.window_size)
        torch.testing.assert_close(
            nats(logits[row, -len(tokens) :], tokens), nats(slow, tokens), rtol=0, atol=1e-3
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", KINDS + STATEFUL)
def test_half_precision_is_within_twice_a_plain_implementations_rounding(name, dtype):
    ids, far = ids_of(name, 60), []
    for seed in range(3):
        exact, rounded = build(name, seed), build(name, seed).to(dtype)
        windows = layer_windows(exact.config)
        slow = nats(oracle_logits(exact, ids, windows, 2, 10), ids)
        plain = nats(oracle_logits(rounded, ids, windows, 2, 10), ids)
        with prepare(rounded), torch.inference_mode():
            ours = losses_of(rounded, ids, StreamConfig(n_sink=2, window_size=10), 7, 0)
        far.append([float((losses - slow).abs().mean()) for losses in (ours, plain)])
    ours, plain = torch.tensor(far).mean(0)
    assert ours <= 2 * plain
