"""Benchmarks measure what they say: the losses along a growing stream, and the seconds in Snakemake's log."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import VOCAB, tiny_llama
from tiny_model import write_tiny_model

from streamlm.cache.prepare import prepare
from streamlm.config import StreamConfig
from streamlm.measure.scoring import score_stream

SIZES = {"PASS": 64, "YOUNG_PASSES": 2, "PAIR_EVERY": 2, "PARTS": 4}
LOG = """\
[Fri Nov 27 01:35:10 2026]
rule measure_perplexity:
    output: results/a.json
    jobid: 7
    wildcards: corpus=wikitext, label=dense
[Fri Nov 27 01:35:19 2026]
Finished jobid: 7 (Rule: measure_perplexity)
1 of 3 steps (33%) done
[Fri Nov 27 01:35:20 2026]
localrule plot_figure:
    jobid: 2
    wildcards: figure=schemes
[Fri Nov 27 01:35:22 2026]
Finished jobid: 2 (Rule: plot_figure)
[Fri Nov 27 01:35:23 2026]
rule measure_perplexity:
    jobid: 9
"""


@pytest.fixture
def growth(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import growth

    for name, value in SIZES.items():
        monkeypatch.setattr(growth, name, value)
    return growth


@pytest.mark.parametrize("rows", [1, 4])
def test_growth_scores_every_row_as_a_stream_of_its_own(growth, rows):
    ids = torch.randint(VOCAB, (1025,), generator=torch.Generator().manual_seed(0))
    with prepare(tiny_llama()) as model:
        found = growth.measure(model, ids, growth.Case(20, rows))
        length = 1024 // rows
        losses = np.stack(
            [
                score_stream(
                    model,
                    ids[row * length : (row + 1) * length + 1].numpy(),
                    StreamConfig(n_sink=4, window_size=16),
                )[0]
                for row in range(rows)
            ]
        )
    assert found["parts"]["tokens"] == [256, 512, 768, 1024]
    expected = [part.mean() for part in np.split(losses, 4, axis=1)]
    np.testing.assert_allclose(found["parts"]["loss_nats"], expected, atol=1e-5)
    assert len(found["kv_bytes"]) == 1


def test_growth_writes_a_table_a_record_and_a_figure(growth, tmp_path, monkeypatch, capsys):
    write_tiny_model(tmp_path / "model")
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, 256, 2000))
    files = {"model": "model", "ids": "ids.npy", "output": "growth.json", "figure": "growth.png"}
    options = [f"--{name}={tmp_path / file}" for name, file in files.items()]
    monkeypatch.setattr(sys, "argv", ["growth.py", "--tokens=1024", *options])
    growth.main()
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "growth.json").read_text())
    assert list(record["cases"]) == ["4+252", "4+1020", "4+508, 4 rows"]
    assert all(f"\n{name} " in said for name in record["cases"])
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_minutes_are_those_of_jobs_that_finished(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import minutes

    assert minutes.read_jobs(LOG) == [
        (9.0, "measure_perplexity", "corpus=wikitext, label=dense"),
        (2.0, "plot_figure", "figure=schemes"),
    ]
