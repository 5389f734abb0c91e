"""Records and losses that somebody changed: `verify` says so, in one line."""

import re
import shutil
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
from conftest import VOCAB, score_by_name, tiny_llama
from project import ROOT
from test_verdicts import with_losses

from streamlm import load_model
from streamlm.config import StreamConfig
from streamlm.experiment.expected import compare_expected
from streamlm.experiment.follow import Refuted, follow_scores
from streamlm.experiment.recollect import follow_summary
from streamlm.experiment.rescore import SampleSize
from streamlm.experiment.verdicts import (
    CONFIRMED,
    CONSISTENT,
    REFUTED,
    SAMPLED,
    UNCHECKED,
    Verifier,
    passed,
    verify_results,
    verify_run,
)
from streamlm.measure.scoring import score_stream
from streamlm.records.files import hash_ids, read_losses, read_record, write_array, write_json
from streamlm.stats import BootstrapConfig, block_bootstrap, describe_losses
from streamlm.summaries.long_stream import collect_long_stream
from streamlm.summaries.main import collect_ablation, collect_result

BOOTSTRAP = BootstrapConfig(resamples=100)
IDS = np.random.default_rng(0).integers(VOCAB, size=9000)
RUNS = {  # method, tokens, quantised to
    "dense": ("dense", 1000, None),
    "recompute": ("recompute", 1000, None),
    "sink0_window32": ("window", 1000, None),
    "sink4_window28": ("streaming", 1000, None),
    "narrow": ("streaming", 1000, "float16"),
    "long_dense": ("dense", 1500, None),
    "long_sink4_window28": ("streaming", 9000, None),
}
STREAMING, LONG = "sink4_window28", "long_sink4_window28"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model, tokens, and honest runs."""
    place = tmp_path_factory.mktemp("records")
    tiny_llama().save_pretrained(place / "model")
    write_array(place / "tokens" / "notes.npy", IDS)
    write_array(place / "tokens" / "other.npy", IDS[::-1])
    for label, (method, n_tokens, kv_dtype) in RUNS.items():
        record, losses = score_by_name(
            model_dir=place / "model", ids=IDS[:n_tokens], dataset="Notes", method=method, n_sink=4,
            window_size=28, positions=5, kv_dtype=kv_dtype, bootstrap=BOOTSTRAP,
        )  # fmt: skip
        write_array(place / "results" / "runs" / "notes" / f"{label}.npy", losses)
        write_json(place / "results" / "runs" / "notes" / f"{label}.json", record)
    return place


@pytest.fixture
def runs(made, tmp_path):
    return shutil.copytree(made / "results", tmp_path / "results") / "runs" / "notes"


def verdict(made, path, max_tokens=2560, seed=0, **options):
    size = SampleSize(max_tokens, seed)
    verifier = Verifier(path.parents[2], made / "model", made / "tokens", size, device="cpu", **options)
    return verify_run(verifier, path)


def test_setting_that_is_not_known_cannot_be_checked(made, runs):
    path = runs / f"{STREAMING}.json"
    write_json(path, (record := read_record(path)) | {"bootstrap": record["bootstrap"] | {"x": 1}})
    found = verdict(made, path)
    assert (found.outcome, found.why) == (
        UNCHECKED,
        "bootstrap.x is missing, or no setting of this version of streamlm",
    )


def leaves(value, keys=()):
    """Yield the keys of every value in a record that holds no others."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [each for key, part in items for each in leaves(part, (*keys, key))]
    return found or [keys]


def changed(value):
    """Return another value of the same type."""
    if value is None:
        return 1.5
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return [*value, 0]
    return value + 1 if isinstance(value, int) else value * 1.01 + 1e-3


def doctor(path, keys, change=changed):
    """Change one value of a record."""
    record = part = read_record(path)
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = change(part[keys[-1]])
    write_json(path, record)


@pytest.mark.parametrize("label", ["recompute", STREAMING, "narrow", LONG])
def test_every_changed_field_of_a_run_is_said(made, runs, label):
    """But for the speed of `recompute`, which is timed at a sample: no time follows from it."""
    path, unsaid = runs / f"{label}.json", []
    honest = path.read_bytes()
    for keys in leaves(read_record(path)):
        if keys[-2:-1] == ("code",) and keys[-1]:
            continue  # one of many modules is enough
        doctor(path, keys)
        found = verdict(made, path)
        assert "\n" not in str(found)
        if found.outcome not in (REFUTED, UNCHECKED):
            unsaid.append(".".join(map(str, keys)))
        path.write_bytes(honest)
    assert unsaid == (["streaming.tokens_per_sec"] if label == "recompute" else [])


