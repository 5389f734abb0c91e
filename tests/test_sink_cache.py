"""SinkCache against the token-by-token oracle: chunks, batches, padding, families, generate()."""

import copy

import pytest
import reference
import torch
from conftest import MODELS, VOCAB, tiny_llama, use_float64_angles
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import DynamicCache

from streamlm.cache.prepare import prepare
from streamlm.cache.ring import QuantizedRing
from streamlm.cache.rope import Rotary
from streamlm.cache.sink_cache import SinkCache

ORACLES = {"llama": reference.llama_losses, "neox": reference.neox_losses}
GEOMETRIES = {"n_sink": st.integers(0, 5), "window_size": st.integers(1, 16)}


def random_ids(*shape, seed=0):
    return torch.randint(3, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def feed(model, cache, ids, chunks, mask=None):
    """Return the logits of ids (B, T), fed in passes of the given sizes (the last repeats)."""
    logits, start, sizes = [], 0, list(chunks)
    while start < ids.shape[1]:
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        stop = min(start + size, ids.shape[1])
        seen = None if mask is None else mask[:, :stop]
        logits.append(model(ids[:, start:stop], attention_mask=seen, past_key_values=cache).logits)
        start = stop
    return torch.cat(logits, dim=1)


def losses(logits, ids):
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )


@pytest.mark.parametrize("family", sorted(MODELS))
@given(
    n_tokens=st.integers(2, 48),
    chunks=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    limit=st.sampled_from([0, 40, 10_000]),
    **GEOMETRIES,
)
def test_any_chunking_matches_the_oracle(family, n_tokens, chunks, limit, n_sink, window_size):
    model, ids = use_float64_angles(MODELS[family]()), random_ids(1, n_tokens)
    with prepare(model):
        cache = SinkCache(model.config, n_sink, window_size, position_limit=limit)
        ours = losses(feed(model, cache, ids, [*chunks, 1]), ids)
    with torch.inference_mode():
        assert_close(ours, ORACLES[family](model, ids[0].tolist(), n_sink, window_size), rtol=0, atol=1e-9)


@given(
    pads=st.lists(st.integers(0, 9), min_size=2, max_size=3),
    chunks=st.lists(st.integers(1, 14), min_size=1, max_size=3),
    n_tokens=st.integers(10, 40),
    limit=st.sampled_from([0, 10_000]),
    **GEOMETRIES,
)
def test_left_padded_row_gets_what_it_gets_alone(pads, chunks, n_tokens, limit, n_sink, window_size):
    model, ids = use_float64_angles(tiny_llama()), random_ids(len(pads), n_tokens)
    mask = torch.arange(n_tokens) >= torch.tensor(pads)[:, None]
    with prepare(model):
        cache = SinkCache(model.config, n_sink, window_size, position_limit=limit)
        together = feed(model, cache, ids, [*chunks, 1], mask.long())
        for row, pad in enumerate(pads):
            alone = SinkCache(model.config, n_sink, window_size)
            expected = feed(model, alone, ids[row : row + 1, pad:], [1])
            assert_close(together[row, pad:], expected[0], rtol=0, atol=1e-9)


def generate(model, ids, cache, **options):
    settings = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), past_key_values=cache, **settings | options
    )


@pytest.mark.parametrize("family", sorted(MODELS))
@pytest.mark.parametrize("n_prompt", [1, 5, 30])
def test_greedy_generation_is_token_by_token_decoding(family, n_prompt):
    with prepare(MODELS[family]()) as model, torch.inference_mode():
        ids = random_ids(1, n_prompt)
        out = generate(model, ids, SinkCache(model.config, 3, 9))
        cache, expected = SinkCache(model.config, 3, 9), ids
        logits = feed(model, cache, ids, [1])
        for _ in range(40):
            expected = torch.cat((expected, logits[:, -1:].argmax(-1)), dim=1)
            logits = model(expected[:, -1:], past_key_values=cache).logits
    assert out.tolist() == expected.tolist()


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"num_beams": 2, "do_sample": True}, {"do_sample": True}]
)
def test_generation_with_room_for_all_is_that_of_a_dynamic_cache(options):
    ids, model = random_ids(2, 6), tiny_llama()
    torch.manual_seed(1)
    plain = generate(model, ids, DynamicCache(config=model.config), max_new_tokens=20, **options)
    torch.manual_seed(1)
    with prepare(model):
        ours = generate(model, ids, SinkCache(model.config, 4, 60), max_new_tokens=20, **options)
    assert ours.tolist() == plain.tolist()


