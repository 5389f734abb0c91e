"""The command as a user types it."""

import json
import subprocess
import time

import numpy as np
import pytest
from command import ENVIRONMENT, command, refuse, streamlm, streamlm_alone
from tiny_model import byte_tokenizer, write_tiny_model
from tokenizers import processors

from streamlm.stats import BootstrapConfig
from streamlm.summaries.main import collect_ablation

KV_DTYPE = ("--kv-dtype", "--storage")  # the second is the older name
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
    quantised = ("--window-size", 20, "--kv-dtype", "int8")
    done = streamlm(place, *common, *quantised, "--baseline", "b.json", "--output", "s.json")
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


def test_latency_is_a_table_and_compared_with_an_earlier_record(place):
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
        (("--method", "steaming"), "'steaming' is not one of 'dense', 'window', 'recompute', 'streaming'"),
        (("--runs", 1), "'--runs': Input should be greater than or equal to 2"),
        (("--capacity", 500), "100 tokens do not fill a cache of 500"),
        (("--baseline", "empty.json"), "empty.json is not a latency record of this version"),
    ):
        refused = streamlm(place, *common, *args)
        assert message in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_compare_shows_both_protocols_and_the_equality(place):
    common = ("compare", "--model-name", "model", "--tokens", "ids.npy", "--window-size", 16)
    presses = ("--press", "KnormPress", "--press", "SnapKVPress(window_size=8)")
    # kvpress must stay out of this process.
    done = streamlm_alone(place, *common, *presses, "--interval", 2, "--output", "compared.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| ids.npy | cut once to 20 |") == 1 + 4 + 2
    assert done.stdout.count("| ids.npy | decoded at 20  |") == 6
    assert "of kvpress (re-rotated, interval 1) differ by at most" in done.stdout
    assert "Cut once to 20 of 80, difference of mean KL from dense to streamlm, prefilled" in done.stdout
    record = json.loads((place / "compared.json").read_text())
    assert list(record["methods"])[-1] == "SnapKVPress-window_size-8"
    assert record["decoding"]["methods"]["kvpress_faithful"]["against_streamlm"]["largest_nats"] < 1e-4
    for args, message in (
        (("--press", "KnurmPress"), "unknown press 'KnurmPress'; known are AdaKVPress"),
        (("--press", "KeyRerotationPress"), "KeyRerotationPress needs a press to wrap"),
        (("--press", "KnormPress(ratio=2)"), "KnormPress has no argument 'ratio'"),
        (("--press", "PyramidKVPress"), "PyramidKVPress is not comparable at equal budgets, see docs/new-"),
        (
            ("--window-size", 90),
            "--n-sink 4 and --window-size 90 keep 94 tokens, and the context, four fifths of 100 tokens of "
            "text, has 80; take a smaller --window-size or more text (--max-eval-tokens)",
        ),
        (("--press", "SnapKVPress(window_size=99)"), "with the last 99 tokens of a context, and it has 80"),
        (("--n-sink", 0), "n-sink"),
    ):
        refused = streamlm(place, *common, *args)
        assert message in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--text", "text.txt", "--n-sink", "-1"], "'--n-sink': Input should be greater than or equal to 0"),
        (
            ["--text", "text.txt", "--window-size", "0"],
            "'--window-size': Input should be greater than or equal to 1",
        ),
        (["--text", "text.txt", "--method", "steaming"], "'steaming' is not one of 'dense', 'window'"),
        (["--text", "text.txt", "--n-sink", "x"], "valid integer"),
        (
            ["--text", "text.txt", "--max-eval-tokens", "1"],
            "'--max-eval-tokens': Input should be greater than or equal to 2",
        ),
        (["--text", "text.txt", "--nsink", "1"], "No such option: --nsink (Possible options"),
        (["--text", "text.txt", "--dtype", "int8"], "'int8' is not one of 'float32', 'bfloat16'"),
        (["--text", "text.txt", "--kv-dtype", "int4"], "'int4' is not one of 'bfloat16', 'float16', 'int8'"),
        (["--text", "text.txt", "--per-token", "model"], "model is a folder; name a file to write"),
        (["--text", "text.txt", "--per-token", "never.json"], "two options name the file never.json"),
        (["--dataset-name", "c4"], "unknown --dataset-name 'c4'; known are wikitext, pg19"),
        (
            ["--text", "text.txt", "--tokens", "ids.npy"],
            "give only one of --dataset-name, --text and --tokens",
        ),
        (
            ["--text", "text.txt", "--dataset-config", "x"],
            "--dataset-config belongs to --dataset-name",
        ),
    ],
)
def test_wrong_command_line_is_refused_with_status_2(place, args, message):
    refuse(evaluate(place, *args), 2, message)
    assert not (place / "never.json").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--text", "text.txt", "--device", "meta"], "unknown device 'meta'; use auto, cpu"),
        (
            ["--text", "text.txt", "--baseline", "empty.json"],
            "empty.json is not a run record of",
        ),
        (["--tokens", "empty.npy"], "empty.npy is not a whole .npy file of numbers"),
        (["--text", "empty.txt"], "has no text"),
        (["--text", "missing.txt"], "no such file: missing.txt"),
        (["--tokens", "foreign.npy"], "token id 5000 is outside the vocabulary of 257"),
        (["--tokens", "floats.npy"], "must contain one row of int64 token ids"),
        (["--tokens", "missing.npy"], "no such file: missing.npy"),
        ([], "make it with `snakemake data/wikitext/sample.json`"),
        (["--dataset-name", "pg19"], "make it with `snakemake data/pg19/sample.json`"),
        (["--text", "text.txt", "--baseline", "none.json"], "there is no record none.json"),
        (
            ["--text", "text.txt", "--model-name", "data/models/smollm2-135m-instruct"],
            "make it with `snakemake data/models/smollm2-135m-instruct`",
        ),
    ],
)
def test_fault_at_work_ends_with_status_1(place, args, message):
    refuse(evaluate(place, *args), 1, message)
    assert not (place / "never.json").exists()