@pytest.mark.parametrize("label", RUNS)
def test_honest_run_is_confirmed_or_sampled_and_says_that_its_time_was_not_measured(made, runs, label):
    found = verdict(made, runs / f"{label}.json")
    assert found.outcome == (SAMPLED if label == LONG else CONFIRMED), found
    assert "is not measured again" in found.why
    assert ("sampled with --seed 0" in found.why) == (label == LONG)


def test_time_changed_with_its_speed_is_the_one_thing_that_passes(made, runs):
    path = runs / f"{STREAMING}.json"
    doctor(path, ("streaming", "runtime_sec"), lambda seconds: seconds / 2)
    assert verdict(made, path).outcome == REFUTED
    doctor(path, ("streaming", "tokens_per_sec"), lambda speed: speed * 2)
    assert verdict(made, path).outcome == CONFIRMED


@pytest.mark.parametrize("query", [0, 999, 8200, 8998])
def test_changed_loss_at_beginning_or_end_is_always_met(made, runs, query):
    with_losses(runs / f"{LONG}.json", lambda losses: losses.__setitem__(query, losses[query] + 0.01))
    for seed in range(3):
        found = verdict(made, runs / f"{LONG}.json", seed=seed)
        assert f"the loss of token {query + 1} is" in found.why


def test_changed_loss_between_is_met_by_some_seeds_and_by_all_tokens(made, runs):
    with_losses(runs / f"{LONG}.json", lambda losses: losses.__setitem__(4500, losses[4500] + 0.01))
    found = [verdict(made, runs / f"{LONG}.json", max_tokens=1500, seed=seed).outcome for seed in range(12)]
    assert {*found} == {SAMPLED, REFUTED}
    assert verdict(made, runs / f"{LONG}.json", max_tokens=9000).outcome == REFUTED


def test_every_loss_of_dense_is_scored_again_whatever_the_sample(made, runs):
    with_losses(runs / "long_dense.json", lambda losses: losses.__setitem__(1234, losses[1234] + 0.01))
    assert "token 1235 " in verdict(made, runs / "long_dense.json", max_tokens=9).why


@pytest.mark.parametrize(
    "change",
    [
        lambda losses: np.random.default_rng(0).permutation(losses),
        lambda losses: losses[::-1],
        lambda losses: losses[:-1],
        lambda losses: np.append(losses, 1).astype(np.float32),
        lambda losses: losses[:, None],
        lambda losses: np.zeros_like(losses),
        lambda losses: np.where(np.arange(len(losses)) == 500, np.nan, losses),
        lambda losses: losses.astype(np.complex64),
        lambda losses: losses.astype(np.float16),
        lambda losses: losses[:0],
    ],
    ids=["permuted", "reversed", "shorter", "longer", "2-D", "zero", "NaN", "complex", "float16", "empty"],
)
@pytest.mark.parametrize("label", [STREAMING, "recompute"])
def test_other_losses_beside_a_record_are_refused(made, runs, label, change):
    path = runs / f"{label}.json"
    write_array(path.with_suffix(".npy"), change(read_losses(path)))
    assert verdict(made, path).outcome in (REFUTED, UNCHECKED)


@pytest.mark.parametrize("endings", [["json"], ["npy"], ["json", "npy"]])
@pytest.mark.parametrize("other", ["sink0_window32", "dense", "recompute"])
def test_exchanged_files_of_two_runs_are_refuted(made, runs, endings, other):
    if endings == ["npy"] and other == "recompute":
        pytest.skip("they are the same losses: recompute is paired with streaming")
    for ending in endings:
        one, two = runs / f"{STREAMING}.{ending}", runs / f"{other}.{ending}"
        content = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(content)
    for label in (STREAMING, other):
        assert verdict(made, runs / f"{label}.json").outcome in (REFUTED, UNCHECKED)


def test_runs_of_another_text_under_this_name_are_refuted(made, runs):
    shutil.move(runs, runs.parent / "other")
    found = verdict(made, runs.parent / "other" / f"{STREAMING}.json")
    assert found.outcome == REFUTED
    assert "notes.npy, not of other" in found.why


