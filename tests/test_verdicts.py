"""Results are confirmed where they are right, and refuted where a number or the model is another."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import MODELS, VOCAB, score_by_name, tiny_llama

from streamlm.cache.prepare import prepare
from streamlm.config import StreamConfig
from streamlm.experiment.verdicts import CONFIRMED, REFUTED, UNCHECKED, passed, verify_results
from streamlm.measure.scoring import score_stream, score_stretches
from streamlm.records.files import read_losses, read_record, write_array, write_json
from streamlm.stats import BootstrapConfig, after_token, describe_losses
from streamlm.summaries.main import collect_ablation, collect_result

ROOT = Path(__file__).parent.parent
BOOTSTRAP = BootstrapConfig(resamples=100)
METHODS = {
    "dense": "dense",
    "window": "sink0_window32",
    "recompute": "recompute",
    "streaming": "sink4_window28",
}
IDS = np.random.default_rng(0).integers(VOCAB, size=2000)
STREAMING = "runs/notes/sink4_window28.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model, another one, tokens, and results of the first over these."""
    place = tmp_path_factory.mktemp("verify")
    tiny_llama().save_pretrained(place / "model")
    tiny_llama(rope_parameters={"rope_type": "default", "rope_theta": 99.0}).save_pretrained(place / "other")
    write_array(place / "tokens" / "tiny" / "notes.npy", IDS)
    runs = place / "results" / "runs" / "notes"
    for method, label in METHODS.items():
        record, losses = score_by_name(
            model_dir=place / "model", ids=IDS[:1000], dataset="Notes", method=method, n_sink=4,
            window_size=28, positions=5, device="cpu", bootstrap=BOOTSTRAP,
        )  # fmt: skip
        write_array(runs / f"{label}.npy", losses)
        write_json(runs / f"{label}.json", record)
    paths = {method: runs / f"{label}.json" for method, label in METHODS.items()}
    shown = place / "results" / "streaming_llm"
    write_json(shown / "notes_baseline.json", read_record(paths["dense"]))
    write_json(shown / "notes_result.json", collect_result(paths, BOOTSTRAP))
    ablation = collect_ablation("n_sink", [paths["dense"]], [paths["window"], paths["streaming"]], BOOTSTRAP)
    write_json(shown / "ablation_n_sink.json", ablation)
    return place


@pytest.fixture
def results(made, tmp_path):
    return shutil.copytree(made / "results", tmp_path / "results")


def verdicts(made, results, model="model", tokens="tokens", max_tokens=10_000):
    found = verify_results(
        results, model_dir=made / model, tokens_dir=made / tokens, max_tokens=max_tokens, device="cpu"
    )
    return {verdict.name: verdict for verdict in found}


def test_experiment_within_the_results_is_verified_by_itself(made, results):
    shutil.copytree(results, results / "another")
    names = verdicts(made, results)
    assert STREAMING in names
    assert not any(name.startswith("another") for name in names)


def with_losses(path, change):
    """Change the losses of a run, and all that its record says of them."""
    record, losses = read_record(path), read_losses(path)
    change(losses)
    record["streaming"] |= describe_losses(losses, BOOTSTRAP)
    record["streaming"]["after_eviction"] = after_token(losses, record["capacity"], BOOTSTRAP)
    write_array(path.with_suffix(".npy"), losses)
    write_json(path, record)


def test_fresh_results_are_confirmed(made, results):
    found = verdicts(made, results)
    assert len(found) == 7
    assert {verdict.outcome for verdict in found.values()} == {CONFIRMED}
    assert passed(list(found.values()))
    assert (
        "999 of 999 losses scored again, 5 of 5 windows recomputed" in found["runs/notes/recompute.json"].why
    )


def test_changed_loss_is_refuted_though_its_perplexity_follows(made, results):
    def change(losses):
        losses[[99, 400]] += 0.01

    with_losses(results / STREAMING, change)
    found = verdicts(made, results)
    losses = read_losses(made / "results" / STREAMING)
    verdict = found[STREAMING]
    assert verdict.outcome == REFUTED
    assert (
        f"the loss of token 100 is {losses[99] + 0.01:.6f} nats in the record and {losses[99]:.6f}"
        in verdict.why
    )
    assert re.search(r"\(2 of 999 differ by more than .\.\de-04, which rounding explains\)", verdict.why)
    assert found["streaming_llm/notes_result.json"].outcome == REFUTED  # it was made of the true ones
    assert not passed(list(found.values()))


def test_changed_window_of_recompute_is_refuted(made, results):
    path = results / "runs/notes/recompute.json"
    record = read_record(path)
    record["recomputed"]["losses_nats"][2] -= 1
    write_json(path, record)
    assert verdicts(made, results)["runs/notes/recompute.json"].outcome == REFUTED