def test_prefill_in_chunks_generates_the_same():
    ids = random_ids(1, 50)
    with prepare(tiny_llama()) as model:
        whole = generate(model, ids, SinkCache(model.config, 3, 9))
        chunked = generate(model, ids, SinkCache(model.config, 3, 9), prefill_chunk_size=7)
    assert whole.tolist() == chunked.tolist()


def test_later_turns_continue_the_stream():
    with prepare(use_float64_angles(tiny_llama())) as model:
        cache, text = SinkCache(model.config, 3, 9), random_ids(1, 10)
        for turn in range(3):
            text = generate(model, text, cache, max_new_tokens=8)
            text = torch.cat((text, random_ids(1, 5, seed=turn)), dim=1)
        fresh = SinkCache(model.config, 3, 9)
        assert_close(
            feed(model, cache, text[:, cache.get_seq_length() :], [99])[:, -1],
            feed(model, fresh, text, [1])[:, -1],
        )


def test_reset_forgets_and_keeps_its_memory():
    ids = random_ids(1, 40)
    with prepare(use_float64_angles(tiny_llama())) as model:
        cache = SinkCache(model.config, 3, 9, position_limit=0)
        first = feed(model, cache, ids, [7, 1])
        where = cache.layers[0].keys.data_ptr()
        cache.reset()
        assert cache.get_seq_length() == cache.n_held == 0
        assert_close(feed(model, cache, ids, [7, 1]), first)
        assert cache.layers[0].keys.data_ptr() == where


def test_decoding_never_moves_or_grows_the_memory():
    with prepare(tiny_llama()) as model:
        cache = SinkCache(model.config, 3, 9)
        feed(model, cache, random_ids(2, 5), [5])
        before = [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers]
        feed(model, cache, random_ids(2, 60), [1])
        assert [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers] == before
        slots, sinks = 2 * 2 * 2 * 2 * 12 * 8 * 4, 2 * 2 * 2 * 3 * 8 * 4
        assert cache.nbytes == slots + sinks
        assert (cache.get_seq_length(), cache.n_held) == (65, 12)


def test_copied_cache_goes_its_own_way():
    ids, other = random_ids(1, 40), random_ids(1, 40, seed=1)
    with prepare(use_float64_angles(tiny_llama())) as model:
        cache = SinkCache(model.config, 3, 9)
        feed(model, cache, ids, [20, 1])
        fork = copy.deepcopy(cache)
        expected = feed(model, SinkCache(model.config, 3, 9), torch.cat((ids, other), dim=1), [1])[:, 40:]
        assert_close(feed(model, fork, other, [1]), expected)
        assert_close(feed(model, cache, other, [1]), expected)


def test_cache_whose_pass_broke_off_must_be_reset():
    ids = random_ids(1, 20)
    with prepare(tiny_llama()) as model:
        expected = feed(model, SinkCache(model.config, 3, 9), ids, [1])
        cache = SinkCache(model.config, 3, 9)
        feed(model, cache, ids, [5])

        def interrupt(*_):
            raise KeyboardInterrupt

        hook = model.model.layers[1].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(ids[:, 5:6], past_key_values=cache)
        hook.remove()
        with pytest.raises(ValueError, match=r"broke off, so its layers differ; reset\(\) it"):
            model(ids[:, 5:6], past_key_values=cache)
        cache.reset()
        assert_close(feed(model, cache, ids, [1]), expected)


def test_layers_unlike_each_other_get_stores_of_their_own():
    """As on several devices: memory is exact once each layer has shown where it is."""
    cache, rotaries = SinkCache(tiny_llama().config, 3, 9), [Rotary(torch.ones(4))] * 2
    for n_new in (20, 1, 1):
        cache._begin_pass(n_new, rotaries, torch.float32, None)
        for i, dtype in enumerate((torch.float32, torch.float64)):
            states = torch.ones(1, 2, n_new, 8, dtype=dtype)
            keys, _ = cache.update(states, states, i)
            assert keys.dtype == dtype
        cache._end_pass()
    assert cache.nbytes == 2 * (2 * 12 + 3) * 8 * (4 + 8)
    assert keys.data_ptr() == cache.layers[1].keys.data_ptr()


def test_model_dispatched_by_accelerate_gives_the_same(tmp_path):
    accelerate, ids = pytest.importorskip("accelerate"), random_ids(1, 30)
    with prepare(tiny_llama()) as model:
        expected = feed(model, SinkCache(model.config, 3, 9), ids, [8, 1])
    places = {
        "model.layers.1": "disk",
        **dict.fromkeys(("model.embed_tokens", "model.norm", "lm_head"), "cpu"),
    }
    places |= {"model.layers.0": "cpu", "model.rotary_emb": "cpu"}
    spread = accelerate.dispatch_model(
        tiny_llama(), places, main_device="cpu", offload_dir=tmp_path, force_hooks=True
    )
    assert spread.model.layers[1].mlp.up_proj.weight.is_meta
    with prepare(spread) as model:
        ours = feed(model, SinkCache(model.config, 3, 9), ids, [8, 1])
    assert_close(ours, expected)


