"""The command as a user types it, in its own process."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent
PROSE = "Attention sinks keep a stream of text steady. " * 12


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model and a text."""
    path = tmp_path_factory.mktemp("cli")
    write_tiny_model(path / "model")
    (path / "text.txt").write_text(PROSE)
    (path / "empty.txt").write_text(" \n")
    np.save(path / "ids.npy", np.arange(100, dtype=np.int64))
    np.save(path / "foreign.npy", np.array([1, 5000], dtype=np.int64))
    np.save(path / "floats.npy", np.ones(9))
    np.save(path / "long.npy", np.random.default_rng(0).integers(0, 257, 60_000))
    (path / "empty.npy").touch()
    (path / "empty.json").write_text("{}")
    return path


ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}


def command(*args):
    return [sys.executable, "-c", "from streamlm.cli import main; main()", *map(str, args)]


def streamlm(place, *args):
    return subprocess.run(command(*args), cwd=place, env=ENVIRONMENT, capture_output=True, text=True)


def test_evaluate_writes_record_and_losses(place):
    done = streamlm(
        place, "evaluate", "--model-name", "model", "--text", "text.txt", "--n-sink", 2, "--window-size", 30,
        "--max-eval-tokens", 300, "--per-token", "losses.npy", "--output", "dense.json", "--method", "dense",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    losses = np.load(place / "losses.npy")
    record = json.loads((place / "dense.json").read_text())
    assert losses.dtype == np.float32
    assert losses.shape == (299,)
    assert record["streaming"]["perplexity"] == pytest.approx(np.exp(losses.mean(dtype=np.float64)))
    assert record["dataset"] == "text.txt"
    assert f"perplexity {record['streaming']['perplexity']:.2f}" in done.stdout


def test_evaluate_compares_with_a_dense_record(place):
    common = ("evaluate", "--model-name", "model", "--tokens", "ids.npy")
    dense = streamlm(place, *common, "--method", "dense", "--output", "b.json", "--per-token", "b.npy")
    assert dense.returncode == 0, dense.stderr
    narrow = ("--window-size", 20, "--storage", "int8")
    done = streamlm(place, *common, *narrow, "--baseline", "b.json", "--output", "s.json")
    assert done.returncode == 0, done.stderr
    assert "4+20, window in int8, on ids.npy" in done.stdout
    record = json.loads((place / "s.json").read_text())
    assert record["storage"] == "int8"
    assert record["baseline"]["perplexity"] > 1
    assert record["metrics"]["ppl_increase_percent"] is not None
    assert "perplexity against dense" in done.stdout


def test_recompute_is_estimated_and_says_so(place):
    done = streamlm(
        place, "evaluate", "--model-name", "model", "--tokens", "ids.npy", "--method", "recompute",
        "--window-size", 20, "--positions", 5, "--output", "r.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((place / "r.json").read_text())
    assert (record["n_sink"], record["window_size"], record["recomputed"]["paired_with"]) == (0, 24, "4+20")
    assert len(record["recomputed"]["losses_nats"]) == 5
    assert "recompute 0+24 on ids.npy" in done.stdout
    assert "estimated from 5 tokens" in done.stdout


def test_killed_run_goes_on_from_its_checkpoint_to_the_same_losses(place):
    common = ("evaluate", "--model-name", "model", "--tokens", "long.npy", "--window-size", 60)
    whole = streamlm(place, *common, "--per-token", "whole.npy", "--output", "whole.json")
    assert whole.returncode == 0, whole.stderr
    again = (*common, "--checkpoint", "state", "--per-token", "again.npy", "--output", "again.json")
    killed = subprocess.Popen(command(*again), cwd=place, env=ENVIRONMENT)
    while not (place / "state").exists():
        assert killed.poll() is None, "it ended before it kept anything"
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert not (place / "again.json").exists()
    done = streamlm(place, *again)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(place / "again.npy"), np.load(place / "whole.npy"))
    records = [json.loads((place / name).read_text()) for name in ("whole.json", "again.json")]
    for record in records:
        del record["streaming"]["runtime_sec"], record["streaming"]["tokens_per_sec"]
    assert records[0] == records[1]
    assert not (place / "state").exists()


def test_latency_is_told_in_a_table_and_against_an_earlier_record(place):
    common = (
        "latency", "--model-name", "model", "--tokens", "ids.npy", "--capacity", 16, "--n-sink", 2,
        "--runs", 2, "--timed-tokens", 2,
    )  # fmt: skip
    done = streamlm(place, *common, "--output-dir", "first")
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (place / "first").iterdir())
    assert names == [f"decoding_latency_{method}_16_sink0.json" for method in ("dense", "recompute")] + [
        "decoding_latency_streaming_16_sink2.json", "decoding_latency_window_16_sink0.json",
    ]  # fmt: skip
    assert done.stdout.count("\n") == 2 + 4
    baseline = ("--baseline", "first/decoding_latency_streaming_16_sink2.json")
    again = streamlm(place, *common, "--method", "streaming", *baseline)
    assert again.returncode == 0, again.stderr
    assert "ms against" in again.stdout
    other = streamlm(place, *common, "--method", "dense", *baseline)
    assert "which was not measured now; ask for it too" in other.stderr
    for args, message in (
        (("--method", "steaming"), "unknown method 'steaming'"),
        (("--runs", 1), "runs must be >= 2, got 1"),
        (("--capacity", 500), "100 tokens do not fill a cache of 500"),
        (("--baseline", "empty.json"), "no record of `streamlm latency`"),
    ):
        refused = streamlm(place, *common, *args)
        assert message in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_compare_tells_both_protocols_and_the_equality(place):
    common = ("compare", "--model-name", "model", "--tokens", "ids.npy", "--window-size", 16)
    presses = ("--press", "KnormPress", "--press", "SnapKVPress(window_size=8)")
    done = streamlm(place, *common, *presses, "--interval", 2, "--output", "compared.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ids.npy: cut once to 20") == 1 + 4 + 2
    assert done.stdout.count("ids.npy: decoded at 20") == 5
    assert "kvpress used faithfully and streamlm differ by at most" in done.stdout
    record = json.loads((place / "compared.json").read_text())
    assert list(record["methods"])[-1] == "SnapKVPress-window_size-8"
    assert record["decoding"]["methods"]["kvpress_faithful"]["against_streamlm"]["largest_nats"] < 1e-4
    for args, message in (
        (("--press", "KnurmPress"), "unknown press 'KnurmPress'; known are CriticalKVPress"),
        (("--press", "KeyRerotationPress"), "KeyRerotationPress needs a press to wrap"),
        (("--press", "KnormPress(ratio=2)"), "KnormPress has no argument 'ratio'"),
        (("--window-size", 90), "a budget of 94 keeps all of a context of 80 tokens"),
        (("--n-sink", 0), "n-sink"),
    ):
        refused = streamlm(place, *common, *args)
        assert message in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--text", "text.txt", "--n-sink", "-1"], "n_sink must be >= 0, got -1"),
        (["--text", "text.txt", "--window-size", "0"], "window_size must be >= 1, got 0"),
        (
            ["--text", "text.txt", "--method", "steaming"],
            "unknown method 'steaming'; known are dense",
        ),
        (["--text", "text.txt", "--n-sink", "x"], "valid integer"),
        (["--text", "text.txt", "--max-eval-tokens", "1"], "greater than or equal to 2"),
        (["--text", "text.txt", "--nsink", "1"], "No such option"),
        (["--text", "text.txt", "--device", "meta"], "unknown device 'meta'; use auto, cpu"),
        (["--text", "text.txt", "--dtype", "int8"], "unknown dtype 'int8'"),
        (["--text", "text.txt", "--storage", "int4"], "unknown storage 'int4'; known are bfloat16"),
        (["--text", "text.txt", "--per-token", "model"], "model is a folder; name a file to write"),
        (["--text", "text.txt", "--per-token", "never.json"], "two options name the file never.json"),
        (["--text", "text.txt", "--baseline", "empty.json"], "cannot read the losses of empty.json"),
        (["--tokens", "empty.npy"], "cannot read token ids from empty.npy"),
        (["--dataset-name", "c4"], "unknown --dataset-name 'c4'; known are wikitext, pg19"),
        (["--text", "empty.txt"], "holds no text"),
        (["--text", "missing.txt"], "no such file: missing.txt"),
        (["--tokens", "foreign.npy"], "token id 5000 is outside the vocabulary of 257"),
        (["--tokens", "floats.npy"], "must hold one row of int64 token ids"),
        (["--tokens", "missing.npy"], "cannot read token ids from missing.npy"),
        (["--dataset-name", "wikitext"], "make it with `snakemake data/wikitext/sample.json`"),
        ([], "give exactly one of --dataset-name, --text and --tokens"),
        (["--text", "text.txt", "--baseline", "none.json"], "there is no record none.json"),
    ],
)
def test_mistake_is_reported_without_traceback_or_output(place, args, message):
    done = streamlm(place, "evaluate", "--model-name", "model", *args, "--output", "never.json")
    assert done.returncode != 0
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (place / "never.json").exists()


def test_folder_named_as_output_keeps_what_it_holds(place):
    done = streamlm(place, "evaluate", "--model-name", "model", "--text", "text.txt", "--output", "model")
    assert done.returncode != 0
    assert (place / "model" / "config.json").is_file()


def test_baseline_with_other_losses_is_refused(place):
    common = ("evaluate", "--model-name", "model", "--tokens", "ids.npy")
    dense = streamlm(place, *common, "--method", "dense", "--output", "d.json", "--per-token", "d.npy")
    assert dense.returncode == 0, dense.stderr
    np.save(place / "d.npy", np.zeros(99, np.float32))
    done = streamlm(place, *common, "--baseline", "d.json")
    assert done.stderr.strip().endswith("are not the ones it was made of")


def test_help_shows_an_example():
    done = streamlm(ROOT, "evaluate", "--help")
    assert "Example: streamlm evaluate" in " ".join(done.stdout.split())
