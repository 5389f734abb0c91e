import numpy as np
import pytest
import torch
from conftest import MODELS, VOCAB, tiny_llama, use_float64_angles
from hypothesis import given
from hypothesis import strategies as st
from reference import recomputed_losses
from torch.testing import assert_close

from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache
from streamlm.config import StreamConfig
from streamlm.measure.checkpoint import Checkpoint
from streamlm.measure.scoring import draw_positions, recompute_losses, score_stream

IDS = np.random.default_rng(0).integers(0, VOCAB, 200)


@given(n_tokens=st.integers(2, 400), capacity=st.integers(1, 300), count=st.integers(1, 60))
def test_positions_are_spread_over_all_that_saw_an_eviction(n_tokens, capacity, count):
    found = draw_positions(n_tokens, capacity, count, seed=1)
    available = max(0, n_tokens - 1 - capacity)
    assert len(found) == min(count, available)
    assert all(capacity <= position <= n_tokens - 2 for position in found)
    assert (np.diff(found) >= 0).all()
    edges = capacity + np.arange(len(found) + 1) * available / max(1, len(found))
    assert all(low - 1 < place < high for low, place, high in zip(edges, found, edges[1:], strict=False))
    if count >= available:
        assert found.tolist() == list(range(capacity, n_tokens - 1))


def test_every_position_is_as_likely_as_any_other():
    drawn = np.concatenate([draw_positions(31, 10, 6, seed) for seed in range(3000)])
    assert np.bincount(drawn - 10) / 3000 == pytest.approx(np.full(20, 6 / 20), abs=0.04)


@pytest.mark.parametrize("family", sorted(MODELS))
@pytest.mark.parametrize("capacity", [1, 7, 64])
def test_recompute_is_a_plain_pass_over_the_last_tokens(family, capacity):
    positions = np.array([capacity - 1, capacity, 70, 198])
    model = use_float64_angles(MODELS[family]())
    expected = recomputed_losses(model, IDS.tolist(), positions.tolist(), capacity)
    with prepare(model):
        losses, cache = recompute_losses(model, IDS, positions, capacity)
    assert_close(torch.from_numpy(losses), expected, rtol=0, atol=1e-9)
    assert cache.n_held == capacity


class Stop(Exception):
    pass


def stop_after(n_tokens):
    def check(losses):
        if len(losses) >= n_tokens:
            raise Stop

    return check


def run(model, path, *, identity=None, kv_dtype=None, on_progress=None):
    state = Checkpoint(path, identity or {"of": "this"}, every=32)
    cfg = StreamConfig(n_sink=2, window_size=9)
    losses, _ = score_stream(
        model,
        IDS,
        cfg,
        chunk=16,
        position_limit=40,
        kv_dtype=kv_dtype,
        checkpoint=state,
        on_progress=on_progress,
    )
    return losses, state


@pytest.mark.parametrize("kv_dtype", [None, torch.int8])
@pytest.mark.parametrize("stop", [16, 48, 112, 192])
def test_stopped_run_goes_on_to_the_same_losses(tmp_path, kv_dtype, stop):
    """Bit for bit, over a rebase of the ring."""
    with prepare(tiny_llama()) as model:
        whole, _ = run(model, tmp_path / "undisturbed", kv_dtype=kv_dtype)
        with pytest.raises(Stop):
            run(model, tmp_path / "state", kv_dtype=kv_dtype, on_progress=stop_after(stop))
        lengths = []
        resumed, state = run(
            model,
            tmp_path / "state",
            kv_dtype=kv_dtype,
            on_progress=lambda losses: lengths.append(len(losses)),
        )
    assert state.restored == stop // 32 * 32
    assert lengths[0] == min(state.restored + 16, 199)
    assert np.array_equal(resumed, whole)


def test_state_of_another_run_is_not_taken_up(tmp_path):
    with prepare(tiny_llama()) as model:
        whole, _ = run(model, tmp_path / "state")
        again, state = run(model, tmp_path / "state", identity={"of": "another"})
    assert state.restored == 0
    assert np.array_equal(again, whole)


def test_damaged_state_is_named_with_its_remedy(tmp_path):
    (tmp_path / "state").write_bytes(b"\x10" * 100)
    with prepare(tiny_llama()) as model, pytest.raises(ValueError, match=r"state is damaged.*; remove it"):
        run(model, tmp_path / "state")


@torch.inference_mode()
def test_state_of_a_padded_batch_goes_on_in_another_cache():
    ids = torch.from_numpy(IDS[:80].reshape(2, 40))
    mask = (torch.arange(40) >= torch.tensor([0, 5])[:, None]).long()
    with prepare(use_float64_angles(tiny_llama())) as model:
        cache, other = (SinkCache(model.config, 3, 9) for _ in range(2))
        model(ids[:, :20], past_key_values=cache, attention_mask=mask[:, :20])
        other.load_state_dict(cache.state_dict())
        expected, found = (
            torch.cat([model(ids[:, t : t + 1], past_key_values=c).logits for t in range(20, 40)], dim=1)
            for c in (cache, other)
        )
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ({"n_sink": 2, "window_size": 10}, "layer 0 does not fit this SinkCache in its keys"),
        ({"n_sink": 3, "window_size": 8}, "layer 0 does not fit this SinkCache in its sinks"),
        ({"n_sink": 2, "window_size": 9, "kv_dtype": torch.int8}, "layer 0 does not fit"),
    ],
)
@torch.inference_mode()
def test_state_of_another_geometry_is_refused(geometry, message):
    with prepare(tiny_llama()) as model:
        cache = SinkCache(model.config, n_sink=2, window_size=9)
        model(torch.from_numpy(IDS[None, :20]), past_key_values=cache)
        with pytest.raises(ValueError, match=message):
            SinkCache(model.config, **geometry).load_state_dict(cache.state_dict())
        with pytest.raises(ValueError, match="into a new SinkCache only"):
            cache.load_state_dict(cache.state_dict())