@pytest.mark.parametrize("storage", ["int8", "bfloat16", "float32"])
def test_other_storage_label_is_refuted_though_the_bytes_follow(made, runs, storage):
    """float16 and bfloat16 take the same bytes."""
    path = runs / "narrow.json"
    doctor(path, ("storage",), lambda _: storage)
    while (found := verdict(made, path)).why.startswith("streaming.kv_bytes"):
        value = int(found.why.split(", and ")[1].split()[0])
        doctor(path, ("streaming", "kv_bytes"), lambda _, value=value: value)
    assert found.outcome == REFUTED
    assert "round" in found.why


def test_method_that_is_not_known_cannot_be_checked_and_is_no_success(made, runs):
    doctor(runs / f"{STREAMING}.json", ("method",), lambda _: "psychic")
    found = verdict(made, runs / f"{STREAMING}.json")
    assert found.outcome == UNCHECKED
    assert "unknown method 'psychic'; known are dense" in str(found)
    others = [verdict(made, runs / "sink0_window32.json")]
    assert passed(others)
    assert not passed([*others, found])


def test_name_of_the_model_is_held_against_its_folder_or_the_option(made, runs):
    path = runs / f"{STREAMING}.json"
    for each in runs.glob("*.json"):
        doctor(each, ("model",), lambda _: "Llama-3.1-405B")
    assert "taken on trust: the folder has none, --title gives it" in verdict(made, path).why
    assert verdict(made, path, title="Llama-3.1-405B").outcome == CONFIRMED
    assert verdict(made, path, title="tiny").outcome == REFUTED


def test_honest_run_of_a_rough_model_is_confirmed_where_other_machines_round_otherwise(tmp_path):
    """Weights scaled until losses are hundreds of nats; in other blocks, as another machine might score."""
    rough = tiny_llama(initializer_range=2.5)
    rough.lm_head.weight.data *= 10
    rough.save_pretrained(tmp_path / "model")
    write_array(tmp_path / "tokens" / "notes.npy", IDS)
    record, losses = score_by_name(
        model_dir=tmp_path / "model", ids=IDS, dataset="Notes", method="streaming", n_sink=4,
        window_size=28, bootstrap=BOOTSTRAP,
    )  # fmt: skip
    path = tmp_path / "results" / "runs" / "notes" / f"{STREAMING}.json"
    write_json(path, record)
    write_array(path.with_suffix(".npy"), losses)
    assert losses.mean() > 100
    assert "at most 0.0e+00 nats apart" in verdict(tmp_path, path).why
    model, cfg = load_model(tmp_path / "model"), StreamConfig(n_sink=4, window_size=28)
    elsewhere, _ = score_stream(model, IDS, cfg, chunk=96, query_block=7)
    assert np.abs(elsewhere - losses).max() > 1e-3
    with_losses(path, lambda found: found.__setitem__(slice(None), elsewhere))
    found = verdict(tmp_path, path)
    assert found.outcome == SAMPLED, found
    assert "rounding of this model explains" in found.why


OTHERS = [None, True, -1, 0, 10**18, -0.5, 1e300, "", "../../../etc/passwd", [], [[]], {}, {"a": None}]


def test_fields_of_any_type_and_missing_ones_give_one_line(made, runs):
    """A run, its losses untouched, with every field in turn of another type, or left out."""
    path = runs / "recompute.json"
    honest = read_record(path)
    spoilt = [keys for keys in inner(honest) if keys[:2] != ("environment", "code") or len(keys) == 2]
    for i, keys in enumerate(spoilt):
        for value in (OTHERS[i % len(OTHERS)], OTHERS[(i + 5) % len(OTHERS)], "gone"):
            record = read_record(path)
            part = record
            for key in keys[:-1]:
                part = part[key]
            if part[keys[-1]] == value:
                continue
            part[keys[-1]] = value
            if value == "gone":
                del part[keys[-1]]
            write_json(path, record)
            found = verdict(made, path)
            assert found.outcome in (REFUTED, UNCHECKED) or keys[-1] == "tokens_per_sec", (keys, value)
            assert "\n" not in str(found)
            write_json(path, honest)