@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, torch.float16, torch.int8])
@given(chunks=st.lists(st.integers(1, 20), min_size=1, max_size=3), **GEOMETRIES)
def test_quantised_window_is_a_window_of_rounded_numbers(kv_dtype, chunks, n_sink, window_size):
    model, ids = use_float64_angles(tiny_llama()), random_ids(2, 40)
    rounding = QuantizedRing(torch.zeros(1, 1, 1, 1, dtype=torch.float64), 1, kv_dtype)

    class Rounded(SinkCache):
        def update(self, keys, values, layer_idx, *args, **kwargs):
            if self._pass.n_past >= n_sink:
                keys, values = rounding.round(keys), rounding.round(values)
            return super().update(keys, values, layer_idx)

    with prepare(model):
        quantised = SinkCache(model.config, n_sink, window_size, kv_dtype=kv_dtype)
        expected = feed(model, Rounded(model.config, n_sink, window_size), ids, [1])
        assert_close(feed(model, quantised, ids, [*chunks, 1]), expected, rtol=0, atol=1e-9)
        size = 8 * kv_dtype.itemsize + (4 if kv_dtype == torch.int8 else 0)
        assert quantised.nbytes == 2 * 2 * 2 * (2 * window_size * size + 3 * n_sink * 8 * 8)


@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, torch.int8])
def test_quantised_window_follows_its_rows(kv_dtype):
    ids, order, tail = random_ids(3, 20), torch.tensor([2, 0, 0]), random_ids(3, 10, seed=5)
    with prepare(use_float64_angles(tiny_llama())) as model:
        cache, fresh = (SinkCache(model.config, 3, 9, kv_dtype=kv_dtype) for _ in range(2))
        feed(model, cache, ids, [12, 1])
        cache.reorder_cache(order)
        expected = feed(model, fresh, torch.cat((ids[order], tail), dim=1), [1])[:, 20:]
        assert_close(feed(model, cache, tail, [1]), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, torch.int8])
def test_quantised_window_follows_pads_and_rebases(kv_dtype):
    """Another position rounds otherwise: the error may be that met without pads or rebases."""
    ids, mask = random_ids(2, 40), torch.arange(40) >= torch.tensor([0, 5])[:, None]
    with prepare(use_float64_angles(tiny_llama())) as model:

        def last(ids, chunks, mask=None, **options):
            return feed(model, SinkCache(model.config, 3, 9, **options), ids, chunks, mask)[-1, -10:]

        exact = last(ids[1:, 5:], [1])
        allowed = 2 * (last(ids[1:, 5:], [1], kv_dtype=kv_dtype) - exact).norm()
        assert (last(ids, [12, 1], mask.long(), kv_dtype=kv_dtype) - exact).norm() < allowed
        assert (last(ids[1:, 5:], [1], kv_dtype=kv_dtype, position_limit=0) - exact).norm() < allowed
        assert allowed < 0.1 * exact.norm()


def test_rounding_errs_by_half_a_step():
    x = torch.randn(2, 3, 50, 8, dtype=torch.float64)
    codes = QuantizedRing(x, 1, torch.int8).round(x)
    assert ((codes - x).abs() <= x.abs().amax(-1, keepdim=True) / 254 * 1.001).all()
    assert_close(QuantizedRing(x, 1, torch.bfloat16).round(x), x.bfloat16().double(), rtol=0, atol=0)


@pytest.mark.parametrize("kv_dtype", [torch.float32, "int4"])
def test_unknown_kv_dtype_is_refused(kv_dtype):
    with pytest.raises(ValueError, match=rf"kv_dtype must be None, bfloat16, float16, int8, got {kv_dtype}"):
        SinkCache(tiny_llama().config, kv_dtype=kv_dtype)


def test_rows_follow_beam_selection():
    ids, order = random_ids(3, 20), torch.tensor([2, 0, 0])
    tail = random_ids(3, 10, seed=5)
    with prepare(use_float64_angles(tiny_llama())) as model:
        cache, fresh = SinkCache(model.config, 3, 9), SinkCache(model.config, 3, 9)
        feed(model, cache, ids, [12, 1])
        cache.reorder_cache(order)
        ours = feed(model, cache, tail, [1])
        expected = feed(model, fresh, torch.cat((ids[order], tail), dim=1), [1])[:, 20:]
        assert_close(ours, expected)
        cache.batch_select_indices(torch.tensor([1]))
        fresh.batch_select_indices(torch.tensor([1]))
        assert_close(feed(model, cache, tail[:1], [1]), feed(model, fresh, tail[:1], [1]))
        cache.batch_repeat_interleave(2)
        twice = feed(model, cache, tail[:1].repeat(2, 1), [1])
        assert_close(twice[0], twice[1])


