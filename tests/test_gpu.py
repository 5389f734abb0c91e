"""On a GPU as on the CPU: `make gpu` runs those of CUDA, which are skipped where there is none."""

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import MODELS, use_float64_angles
from test_sink_cache import feed, random_ids
from torch.testing import assert_close

from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache
from streamlm.config import StreamConfig
from streamlm.measure.scoring import score_stream

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")],
)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("kv_dtype", [None, "int8"])
@pytest.mark.parametrize("family", sorted(MODELS))
def test_a_stream_on_a_device_has_the_losses_of_the_cpu(device, kv_dtype, family):
    ids, cfg = random_ids(1, 200)[0].numpy(), StreamConfig(n_sink=3, window_size=20)
    options = {"chunk": 64, "query_block": 16, "position_limit": 50, "kv_dtype": kv_dtype}
    losses = []
    for where in ("cpu", device):
        with prepare(use_float64_angles(MODELS[family]()).to(where)) as model:
            losses.append(score_stream(model, ids, cfg, **options)[0])
    assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_padded_batch_on_a_device_has_the_logits_of_the_cpu(device):
    ids = random_ids(2, 60)
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    logits = []
    for where in ("cpu", device):
        with prepare(use_float64_angles(MODELS["llama"]()).to(where)) as model:
            cache = SinkCache(model.config, 3, 20)
            logits.append(feed(model, cache, ids.to(where), [20, 9, 1], mask.to(where)).cpu())
    assert_close(logits[1][0], logits[0][0], rtol=0, atol=1e-9)
    assert_close(logits[1][1, 7:], logits[0][1, 7:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_the_benchmark_writes_a_record_a_page_and_a_figure(device, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    files = {
        name: tmp_path / f"gpu.{end}" for name, end in (("output", "json"), ("page", "md"), ("figure", "png"))
    }
    sizes = {"window-size": 20, "repeats": 2, "steps": 2, "scored": 64}
    options = {"device": device, "shapes": "tiny", **sizes, **files}
    monkeypatch.setattr(gpu, "compiled", lambda run: run)  # takes a compiler, and half a minute
    monkeypatch.setattr(sys, "argv", ["gpu.py", *(f"--{name}={value}" for name, value in options.items())])
    gpu.main()
    record = json.loads(files["output"].read_text())
    times = record["shapes"]["tiny"]["step_ms"]
    assert {"SinkCache, eager", "SinkCache, compiled", "DynamicCache", "StaticCache"} <= set(times)
    assert all(len(runs) == 2 and min(runs) > 0 for runs in times.values())
    page = files["page"].read_text()
    assert all(f"| tiny    | {way}" in page for way in times)
    assert files["figure"].stat().st_size > 10_000


def test_without_a_gpu_the_benchmark_says_so(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="no GPU is there"):
        gpu.main()