def test_losses_of_a_coarse_type_may_differ_singly_but_not_in_the_mean(made, results):
    record, losses = score_by_name(
        model_dir=made / "model", ids=IDS[:1000], dataset="Notes", method="streaming", n_sink=4,
        window_size=28, dtype="bfloat16", device="cpu", bootstrap=BOOTSTRAP,
    )  # fmt: skip
    path = results / "runs/notes/coarse.json"
    outcomes = []
    for change in (0, 0.1 * (-1) ** np.arange(999), np.full(999, 0.1)):
        write_array(path.with_suffix(".npy"), losses)
        write_json(path, record)
        with_losses(path, lambda found, change=change: found.__iadd__(np.float32(change)))
        outcomes.append(verdicts(made, results)["runs/notes/coarse.json"])
    assert [verdict.outcome for verdict in outcomes] == [CONFIRMED, CONFIRMED, REFUTED]
    assert outcomes[2].why.startswith("the mean of 999 losses is")


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        (STREAMING, ("streaming", "perplexity")),
        (STREAMING, ("streaming", "after_eviction", "perplexity")),
        ("streaming_llm/notes_result.json", ("metrics", "speedup")),
        ("streaming_llm/notes_baseline.json", ("streaming", "perplexity")),
        ("streaming_llm/ablation_n_sink.json", ("rows", 1, "common", "ppl_increase_percent")),
    ],
)
def test_changed_number_is_refuted_by_name_with_both_values(made, results, name, keys):
    record = part = read_record(results / name)
    for key in keys[:-1]:
        part = part[key]
    true, part[keys[-1]] = part[keys[-1]], 0.5
    write_json(results / name, record)
    verdict = verdicts(made, results)[name]
    assert verdict.outcome == REFUTED
    assert f"{keys[-1]} is 0.5, and {true}"[:30] in verdict.why
    assert "\n" not in str(verdict)


def test_record_of_another_model_is_refuted(made, results):
    found = verdicts(made, results, model="other")
    assert found[STREAMING].outcome == REFUTED
    assert "it was made with another model" in found[STREAMING].why


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.with_suffix(".npy").unlink(), "cannot read the losses"),
        (lambda path: path.write_text("{"), "is not JSON"),
        (
            lambda path: path.write_text('{"streaming": {}}'),
            "is not a run record of this version",
        ),
    ],
    ids=["no losses", "broken", "old"],
)
def test_what_cannot_be_checked_says_why(made, results, spoil, why):
    spoil(results / STREAMING)
    verdict = verdicts(made, results)[STREAMING]
    assert verdict.outcome == UNCHECKED
    assert why in verdict.why


def test_results_without_their_tokens_are_not_passed(made, results):
    found = verdicts(made, results, tokens="model")
    assert found[STREAMING].outcome == UNCHECKED
    assert "make them with `snakemake data/tokens" in found[STREAMING].why
    assert found["streaming_llm/notes_result.json"].outcome == CONFIRMED
    assert not passed(list(found.values()))


@pytest.mark.parametrize("family", sorted(MODELS))
@pytest.mark.parametrize("kv_dtype", [None, "int8"])
@pytest.mark.parametrize("window_size", [28, 1500])
def test_stretches_are_scored_as_in_the_whole_stream_bit_for_bit(family, kv_dtype, window_size):
    """Past the position limit, where the ring is moved back."""
    ids = np.random.default_rng(0).integers(VOCAB, size=20_000)
    cfg, stretches = StreamConfig(n_sink=4, window_size=window_size), [(0, 9), (9000, 9009), (19_990, 19_999)]
    with prepare(MODELS[family](initializer_range=1.0)) as model:
        whole, cache = score_stream(model, ids, cfg, kv_dtype=kv_dtype)
        queries, losses, last = score_stretches(model, ids, cfg, stretches, kv_dtype=kv_dtype)
    assert len(queries) < 6000
    assert {0, 9000, 9008, 19_998} <= {*queries.tolist()}
    np.testing.assert_array_equal(losses, whole[queries])
    assert (last.mean_held, last.nbytes) == (cache.mean_held, cache.nbytes)


def test_command_prints_a_line_a_record_and_fails_where_one_is_refuted(made, results):
    command = [sys.executable, "-c", "from streamlm.cli import main; main()", "verify", str(results)]
    options = [
        "--model-name",
        str(made / "model"),
        "--tokens-dir",
        str(made / "tokens"),
        "--max-tokens",
        "50",
    ]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 7
    with_losses(results / STREAMING, lambda losses: losses.__imul__(1.1))
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{STREAMING}: refuted: the loss of token 1 is" in done.stdout
    assert len(done.stderr.splitlines()) == 1


def test_folder_without_runs_is_named(made, tmp_path):
    with pytest.raises(ValueError, match="name the results_dir of an experiment"):
        list(verify_results(tmp_path, model_dir=made / "model", tokens_dir=tmp_path, max_tokens=9))