def test_crop_goes_back_until_something_was_dropped():
    ids = random_ids(1, 12)
    with prepare(use_float64_angles(tiny_llama())) as model:
        cache = SinkCache(model.config, 3, 9)
        feed(model, cache, ids, [5, 1])
        cache.crop(-4)
        again = feed(model, cache, ids[:, 8:], [1])
        assert_close(again, feed(model, SinkCache(model.config, 3, 9), ids, [1])[:, 8:])
        feed(model, cache, ids[:, :1], [1])
        with pytest.raises(ValueError, match="cannot go back from 13 to 12 tokens"):
            cache.crop(12)


def test_four_million_tokens_later_nothing_has_drifted():
    ids = random_ids(1, 60)
    with prepare(tiny_llama()) as model:
        old, fresh = SinkCache(model.config, 4, 16), SinkCache(model.config, 4, 16)
        feed(model, fresh, ids[:, :20], [20])
        feed(model, old, ids[:, :20], [20])
        old._state.n_seen += 4_000_000 * 16  # as if these tokens had passed and those fed were the last
        old._state.shift += 4_000_000 * 16
        difference = losses(feed(model, old, ids[:, 20:], [1]), ids[:, 20:]) - losses(
            feed(model, fresh, ids[:, 20:], [1]), ids[:, 20:]
        )
    assert difference.abs().max() < 1e-3


@pytest.mark.parametrize("n_tokens", [3_000, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("limit", [0, 16_384])
def test_bfloat16_does_not_drift(n_tokens, limit):
    """Decoded step by step, with a rebase every few tokens or hardly any, the error stays what it was."""
    ids = random_ids(1, n_tokens)
    with prepare(tiny_llama().bfloat16().float()) as model:  # the same weights
        exact = losses(feed(model, SinkCache(model.config, 4, 16), ids, [500]), ids)
    with prepare(tiny_llama().bfloat16()) as model:
        cache = SinkCache(model.config, 4, 16, position_limit=limit)
        ours = losses(feed(model, cache, ids, [20, 1]), ids)
    early, late = (ours - exact)[:1000].abs().mean(), (ours - exact)[-1000:].abs().mean()
    assert late < 1.3 * early


@pytest.mark.parametrize(
    ("mask", "message"),
    [([[1, 1, 0, 1]], "takes left padding only"), ([[1, 1, 1, 0]], "takes left padding only")],
)
def test_mask_with_a_hole_is_refused(mask, message):
    with prepare(tiny_llama()) as model, pytest.raises(ValueError, match=message):
        model(random_ids(1, 4), attention_mask=torch.tensor(mask), past_key_values=SinkCache(model.config))


def test_batch_that_changes_size_is_refused():
    with prepare(tiny_llama()) as model:
        cache = SinkCache(model.config)
        model(random_ids(2, 4), past_key_values=cache)
        with pytest.raises(ValueError, match="use one cache per model and batch"):
            model(random_ids(3, 1), past_key_values=cache)


def test_cache_of_another_model_is_refused():
    other = SinkCache(tiny_llama(num_hidden_layers=3).config)
    with prepare(tiny_llama()) as model, pytest.raises(ValueError, match="has 3 layers, the model 2"):
        model(random_ids(1, 4), past_key_values=other)


def test_one_compiled_step_serves_the_whole_stream():
    """One decoding step compiles in one piece, and a full ring recompiles nothing."""
    torch._dynamo.reset()
    ids, compiled = random_ids(1, 80), []

    def count(graph, _):
        compiled.append(graph)
        return graph.forward

    with prepare(tiny_llama()) as model, torch.no_grad():
        cache, plain = SinkCache(model.config, 3, 9), SinkCache(model.config, 3, 9)
        expected = feed(model, plain, ids, [5, 1])
        feed(model, cache, ids[:, :5], [5])
        step = torch.compile(model, fullgraph=True, backend=count)
        logits = [step(ids[:, t : t + 1], past_key_values=cache).logits for t in range(5, 40)]
        at_full = len(compiled)
        logits += [step(ids[:, t : t + 1], past_key_values=cache).logits for t in range(40, 80)]
    assert_close(torch.cat(logits, dim=1), expected[:, 5:], rtol=0, atol=1e-4)
    assert len(compiled) == at_full <= 5
