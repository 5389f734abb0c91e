"""What is timed is what is said to be: the right tokens in the context, the right model, all of the step."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import VOCAB, tiny_llama
from drawn import assert_printable, assert_tabled, assert_uncluttered, curves
from numpy.testing import assert_allclose
from tiny_model import write_tiny_model

from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache
from streamlm.config import METHODS, Compute, StreamConfig
from streamlm.figures.decoding_latency import plot_decoding_latency
from streamlm.measure.decoders import make_decoder, measure_cache, time_steps
from streamlm.measure.latency import LatencyConfig, describe_times, measure_latency, measure_long_run
from streamlm.measure.memory import held_bytes, measure_rise
from streamlm.summaries.latency import (
    check_timings,
    comparison_line,
    confidence_of,
    describe_decoding,
    latency_ratio,
    latency_rows,
    latency_summary,
    same_setting,
    speedups,
)

IDS = np.random.default_rng(0).integers(0, VOCAB, 100)
COMPUTE = Compute(device="cpu", torch_threads=1)
AMOUNTS = LatencyConfig(warmup_tokens=1, timed_tokens=3, recompute_tokens=2, runs=4)
CASES = [("dense", 0), ("window", 0), ("recompute", 0), ("streaming", 2), ("streaming", 4)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("latency"))


@pytest.fixture(scope="session")
def options(folder):
    return {"model_dir": folder, "ids": IDS, "dataset": "random ids", "compute": COMPUTE}


@pytest.fixture(scope="session")
def measured(options):
    return [
        record
        for capacity in (16, 32)
        for record in measure_latency(**options, capacity=capacity, cases=CASES, latency=AMOUNTS)
    ]


@pytest.fixture(scope="session")
def long_run(options):
    return measure_long_run(**options, cfg=StreamConfig(n_sink=2, window_size=14), tokens=120)


@pytest.fixture
def records(measured):
    return copy.deepcopy(measured)


@torch.inference_mode()
def decoded(method, n_sink, steps=20, capacity=16):
    """Return the tokens that a decoder reads, and the decoder."""
    with prepare(tiny_llama()) as prepared:
        decoder = make_decoder(
            METHODS[method], n_sink, tiny_llama(), prepared, torch.from_numpy(IDS[None, :capacity])
        )
        tokens = []
        for _ in range(steps):
            time_steps(decoder, 1)
            tokens.append(int(decoder.ids[0, -1] if method == "recompute" else decoder.token))
    return tokens, decoder


def greedy(model, seen):
    return int(model(torch.tensor([seen])).logits[0, -1].argmax())


@torch.inference_mode()
def test_recompute_encodes_the_last_tokens_for_every_token():
    seen, model = IDS[:16].tolist(), tiny_llama()
    for _ in range(20):
        seen.append(greedy(model, seen[-16:]))
    assert decoded("recompute", 0)[0] == seen[16:]


@torch.inference_mode()
def test_dense_step_attends_to_as_many_tokens_as_the_others_hold():
    seen, model = IDS[:16].tolist(), tiny_llama()
    token, expected = greedy(model, seen), []
    for _ in range(20):
        token = greedy(model, [*seen[:15], token])
        expected.append(token)
    tokens, decoder = decoded("dense", 0)
    assert tokens == expected
    assert decoder.cache.get_seq_length() == 16
    # keys and values x layers x heads x tokens x size x bytes
    assert held_bytes(decoder.cache) == 2 * 2 * 2 * 16 * 8 * 4


@pytest.mark.parametrize("n_sink", [0, 3])
@torch.inference_mode()
def test_bounded_step_is_that_of_a_sink_cache(n_sink):
    tokens, decoder = decoded("streaming", n_sink)
    with prepare(tiny_llama()) as model:
        cache = SinkCache(model.config, n_sink, 16 - n_sink)
        generated = model.generate(
            torch.from_numpy(IDS[None, :16]), past_key_values=cache, max_new_tokens=21, do_sample=False,
            eos_token_id=None, attention_mask=torch.ones(1, 16, dtype=torch.int64),
        )  # fmt: skip
    assert tokens == generated[0, 17:].tolist()
    assert held_bytes(decoder.cache) == (2 * 16 + n_sink) * 2 * 2 * 8 * 4


def test_time_in_the_cache_is_a_part_of_the_step():
    prompt = torch.from_numpy(IDS[None, :16])
    with torch.inference_mode(), prepare(tiny_llama()) as prepared:
        for method in ("dense", "window"):
            decoder = make_decoder(METHODS[method], 0, tiny_llama(), prepared, prompt)
            spent = measure_cache(decoder)
            assert 0 < spent < np.median(time_steps(decoder, 5))
            assert not {"_begin_pass", "update"} & set(vars(decoder.cache))  # undone
        assert measure_cache(make_decoder(METHODS["recompute"], 0, tiny_llama(), prepared, prompt)) is None


def test_record_holds_what_was_timed(measured):
    assert [(r["method"], r["capacity"], r["n_sink"]) for r in measured] == [
        (method, capacity, n_sink) for capacity in (16, 32) for method, n_sink in CASES
    ]
    for record in measured:
        assert len(record["step_ms"]["runs"]) == AMOUNTS.runs
        low, high = record["step_ms"]["spread"]
        assert 0 < low <= record["step_ms"]["median"] <= max(high, record["step_ms"]["p95"])
        assert record["decoded"]["timed_tokens"] == (2 if record["method"] == "recompute" else 3)
        assert record["n_sink"] + record["window_size"] == record["capacity"]
        assert record["tokens"]["count"] == record["capacity"]
        assert record["step_peak_bytes"] is None or record["step_peak_bytes"] >= 0
    assert len({record["measured_at"] for record in measured[:5]}) == 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_steps_of_bounded_caches_are_compiled_where_that_is_asked(options):
    amounts = replace(AMOUNTS, compile=True)
    cases = [("streaming", 2), ("dense", 0)]
    streaming, dense = measure_latency(**options, capacity=16, cases=cases, latency=amounts)
    assert streaming["compile_sec"] > 0
    assert streaming["cache_ms"] is None
    assert "compile_sec" not in dense
    assert dense["cache_ms"] > 0
    assert "the steps of streaming and window only are compiled" in describe_decoding(streaming)


def test_times_are_described_over_tokens_and_runs():
    found = describe_times([[1.0, 2.0, 9.0], [3.0, 4.0, 5.0]])
    assert (found["median"], found["runs"], found["spread"]) == (3.5, [2.0, 4.0], [2.0, 4.0])
    assert found["p95"] == pytest.approx(8.0)


def test_rise_of_memory_is_seen_and_what_was_held_before_is_not():
    held = torch.ones(20 * 2**18)
    rise = measure_rise(lambda: torch.ones(50 * 2**18).sum(), torch.device("cpu"))
    assert held.sum() > 0
    assert rise is None or 49 * 2**20 <= rise < 60 * 2**20  # a little may fit into what is there
    assert measure_rise(lambda: None, torch.device("meta")) is None


def test_long_run_keeps_every_token_in_some_part(long_run):
    assert long_run["tokens_seen"][-1] == 16 + 120
    assert len(long_run["tokens_seen"]) == len(long_run["step_ms"]["parts"]) == 60
    assert len(long_run["step_ms"]["young_parts"]) == 60
    trend = long_run["trend_percent_per_1000_tokens"]
    assert trend["low"] <= trend["slope"] <= trend["high"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cases": [("steaming", 0)]}, "unknown method 'steaming'; known are dense, window, recompute"),
        ({"capacity": 500}, "100 tokens do not fill a cache of 500; take a longer text"),
        ({"cases": [("streaming", 16)]}, "window_size must be >= 1, got 0"),
        ({"ids": np.full(100, 5000)}, "token id 5000 is outside the vocabulary"),
    ],
)
def test_mistake_is_one_line(options, changes, message):
    arguments = options | {"capacity": 16, "cases": CASES, "latency": AMOUNTS} | changes
    with pytest.raises(ValueError, match=message):
        measure_latency(**arguments)
    with pytest.raises(ValueError, match="runs must be >= 2, got 1"):
        LatencyConfig(warmup_tokens=1, timed_tokens=1, recompute_tokens=1, runs=1)


def with_runs(record, runs, **changes):
    step_ms = {
        "median": float(np.median(runs)),
        "p95": max(runs),
        "runs": runs,
        "spread": [min(runs), max(runs)],
    }
    return record | {"step_ms": step_ms} | changes


def test_ratio_is_taken_within_turns_where_there_are_turns(records):
    slow, fast = with_runs(records[0], [20.0, 40.0, 60.0]), with_runs(records[3], [10.0, 20.0, 30.0])
    assert latency_ratio(slow, fast) == {"ratio": 2.0, "spread": [2.0, 2.0], "in_turns": True}
    apart = latency_ratio(slow, fast | {"measured_at": "another day"})
    assert apart == {"ratio": 2.0, "spread": [20 / 30, 6.0], "in_turns": False}


def test_two_records_of_one_setting_say_whether_they_differ(records):
    first = with_runs(records[3], [10.0, 11.0, 12.0])
    near, far = (with_runs(first, runs, measured_at="later") for runs in ([11.0, 12.0], [20.0, 21.0]))
    assert "1.05 [0.92, 1.20] times; no difference can be seen (timed one after" in comparison_line(
        near, first
    )
    assert "they differ by more than their spread" in comparison_line(far, first)
    assert same_setting(records, first)["n_sink"] == 2
    with pytest.raises(ValueError, match="dense at 16, which was not measured now"):
        same_setting(records[1:3], records[0])
    with pytest.raises(ValueError, match=r"the baseline is not a latency record .* is missing"):
        same_setting(records, {})


@pytest.mark.parametrize(
    ("key", "value"),
    [("processor", "another"), ("cores", 99), ("torch_threads", 3), ("device", "cuda"), ("packages", {})],
)
def test_record_of_another_machine_is_refused_with_the_remedy(records, long_run, key, value):
    records[4]["environment"] = records[4]["environment"] | {key: value}
    for use in (check_timings, lambda records: latency_summary(records, long_run)):
        with pytest.raises(ValueError, match=r"with 4 sinks cannot be compared.* remove the"):
            use(records)


def test_summary_says_what_the_records_say(records, long_run):
    for record in records:
        times = {"dense": 5.0, "recompute": 10.0 * record["capacity"]}.get(record["method"], 4.0)
        record |= with_runs(record, [times] * 4)
    text = latency_summary(records, long_run)
    rows = latency_rows(records)
    assert len(rows) == len(records)
    assert [ratio["ratio"] for ratio in speedups(records, "recompute").values()] == [40.0, 80.0]
    assert "40.00 [40.00, 40.00] at 16, 80.00 [80.00, 80.00] at 32" in text
    assert "Here it grows with the cache" in text
    assert "A dense token did not become dearer with its context: 5.0 ms with 16 tokens" in text
    records[2] |= with_runs(records[2], [900.0] * 4)
    assert "Here it does not always grow" in latency_summary(records, long_run)


def test_confidence_of_the_spread_is_that_of_order_statistics():
    rng = np.random.default_rng(0)
    runs = rng.normal(size=(20_000, 5))
    enclosed = (runs.min(1) < 0) & (runs.max(1) > 0)
    assert enclosed.mean() == pytest.approx(confidence_of(5), abs=0.01)


@pytest.fixture
def timed(records):
    """Records with times that no noise brings close to one another."""
    for i, record in enumerate(records):
        times = {"dense": 50.0, "recompute": 20.0 * record["capacity"]}.get(record["method"], 40.0)
        record |= with_runs(record, [times + i, times + 1.1 * i, times + 1.2 * i, times + 1.3 * i])
    return records


def test_latency_figure_shows_the_records_numbers(timed, long_run):
    records = timed
    figure = plot_decoding_latency([*records, long_run])
    written = assert_uncluttered(figure)
    times, ratios, memory, along = figure.axes
    drawn = [container.lines[0].get_ydata(orig=False) for container in times.containers]
    for values, (method, n_sink) in zip(
        drawn, [("dense", 0), ("window", 0), ("recompute", 0), ("streaming", 2)], strict=True
    ):
        own = [r for r in records if (r["method"], r["n_sink"]) == (method, n_sink)]
        assert_allclose(values, [r["step_ms"]["median"] for r in own])
    for container, method in zip(ratios.containers, ("recompute", "dense"), strict=True):
        found = [ratio["ratio"] for ratio in speedups(records, method).values()]
        assert_allclose(container.lines[0].get_ydata(orig=False), found)
        for ratio in found:
            assert f"{ratio:.3g}x" in written
    kept = [line.get_ydata() for line in memory.lines if line.get_linestyle() != ":"]
    streaming = [r["kv_bytes"] / 2**20 for r in records if (r["method"], r["n_sink"]) == ("streaming", 2)]
    assert_allclose(kept[-1], streaming)
    for values, key in zip(curves(along), ("young_parts", "parts"), strict=True):
        assert_allclose(values, long_run["step_ms"][key])
    assert "94% confidence" not in written  # of five runs; these are four
    for name in ("88% confidence", "random ids", records[0]["environment"]["processor"], "ms per token"):
        assert name in written


def test_every_number_drawn_is_tabled_and_readable(timed, long_run, tmp_path):
    figure = plot_decoding_latency([*timed, long_run])
    assert_printable(figure)
    assert_tabled(figure, "decoding_latency", [*timed, long_run], tmp_path)


def test_latency_figure_lives_without_a_measure_of_memory(timed, long_run):
    for record in timed:
        record["step_peak_bytes"] = None
    assert_uncluttered(plot_decoding_latency([*timed, long_run]))


def test_latency_figure_refuses_a_record_of_another_machine(records, long_run):
    records[1]["environment"] = records[1]["environment"] | {"processor": "another"}
    with pytest.raises(ValueError, match="processor differs"):
        plot_decoding_latency([*records, long_run])
