from unittest.mock import patch

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from streamlm.cache import attention
from streamlm.cache.attention import attend, plan_attention, stream_attention, streaming_mask
from streamlm.cache.rope import Rotary
from streamlm.config import StreamConfig

HEAD_DIM = 8


def random_qkv(n_tokens, n_q_heads=4, n_kv_heads=2, seed=0):
    made = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(1, heads, n_tokens, HEAD_DIM, generator=made, dtype=torch.float64) * 2
        for heads in (n_q_heads, n_kv_heads, n_kv_heads)
    )


def frequencies(n_rotary):
    return 1.0 / 100.0 ** (torch.arange(n_rotary, dtype=torch.float64) / n_rotary)


def rotated(x, inv_freq, shift=0, n_sink=0):
    """Rotate (1, H, T, D): sinks as their own position, token t >= n_sink as position t - shift."""
    positions = torch.arange(x.shape[2])
    positions = torch.where(positions < n_sink, positions, positions - shift)
    return Rotary(inv_freq).by(positions, x.dtype).apply(x)


def test_streaming_mask_is_the_picture_in_its_docstring():
    t = torch.arange(4)
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1]]
    mask = streaming_mask(t, t, StreamConfig(n_sink=1, window_size=2))
    assert mask.int().tolist() == expected


def assert_blocks_match(n_tokens, block, n_sink, window_size, heads, n_rotary, seed):
    """Compare a whole stream in blocks with the token-by-token cache."""
    q, k, v = random_qkv(n_tokens, *heads, seed)
    inv_freq = frequencies(n_rotary)
    cfg = StreamConfig(n_sink=n_sink, window_size=window_size)
    fast = stream_attention(rotated(q, inv_freq), rotated(k, inv_freq), v, cfg, Rotary(inv_freq), block=block)
    slow = reference.attention(q, k, v, n_sink, window_size, inv_freq)
    assert_close(fast, slow, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n_tokens", [1, 2, 6, 7, 33])
@pytest.mark.parametrize("block", [1, 4, 64])
@pytest.mark.parametrize(("n_sink", "window_size"), [(2, 4), (0, 4), (0, 1), (5, 1), (2, 99)])
def test_blocks_match_token_by_token(n_tokens, block, n_sink, window_size):
    assert_blocks_match(n_tokens, block, n_sink, window_size, heads=(4, 2), n_rotary=4, seed=0)


@given(
    n_tokens=st.integers(1, 40),
    block=st.integers(1, 50),
    n_sink=st.integers(0, 9),
    window_size=st.integers(1, 45),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (4, 4)]),
    n_rotary=st.integers(1, HEAD_DIM // 2),
    seed=st.integers(0, 9),
    fused=st.booleans(),
)
def test_drawn_blocks_match_token_by_token(
    n_tokens, block, n_sink, window_size, heads, n_rotary, seed, fused
):
    with patch.object(attention, "_is_fused", lambda device: fused):
        assert_blocks_match(n_tokens, block, n_sink, window_size, heads, n_rotary, seed)


@given(
    n_past=st.integers(8, 30),
    n_new=st.integers(1, 12),
    block=st.integers(1, 12),
    shift=st.integers(0, 30),
    fused=st.booleans(),
)
def test_a_later_pass_continues_the_stream_whatever_its_shift(n_past, n_new, block, shift, fused):
    cfg = StreamConfig(n_sink=2, window_size=5)
    inv_freq, total = frequencies(3), n_past + n_new
    q, k, v = random_qkv(total)
    held = [*range(2), *range(n_past - cfg.window_size + 1, total)]
    plan = plan_attention(
        cfg, Rotary(inv_freq), q.device, n_past=n_past, n_new=n_new, dtype=q.dtype, shift=shift, block=block
    )
    with patch.object(attention, "_is_fused", lambda device: fused):
        later = attend(
            rotated(q, inv_freq, shift, 2)[:, :, n_past:],
            rotated(k, inv_freq, shift, 2)[:, :, held],
            v[:, :, held],
            plan,
            HEAD_DIM**-0.5,
        )
    whole = reference.attention(q, k, v, 2, 5, inv_freq)
    assert_close(later, whole[:, :, n_past:], rtol=0, atol=1e-9)


def test_bfloat16_error_is_at_most_twice_that_of_a_plain_bfloat16_attention():
    q, k, v = random_qkv(64)
    inv_freq = frequencies(4)
    cfg = StreamConfig(n_sink=2, window_size=99)  # nothing evicted: plain causal attention
    q, k = rotated(q, inv_freq), rotated(k, inv_freq)
    exact = stream_attention(q, k, v, cfg, Rotary(inv_freq))
    rounded = [x.bfloat16() for x in (q, k, v)]
    ours = stream_attention(*rounded, cfg, Rotary(inv_freq))
    q, k, v = rounded[0], *(x.repeat_interleave(2, 1) for x in rounded[1:])
    future = torch.ones(64, 64, dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(-2, -1) * HEAD_DIM**-0.5).masked_fill(future, -torch.inf)
    plain = scores.float().softmax(-1).bfloat16() @ v
    assert (ours - exact).abs().max() <= 2 * (plain - exact).abs().max()


@given(
    pads=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    n_new=st.integers(1, 20),
    block=st.integers(1, 25),
    n_sink=st.integers(0, 4),
    window_size=st.integers(1, 15),
)
def test_fused_form_gives_rows_with_pads_what_the_portable_form_does(pads, n_new, block, n_sink, window_size):
    cfg, rotary = StreamConfig(n_sink=n_sink, window_size=window_size), Rotary(frequencies(3))
    n_new += max(pads)
    plan = plan_attention(
        cfg, rotary, torch.device("cpu"), n_past=0, n_new=n_new, dtype=torch.float64,
        pads=torch.tensor(pads), min_pads=min(pads), block=block,
    )  # fmt: skip
    made = torch.Generator().manual_seed(len(pads))
    n_keys = plan.n_sinks + n_new - plan.first_band
    q, k, v = (
        torch.randn(len(pads), heads, length, HEAD_DIM, generator=made, dtype=torch.float64)
        for heads, length in ((4, n_new), (2, n_keys), (2, n_keys))
    )
    portable = attend(q, k, v, plan, 0.3)
    with patch.object(attention, "_is_fused", lambda device: True):
        assert_close(attend(q, k, v, plan, 0.3), portable, rtol=0, atol=1e-12)


def test_on_cuda_sdpa_attends_unless_scores_are_capped_or_have_learned_sinks():
    assert attention._is_fused(torch.device("cuda", 1))
    assert not attention._is_fused(torch.device("cpu"))
    q, k, v = random_qkv(5)
    plan = plan_attention(
        StreamConfig(n_sink=1, window_size=3), None, q.device, n_past=0, n_new=5, dtype=q.dtype
    )
    logits = torch.zeros(4, dtype=q.dtype)
    with (
        patch.object(attention, "_is_fused", lambda device: True),
        patch.object(torch.nn.functional, "scaled_dot_product_attention", side_effect=RuntimeError("SDPA")),
    ):
        keys, values = (torch.cat((x[:, :, :1], x), dim=2) for x in (k, v))
        for options in ({"softcap": 5.0}, {"sink_logits": logits}):
            assert attend(q, keys, values, plan, 0.3, **options).isfinite().all()
        with pytest.raises(RuntimeError, match="SDPA"):
            attend(q, keys, values, plan, 0.3)
