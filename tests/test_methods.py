"""Every method gives the losses of its slow twin: a new one needs no test of its own."""

import numpy as np
import pytest
import reference
import torch
from conftest import VOCAB, tiny_llama, use_float64_angles

from streamlm.cache.prepare import prepare
from streamlm.config import METHODS, StreamConfig
from streamlm.measure.scorers import Task, score
from streamlm.stats import BootstrapConfig

CFG = StreamConfig(n_sink=2, window_size=6)
IDS = np.random.default_rng(0).integers(VOCAB, size=60)


@pytest.mark.parametrize("n_ids", [2, 8, 9, 10, 17, 18, 60])  # one loss, just full, first evictions, far past
@pytest.mark.parametrize("name", METHODS)
def test_losses_are_those_of_the_slow_twin(name, n_ids):
    method, ids, model = METHODS[name], IDS[:n_ids], use_float64_angles(tiny_llama())
    with prepare(model):
        task = Task(
            model=model, ids=ids, method=method, asked=CFG, bootstrap=BootstrapConfig(), n_positions=9
        )
        scored = score(task)
    with torch.inference_mode():
        slow = reference.TWINS[name](tiny_double(), ids.tolist(), CFG.n_sink, CFG.window_size).numpy()
    if method.is_sampled:
        sample = scored.sections["recomputed"]
        np.testing.assert_allclose(sample["losses_nats"], slow[sample["positions"]], rtol=0, atol=1e-9)
    else:
        np.testing.assert_allclose(scored.losses, slow, rtol=0, atol=1e-9)
    assert len(scored.losses) == n_ids - 1
    assert scored.kv_tokens <= max(task.cfg.capacity, n_ids)


def tiny_double():
    """The same model, not prepared."""
    return use_float64_angles(tiny_llama())


def test_every_method_has_a_twin():
    assert reference.TWINS.keys() == METHODS.keys()
