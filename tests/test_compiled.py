"""Decoding steps of a full cache that are compiled: the same logits, and everything else as it was."""

import copy
import shutil
from itertools import pairwise

import pytest
import torch
from conftest import MODELS, tiny_llama, use_float64_angles
from test_captured_step import trace
from test_sink_cache import feed, random_ids
from torch._inductor.exc import InvalidCxxCompiler
from torch.testing import assert_close
from torch.torch_version import TorchVersion

from streamlm.cache import captured_step, compiled
from streamlm.cache.compiled import compile_steps
from streamlm.cache.prepare import observing, prepare
from streamlm.cache.sink_cache import SinkCache


@pytest.fixture
def traced(monkeypatch):
    """Capture steps as traces, which takes no compiler and little time; return those that were captured."""
    found = []

    def capture(run):
        found.append(run)
        return trace(run)

    monkeypatch.setattr(compiled, "compiled", capture)
    return found


@pytest.mark.parametrize("family", sorted(MODELS))
@pytest.mark.parametrize("kv_dtype", [None, "int8"])
@torch.no_grad()
def test_a_stream_of_chunks_and_single_tokens_has_the_logits_of_an_eager_one(traced, family, kv_dtype):
    ids, sizes = random_ids(2, 80), [7, 1, 1, 1, 1, 1, 1, 1, 9, 1, 1, 1, 3]
    with prepare(use_float64_angles(MODELS[family]())) as model:
        eager, fast = (SinkCache(model.config, 3, 9, position_limit=30, kv_dtype=kv_dtype) for _ in range(2))
        expected = feed(model, eager, ids, sizes)
        compile_steps(model)
        assert_close(feed(model, fast, ids, sizes), expected, rtol=0, atol=1e-9)
        assert len(traced) == 1
        fast.reset()
        assert_close(feed(model, fast, ids, sizes), expected, rtol=0, atol=1e-9)
    assert len(traced) == 1


@torch.no_grad()
def test_steps_at_positions_in_the_text_are_those_of_an_eager_one(traced):
    ids, sizes = random_ids(2, 80), [7, 1, 1, 1, 1, 1, 1, 1, 9, 1, 1, 1, 3]
    with prepare(use_float64_angles(tiny_llama())) as model:
        eager, fast = (SinkCache(model.config, 3, 9, position_limit=30, positions="text") for _ in range(2))
        expected = feed(model, eager, ids, sizes)
        compile_steps(model)
        assert_close(feed(model, fast, ids, sizes), expected, rtol=0, atol=1e-9)
    assert len(traced) == 1


@torch.no_grad()
def test_attention_of_single_tokens_is_shown_though_they_could_be_compiled(traced):
    seen, ids = [], random_ids(1, 20)
    with prepare(tiny_llama()) as model:
        compile_steps(model)
        cache = SinkCache(model.config, 3, 9)
        feed(model, cache, ids, [15, 1, 1])
        assert len(traced) == 1
        with observing(lambda layer, block: seen.append((layer, block.queries.tolist()))):
            model(ids[:, :1], past_key_values=cache)
    assert seen == [(0, [20]), (1, [20])]


def test_generate_writes_the_same_and_counts_the_same_tokens(traced):
    ids = random_ids(2, 8)
    with prepare(tiny_llama()) as model:
        options = {"max_new_tokens": 30, "do_sample": False, "attention_mask": torch.ones_like(ids)}
        caches = [SinkCache(model.config, 3, 9) for _ in range(2)]
        eager = model.generate(ids, past_key_values=caches[0], **options)
        compile_steps(model)
        assert_close(model.generate(ids, past_key_values=caches[1], **options), eager, rtol=0, atol=0)
    assert caches[0].get_seq_length() == caches[1].get_seq_length()
    assert len(traced) == 1


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
@torch.no_grad()
def test_rows_that_change_get_a_step_of_their_own(traced, kv_dtype):
    ids = random_ids(3, 80)
    changes = ([[2, 0]], [[1], [0, 0]])  # fewer rows; then as many at another address
    with prepare(use_float64_angles(tiny_llama())) as model:
        compile_steps(model)
        eager, fast = (SinkCache(model.config, 3, 9, kv_dtype=kv_dtype) for _ in range(2))
        logits = []
        for cache, size in ((eager, 2), (fast, 1)):  # twos are never steps
            found, rows = [feed(model, cache, ids[:, :20], [10, size])], ids[:, 20:]
            for i, change in enumerate(changes):
                for order in change:
                    rows = rows[order]
                    cache.batch_select_indices(torch.tensor(order))
                found.append(feed(model, cache, rows[:, 30 * i : 30 * i + 30], [size]))
            logits.append(found)
    for a, b in zip(*logits, strict=True):
        assert_close(a, b, rtol=0, atol=1e-9)
    assert len(traced) == 3


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
@torch.no_grad()
def test_rows_in_another_order_stay_in_their_step(traced, kv_dtype):
    ids = random_ids(2, 40)
    with prepare(use_float64_angles(tiny_llama())) as model:
        compile_steps(model)
        eager, fast = (SinkCache(model.config, 3, 9, kv_dtype=kv_dtype) for _ in range(2))
        found = []
        for cache, sizes in ((eager, [2]), (fast, [1])):  # twos are never steps
            feed(model, cache, ids[:, :20], [10, *sizes])
            cache.batch_select_indices(torch.tensor([1, 0]))
            found.append(feed(model, cache, ids[[1, 0], 20:], sizes))
    assert_close(*found, rtol=0, atol=1e-9)
    assert len(traced) == 1