def evaluate(place, *args):
    return streamlm(place, "evaluate", "--model-name", "model", "--output", "never.json", *args)


def test_folder_named_as_output_keeps_its_files(place):
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


def test_baseline_without_losses_names_what_writes_them(place):
    common = ("evaluate", "--model-name", "model", "--tokens", "ids.npy")
    alone = streamlm(place, *common, "--output", "alone.json")
    assert alone.returncode == 0, alone.stderr
    message = "make both with --method dense --output alone.json --per-token alone.npy"
    refuse(streamlm(place, *common, "--baseline", "alone.json"), 1, message)
    np.save(place / "alone.npy", np.zeros(99, np.float32))
    message = "the baseline must be a dense record (--method dense), got 'streaming'"
    refuse(streamlm(place, *common, "--baseline", "alone.json"), 1, message)


def test_ablation_of_windows_is_a_table_a_record_and_a_figure(place):
    common = ("ablate", "--ablation-type", "window_size", "--model-name", "model", "--tokens", "ids.npy")
    asked = ("--window-size", 8, "--window-size", 16, "--n-sink", 2)
    done = streamlm(
        place, *common, *asked, "--output", "streaming_llm/ablation_window_size.json", "--output-dir", "runs",
        "--figure", "windows.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    headings, _, dense, *rows = (
        [cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines()
    )
    assert dense[1:3] == ["ids.npy", "dense"]
    sizes = [[row[headings.index(name)] for name in ("text", "sinks", "window", "capacity")] for row in rows]
    assert sizes == [["ids.npy", "2", "8", "10"], ["ids.npy", "2", "16", "18"]]
    record = json.loads((place / "streaming_llm/ablation_window_size.json").read_text())
    runs = [place / "runs" / f"sink2_window{size}.json" for size in (8, 16)]
    again = collect_ablation("window_size", [place / "runs/dense.json"], runs, BootstrapConfig())
    assert record == json.loads(json.dumps(again))
    assert (place / "windows.png").read_bytes().startswith(b"\x89PNG")
    drawn = streamlm(place, "figures", "--results-dir", ".", "--output-dir", "figures")
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout == "figures/ablation_window_size.png\n"
    assert (place / "figures/ablation_window_size.png").read_bytes() == (place / "windows.png").read_bytes()
    assert "main_comparison is left out: there is no streaming_llm/*_result.json" in drawn.stderr


def test_ablation_of_sinks_keeps_the_capacity(place):
    common = ("ablate", "--ablation-type", "n_sink", "--model-name", "model", "--tokens", "ids.npy")
    sizes = ("--n-sink", 0, "--n-sink", 4, "--capacity", 12, "--capacity", 20)
    done = streamlm(place, *common, *sizes, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [(row["n_sink"], row["window_size"]) for row in rows] == [(0, 12), (4, 8), (0, 20), (4, 16)]
    refuse(streamlm(place, "ablate"), 2, "Missing option '--ablation-type'. Choose from: window_size, n_sink")
    for args, status, message in (
        (("--window-size", 8), 2, "takes no --window-size"),
        (("--capacity", 4), 2, "a capacity of 4 leaves no window beside 16 sinks"),
        (("--capacity", 99), 1, "100 tokens never fill a cache of 99"),
        (("--ablation-type", "window_size", "--capacity", 9), 2, "takes one --n-sink and no --capacity"),
    ):
        refuse(streamlm(place, *common, *args), status, message)


def test_figures_of_a_folder_without_records_is_a_fault(place):
    done = streamlm(place, "figures", "--results-dir", "model", "--only", "main_comparison")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("streamlm: no figure could be drawn from model")
    refuse(streamlm(place, "figures", "--only", "no"), 2, "unknown figure 'no'; known are schemes, main")


def test_info_shows_layout_and_costs(place):
    done = streamlm(place, "info", "--model-name", "model", "--window-size", 12, "--context", 1000)
    assert done.returncode == 0, done.stderr
    assert "4 of queries, 2 of keys and values; size 8" in done.stdout
    assert "256 bytes a token" in done.stdout
    assert "|   4+12 |   0.0 |              55.6 times |" in done.stdout
    asked = ("--model-name", "model", "--window-size", 96, "--json")
    records = [json.loads(streamlm(place, "info", *asked, option, "int8").stdout) for option in KV_DTYPE]
    assert records[0] == records[1]
    record = records[0]
    assert record["layout"]["trained_length"] == 64
    (cache,) = record["cache"]["caches"]
    assert cache["kv_bytes"] == 2 * 2 * (96 * 2 * (8 + 4) + 4 * 3 * 8 * 4)


def test_bos_comes_first_where_it_is_asked_for(place):
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    write_tiny_model(place / "begins", tokenizer)
    args = ("evaluate", "--model-name", "begins", "--window-size", 20, "--max-eval-tokens", 40, "--json")
    without, with_bos = (
        streamlm_alone(place, *args, "--text", "text.txt"),
        streamlm_alone(place, *args, "--text", "text.txt", "--add-bos"),
    )
    assert "begins a text with BOS, which is left out here" in without.stderr
    assert "BOS" not in with_bos.stderr
    hashes = [json.loads(done.stdout)["tokens"]["sha256"] for done in (without, with_bos)]
    assert hashes[0] != hashes[1]
    refuse(streamlm(place, *args, "--tokens", "ids.npy", "--add-bos"), 2, "--tokens are taken as given")


@pytest.mark.parametrize("name", ["evaluate", "latency", "compare"])
def test_json_is_one_document(place, name):
    few = {"latency": ("--capacity", 16, "--method", "dense"), "compare": ("--press", "KnormPress")}
    window = () if name == "latency" else ("--window-size", 16)
    common = (name, "--model-name", "model", "--tokens", "ids.npy", *window, *few.get(name, ()), "--json")
    done = streamlm_alone(place, *common)  # kvpress must stay out of this process
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["records"][0] if name == "latency" else record)["dataset"] == "ids.npy"


def test_latency_in_json_gives_the_ratio_to_a_baseline(place):
    common = (
        "latency",
        "--model-name",
        "model",
        "--tokens",
        "ids.npy",
        "--capacity",
        16,
        "--method",
        "dense",
    )
    assert streamlm(place, *common, "--output-dir", "json").returncode == 0
    baseline = "json/decoding_latency_dense_16_sink0.json"
    record = json.loads(streamlm(place, *common, "--baseline", baseline, "--json").stdout)
    assert record["against_baseline"]["ratio"] > 0
    assert record["against_baseline"]["in_turns"] is False
