"""On a GPU as on the CPU: `make gpu` runs those of CUDA, which are skipped where there is none."""

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import MODELS, use_float64_angles
from test_sink_cache import feed, losses, random_ids
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
@pytest.mark.parametrize("options", [{"position_limit": 50}, {"kv_dtype": "int8"}])  # moving back rounds keys
@pytest.mark.parametrize("family", sorted(MODELS))
def test_blocks_on_a_device_have_the_losses_of_single_tokens_on_the_cpu(device, options, family):
    ids = random_ids(1, 200)
    with prepare(use_float64_angles(MODELS[family]())) as model:
        cache = SinkCache(model.config, 3, 20, **options)
        expected = losses(feed(model, cache, ids, [1]), ids)
    with prepare(use_float64_angles(MODELS[family]()).to(device)) as model:
        cfg = StreamConfig(n_sink=3, window_size=20)
        found, _ = score_stream(model, ids[0].numpy(), cfg, chunk=64, query_block=16, **options)
    assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_padded_batch_on_a_device_has_the_logits_of_single_rows_on_the_cpu(device):
    ids, pads = random_ids(2, 60), (0, 7)
    mask = torch.arange(60) >= torch.tensor(pads)[:, None]
    with prepare(use_float64_angles(MODELS["llama"]()).to(device)) as model:
        found = feed(model, SinkCache(model.config, 3, 20), ids.to(device), [20, 9, 1], mask.to(device)).cpu()
    with prepare(use_float64_angles(MODELS["llama"]())) as model:
        for row, n_pads in enumerate(pads):
            alone = feed(model, SinkCache(model.config, 3, 20), ids[row : row + 1, n_pads:], [1])
            assert_close(found[row, n_pads:], alone[0], rtol=0, atol=1e-9)


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