def inner(value, keys=()):
    """Yield the keys of every value in a record, those that hold others too."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield (*keys, key)
        yield from inner(part, (*keys, key))


@pytest.fixture(scope="module")
def collected(made, tmp_path_factory):
    """The same results with summaries of them."""
    results = shutil.copytree(made / "results", tmp_path_factory.mktemp("collected") / "results")
    runs, shown = results / "runs" / "notes", results / "streaming_llm"
    path = {method: runs / f"{label}.json" for label, (method, n, kv) in RUNS.items() if n == 1000 and not kv}
    write_json(shown / "notes_baseline.json", read_record(path["dense"]))
    write_json(shown / "notes_result.json", collect_result(path, BOOTSTRAP))
    rows = [path["window"], path["streaming"]]
    write_json(shown / "ablation_n_sink.json", collect_ablation("n_sink", [path["dense"]], rows, BOOTSTRAP))
    long = [runs / "long_dense.json", runs / f"{LONG}.json"]
    write_json(shown / "notes_long_stream.json", collect_long_stream(long, BOOTSTRAP))
    return results


@pytest.mark.parametrize("name", ["notes_baseline", "notes_result", "ablation_n_sink", "notes_long_stream"])
def test_every_changed_field_of_a_summary_is_said(collected, name):
    path = collected / "streaming_llm" / f"{name}.json"
    follow_summary(collected, path)
    honest, unsaid = path.read_bytes(), []
    record = read_record(path)
    fields = [keys for keys in inner(record) if "code" not in keys and keys[-1] not in range(2, 99)]
    for i, keys in enumerate(fields):
        doctor_any(path, keys, changed if i % 3 else lambda _, i=i: OTHERS[i % len(OTHERS)])
        try:
            follow_summary(collected, path)
            unsaid += [keys] if read_record(path) != record else []
        except (Refuted, ValueError) as error:
            assert "\n" not in str(error)
        path.write_bytes(honest)
    assert unsaid == []


def doctor_any(path, keys, change):
    """Change one value of a record, whatever its type."""
    doctor(path, keys, lambda value: 7 if isinstance(value, dict) and change is changed else change(value))


@pytest.mark.parametrize("name", ["../../../outside", "/etc/hostname"])
def test_summary_never_leads_to_files_outside(collected, tmp_path, name):
    results = shutil.copytree(collected, tmp_path / "results")
    path = results / "streaming_llm" / "notes_result.json"
    record = read_record(path)
    record["methods"][name] = record["methods"]["streaming"]
    write_json(path, record)
    with pytest.raises(ValueError, match="its methods are not those of this version"):
        follow_summary(results, path)


@pytest.mark.parametrize("ending", ["json", "npy"])
def test_link_that_leads_out_of_the_results_is_not_followed(made, runs, tmp_path, ending):
    file = runs / f"{STREAMING}.{ending}"
    file.rename(tmp_path / file.name)
    file.symlink_to(tmp_path / file.name)
    found = verdict(made, runs / f"{STREAMING}.json")
    assert found.outcome == UNCHECKED
    assert "leads out of" in found.why


def command(made, results, *options):
    line = (
        "verify", results, "--model-name", made / "model", "--tokens-dir", made / "tokens", "--device", "cpu",
        *options,
    )  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", "from streamlm.cli import main; main()", *map(str, line)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip


def test_command_succeeds_only_where_every_record_was_checked(made, collected, tmp_path):
    results = shutil.copytree(collected, tmp_path / "results")
    done = command(made, results)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert re.search(r"long_sink4_window28.json: sampled: .* --seed \d+$", done.stdout, re.M)
    write_json(results / "kvpress" / "runs" / "press.json", {})
    name = "evil\x1b[31m\nruns.json"
    (results / name).write_text("{")
    done = command(made, results)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == len(RUNS) + 6
    assert "\x1b" not in done.stdout + done.stderr
    assert "0 were refuted and 2 cannot be checked" in done.stderr
    (results / name).unlink()
    assert command(made, results, "--no-kvpress").returncode == 0


def test_results_of_which_nothing_could_be_checked_are_no_success(made, runs, tmp_path):
    (tmp_path / "tokens").mkdir()
    done = command(made, runs.parents[1], "--tokens-dir", tmp_path / "tokens")
    assert done.returncode == 1
    assert f"0 were refuted and {len(RUNS)} cannot be checked" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_expected_file_names_no_record_outside_and_no_field_that_is_no_number(collected, tmp_path):
    record = "runs/notes/dense.json"
    entry = {"what": "loss", "record": record, "field": "streaming.nll_nats", "low": 0, "high": 9}
    file = tmp_path / "expected.json"
    write_json(file, [entry])
    assert [each.holds for each in compare_expected(collected, file)] == [True]
    write_json(collected.parent / "outside.json", {"streaming": {"nll_nats": 1.0}})
    for change, message in (
        ({"record": "../outside.json"}, "leads out of"),
        ({"record": str(collected.parent / "outside.json")}, "leads out of"),
        ({"field": "streaming"}, "has no number streaming"),
        ({"field": "streaming.nll_nats.real"}, "has no number"),
        ({"field": "dataset"}, "has no number dataset"),
        ({"low": "much"}, "does not say what is expected"),
    ):
        write_json(file, [entry | change])
        with pytest.raises(ValueError, match=message):
            list(compare_expected(collected, file))
    for content in ([], {}, [1], "text", [[]], 5):
        write_json(file, content)
        with pytest.raises(ValueError, match=r"does not say what is expected|expects nothing"):
            list(compare_expected(collected, file))


def latency_record(made):
    """Return a record of decoding times, as they are written."""
    run = read_record(made / "results" / "runs" / "notes" / f"{STREAMING}.json")
    kept = ("model", "trained_length", "dataset", "environment", "n_sink", "window_size", "capacity")
    return {key: run[key] for key in kept} | {
        "method": "streaming",
        "tokens": {"count": 32, "sha256": hash_ids(IDS[:32])},
        "measured_at": "2026-01-01T00:00:00.000+00:00",
        "protocol": "greedy",
        "decoded": {"runs": 3},
        "step_ms": {"median": 2.0, "p95": 4.0, "runs": [1.5, 2.0, 2.5], "spread": [1.5, 2.5]},
        "cache_ms": 0.5,
        "kv_bytes": 1,
        "step_peak_bytes": None,
    }


@pytest.mark.parametrize(
    ("keys", "value", "outcome"),
    [
        ((), None, CONSISTENT),
        (("step_ms", "spread"), [1.0, 2.5], REFUTED),
        (("step_ms", "median"), 0.1, REFUTED),
        (("step_ms", "p95"), 1.0, REFUTED),
        (("step_ms", "runs"), [], REFUTED),
        (("capacity",), 64, REFUTED),
        (("trained_length",), 10**6, REFUTED),
        (("tokens", "sha256"), "0" * 64, UNCHECKED),
        (("step_ms",), 5, UNCHECKED),
    ],
)
def test_times_are_consistent_at_best(made, tmp_path, keys, value, outcome):
    path = tmp_path / "decoding_latency_streaming_32_sink4.json"
    (tmp_path / "runs" / "notes").mkdir(parents=True)
    (tmp_path / "runs" / "notes" / "dense.json").write_text("{")
    write_json(path, latency_record(made))
    if keys:
        doctor(path, keys, lambda _: value)
    options = {"model_dir": made / "model", "tokens_dir": made / "tokens", "max_tokens": 9}
    found = list(verify_results(tmp_path, **options))
    assert [verdict.outcome for verdict in found] == [UNCHECKED, outcome], found[-1]


def test_scores_under_kvpress_are_followed_but_not_taken_as_checked(tmp_path):
    scores = np.random.default_rng(0).random((2, 1, 2, 160), np.float32)
    entries = []
    for losses, divergences in np.moveaxis(scores[:, 0], 1, 0):
        found = block_bootstrap(divergences, BOOTSTRAP)
        divergence = {"kl_nats": found.mean, "kl_nats_interval": [found.low, found.high]}
        costs = dict.fromkeys(("top1_agreement", "prefill_sec", "step_ms"), 0.5)
        costs |= dict.fromkeys(("kv_bytes", "kv_bytes_at_end", "capacity"), 1)
        entries.append(describe_losses(losses, BOOTSTRAP) | divergence | costs)
    tokens = {"count": 160, "sha256": ""}
    text = {"dataset": "Notes", "tokens": tokens, "dense": entries[0], "budgets": entries[1:]}
    record = {"model": "tiny", "bootstrap": asdict(BOOTSTRAP), "confidence": 0.95, "method": "KnormPress"}
    record |= {"n_sink": 4, "protocol": "", "contexts": {}, "refused": None, "texts": [text]}
    record["environment"] = dict.fromkeys(("python", "system", "processor", "device", "dtype"), "")
    record["environment"] |= {"code": [], "packages": {}, "cores": 1, "torch_threads": 1}
    path = tmp_path / "press.json"
    write_json(path, record)
    write_array(path.with_suffix(".npy"), scores)
    follow_scores(path)
    doctor(path, ("texts", 0, "budgets", 0, "perplexity"))
    with pytest.raises(Refuted, match=r"entry 1\.perplexity is"):
        follow_scores(path)
    for spoilt in (scores[0], scores[:, :, :1], scores[:1]):
        write_array(path.with_suffix(".npy"), spoilt)
        with pytest.raises(Refuted, match="it has scores of shape"):
            follow_scores(path)