@torch.no_grad()
def test_left_pads_and_further_outputs_are_computed_as_before(traced):
    ids = random_ids(2, 40)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    with prepare(tiny_llama()) as model:
        compile_steps(model)
        padded, whole = (SinkCache(model.config, 3, 9) for _ in range(2))
        model(ids[:, :30], past_key_values=padded, attention_mask=mask[:, :30])
        model(ids[:, :30], past_key_values=whole)
        for t in range(30, 40):
            token = ids[:, t : t + 1]
            model(token, past_key_values=padded, attention_mask=mask[:, : t + 1])
            assert model(token, past_key_values=whole, labels=token).loss is not None
            assert padded._compiled_step is None
            assert (whole._compiled_step is None) == (t < 35)
            if t == 34:
                model(token, past_key_values=whole)
    assert len(traced) == 1


@torch.no_grad()
def test_a_model_that_returns_more_by_its_config_stays_eager(traced):
    ids = random_ids(1, 20)
    with prepare(tiny_llama()) as model:
        compile_steps(model)
        model.config.output_hidden_states = True
        cache = SinkCache(model.config, 3, 9)
        model(ids[:, :14], past_key_values=cache)
        last = [model(ids[:, t : t + 1], past_key_values=cache).hidden_states[-1] for t in range(14, 20)]
    assert all(not torch.equal(a, b) for a, b in pairwise(last))
    assert not traced


def test_with_gradients_nothing_is_compiled(traced):
    ids = random_ids(1, 20)
    with prepare(tiny_llama().requires_grad_()) as model:
        compile_steps(model)
        cache = SinkCache(model.config, 3, 9)
        model(ids[:, :14], past_key_values=cache)
        logits = [model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(14, 20)]
    assert all(x.requires_grad for x in logits)
    assert not traced


@torch.no_grad()
def test_a_copy_of_a_cache_gets_its_own_step(traced):
    ids = random_ids(1, 40)
    with prepare(tiny_llama()) as model:
        compile_steps(model)
        cache = SinkCache(model.config, 3, 9)
        feed(model, cache, ids[:, :20], [14, 1])
        other = copy.deepcopy(cache)
        assert cache._compiled_step is not None
        assert other._compiled_step is None
        expected = feed(model, cache, ids[:, 20:], [1])
        assert_close(feed(model, other, ids[:, 20:], [1]), expected, rtol=0, atol=1e-9)
    assert len(traced) == 2


@torch.no_grad()
def test_asking_twice_compiles_once(traced):
    with prepare(tiny_llama()) as model:
        for _ in range(2):
            compile_steps(model)
        feed(model, SinkCache(model.config, 3, 9), random_ids(1, 20), [14, 1])
    assert len(traced) == 1


def test_a_machine_without_a_compiler_is_refused(monkeypatch):
    def no_compiler():
        raise InvalidCxxCompiler

    monkeypatch.setattr(compiled, "get_cpp_compiler", no_compiler)
    with (
        prepare(tiny_llama()) as model,
        pytest.raises(ValueError, match=r"no C\+\+ compiler .* install g\+\+"),
    ):
        compile_steps(model)


def test_a_torch_that_cannot_compile_them_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.12.1+cpu"))
    with (
        prepare(tiny_llama()) as model,
        pytest.raises(ValueError, match=r"need torch 2\.13 or newer, and this is 2\.12\.1\+cpu; upgrade it"),
    ):
        compile_steps(model)


def test_weights_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        made = tiny_llama()
    with (
        prepare(made) as model,
        pytest.raises(ValueError, match="were made in inference mode; load the model"),
    ):
        compile_steps(model)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_steps_that_are_really_compiled_are_the_stream():
    ids, calls = random_ids(1, 60), []
    with prepare(tiny_llama().float()) as model, torch.inference_mode():
        eager, fast = (SinkCache(model.config, 3, 9, position_limit=30) for _ in range(2))
        expected = feed(model, eager, ids, [14, 1])
        compile_steps(model)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(captured_step.CapturedStep, "_run", counted(captured_step.CapturedStep._run, calls))
            assert_close(feed(model, fast, ids, [14, 1]), expected, rtol=0, atol=5e-5)
    assert len(calls) == 2  # once for what is set up lazily, once traced
    assert fast._compile_sec > 0


def counted(function, calls):
    """Return `function`, noting its calls."""

    def call(*args):
        calls.append(args)
        return function(*args)

    return call
