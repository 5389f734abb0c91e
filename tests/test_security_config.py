"""Configs, presses and numbers of strangers: what they cannot do, and that a line says so."""

import json
import os
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
import yaml
from changed_config import CONFIG, changed, report
from command import refuse, streamlm
from project import ROOT
from test_figures import ablate, measure, results  # noqa: F401
from test_long_stream import long_runs, streams  # noqa: F401
from test_press_figures import comparisons, measured  # noqa: F401

from streamlm.config import StreamConfig
from streamlm.experiment.check import check_config
from streamlm.experiment.config_file import check_file
from streamlm.experiment.expected import compare_expected
from streamlm.generate.sampling import Sampler, Sampling
from streamlm.limits import CONFIG_BYTES, RECORD_BYTES
from streamlm.presses.grammar import parse_press
from streamlm.stats import BootstrapConfig

CODE = '__use_yte__: true\n__definitions__:\n  - open({!r}, "w").close()\n'
PROFILES = ["profiles/default", "workflow/profiles/slurm"]


def dry_run(folder, *args):
    """Run `snakemake -n` on the project's rules in a folder of its own."""
    command = [sys.executable, "-m", "snakemake", "-n", "-s", ROOT / "Snakefile", "-d", folder, *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def refused(folder, text):
    """Return the line that refuses a config file."""
    file = folder / "config.yaml"
    file.write_text(text)
    with pytest.raises(ValueError) as caught:
        check_file(file)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(str(file))


@pytest.mark.parametrize("name", ["config.yaml", "overlay.yaml"])
@pytest.mark.parametrize("profile", PROFILES)
def test_code_in_a_config_is_refused_before_it_runs(tmp_path, name, profile):
    (tmp_path / name).write_text(CODE.format(str(tmp_path / "ran")) + "results_dir: results\n")
    overlay = [] if name == "config.yaml" else ["--configfile", tmp_path / name]
    status, output = dry_run(tmp_path, "--workflow-profile", ROOT / profile, "--executor", "local", *overlay)
    assert status == 1
    assert f"{name}: __use_yte__ runs the code in a config; write its values instead" in output
    assert "Traceback" not in output
    assert not (tmp_path / "ran").exists()


def test_config_file_of_the_directive_is_held_without_any_profile(tmp_path):
    (tmp_path / "config.yaml").write_text(CODE.format(str(tmp_path / "ran")))
    status, output = dry_run(tmp_path, "--workflow-profile", "none", "--cores", "1")
    assert status == 1 and "__use_yte__ runs the code" in output
    assert not (tmp_path / "ran").exists()


def test_profiles_refuse_code_by_the_same_lines():
    first, second = (yaml.safe_load((ROOT / name / "config.yaml").read_text()) for name in PROFILES)
    assert first["__definitions__"] == second["__definitions__"]


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
MERGED = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{i}: &a{i}\n  <<: [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<<: {__use_yte__: true}\n", ": __use_yte__ runs the code in a config; write its values"),
        ('{"__use_yte__": true}\n', ": __use_yte__ runs the code in a config; write its values"),
        ("pathvars: 5\n", ": pathvars changes the paths of the rules; leave it out"),
        (BOMB, ": cannot be read: it has more than 20,000 values, with what its aliases repeat"),
        (MERGED, ": cannot be read: it has more than 20,000 values, with what its aliases repeat"),
        ("a: &a [*a]\n", ": cannot be read: it has more than 20,000 values, with what its aliases repeat"),
        ("a: " + "[" * 30 + "]" * 30, ": cannot be read: it has more than 20,000 values, "),
        ("a: " + "[" * 9999 + "]" * 9999, ": cannot be read: maximum recursion depth"),
        ("a: " + "x" * CONFIG_BYTES, " is not a file of at most 262,144 bytes; write a shorter config"),
        ("a: " + "9" * 5000, " line 1, column 4: not valid YAML: a number has more than 40 digits"),
        ("a: 0x" + "f" * 5000, " line 1, column 4: not valid YAML: a number has more than 40 digits"),
        ("a: 1" + ":1" * 900 + ".5", " line 1, column 4: not valid YAML: a number has more than 40 digits"),
        ("a: !!python/object/apply:os.system [id]\n", " line 1, column 4: not valid YAML: a tag, such as"),
        ("a: !!timestamp never\n", " line 1, column 4: not valid YAML: a tag, such as"),
        ("? [a, b]\n: 1\n", " line 1, column 3: not valid YAML: found unhashable key"),
        ("a: =\n", " line 1, column 4: not valid YAML: could not determine a constructor"),
    ],
    ids=lambda value: value[:12],
)
def test_config_that_no_program_should_read_is_one_line(tmp_path, text, message):
    assert refused(tmp_path, text).startswith(message)


def test_config_that_is_a_folder_or_a_pipe_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match="is not a file of at most"):
            check_file(path)


def test_overlay_with_bombs_or_repeated_keys_is_refused_with_the_config(tmp_path):
    file = tmp_path / "overlay.json"
    file.write_text('{"compute":\n\t{"dtype": "float32",\n\t"dtype": "float64"}}')  # as Snakemake reads it
    assert report(CONFIG, [file]) == [
        f"compute.dtype: written twice in {file}, lines 2 and 3; keep one of them"
    ]
    file.write_text(BOMB)
    with pytest.raises(ValueError, match="it has more than 20,000 values"):
        check_config(CONFIG, [file])


def test_honest_aliases_and_numbers_of_a_config_are_read(tmp_path):
    file = tmp_path / "config.yaml"
    text = (ROOT / "config.yaml").read_text()
    file.write_text(text + "\nshared: &s {a: 1e-5, b: 9223372036854775807}\nmore: {<<: *s, c: -0.25}\n")
    check_file(file)


@pytest.mark.parametrize(
    ("edits", "key"),
    [
        ({"bootstrap/resamples": 10**9}, "bootstrap.resamples: 1000000000 is too large; use 100000 or less"),
        ({"experiment/window_size": 10**18}, "experiment.window_size: 1000000000000000000 is too large"),
        ({"decoding_latency/runs": 10**9}, "decoding_latency.runs: 1000000000 is too large; use 1000000"),
        ({"decoding_latency/timed_tokens": 10**9}, "decoding_latency.timed_tokens: 1000000000 is too large"),
        ({"decoding_latency/long_run/tokens": 10**9}, "decoding_latency.long_run.tokens: 1000000000 is too"),
        (
            {"decoding_latency/capacities": [*range(9, 999)]},
            "decoding_latency.capacities: [9, 10, 11, 12, 13",
        ),
        ({"comparison/presses": ["KnormPress"] * 101}, "comparison.presses: ['KnormPress', 'KnormPress', "),
        ({"comparison/presses": ["RandomPress(seed=" + "9" * 30 + ")"]}, "comparison.presses: 'RandomPress("),
        ({"results_dir": "results" + "/a" * 400}, "results_dir: 'results/a/a"),
        ({"results_dir": "../mine"}, "results_dir: '../mine' is not allowed; use results, or a folder in it"),
        ({"results_dir": "/tmp/mine"}, "results_dir: '/tmp/mine' is not allowed; use results, or a folder"),
        ({"results_dir": "~/mine"}, "results_dir: '~/mine' is not allowed; use results, or a folder in it"),
        ({"results_dir": "results/-x"}, "results_dir: 'results/-x' is not allowed; use results, or a folder"),
        ({"results_dir": "results/{x}"}, "results_dir: 'results/{x}' is not allowed; use results, or a"),
        ({"results_dir": "results/a\n"}, "results_dir: 'results/a\\n' is not allowed; use results, or a"),
        ({"corpora/pg19/source/pip_args": ["a\x1bb"]}, "corpora.pg19.source.pip_args.0: 'a\\x1bb' has the"),
        ({"corpora/pg19/source/members": ["a\u202eb"]}, "corpora.pg19.source.members.0: 'a\\u202eb' has the"),
    ],
)
def test_number_or_path_that_no_experiment_has_is_refused_before_any_job(edits, key):
    lines = report(changed(CONFIG, edits))
    assert any(line.startswith(key) for line in lines), lines


@pytest.mark.parametrize(
    "name", ["..", "../a", "/a", "~", "-a", "a b", "{x}", "a\n", "a" * 256, "a\u2028", "a/b", "a*", "", ".a"]
)
def test_name_that_is_no_plain_file_name_is_refused_as_model_and_as_corpus(name):
    for kind in ("models", "corpora"):
        config = deepcopy(CONFIG)
        config[kind][name] = next(iter(config[kind].values()))
        assert any("; use a name of letters, digits" in line for line in report(config))


RANGE = {"what": "w", "record": "r.json", "field": "a", "low": 0, "high": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expects nothing; write entries like"),
        ("[" * 99999, "does not say what is expected"),
        ('[{"what": 1, "what": 2}]', "names the key 'what' twice"),
        (json.dumps([RANGE | {"high": float("nan")}]), "the number NaN is not finite"),
        (json.dumps([RANGE | {"high": float("inf")}]), "the number Infinity is not finite"),
        (json.dumps([RANGE | {"low": 2}]), "2 to 1 is no range"),
        (json.dumps([RANGE | {"low": "0"}]), "'0' to 1 is no range"),
        (json.dumps([RANGE]).replace("0", "-1" + "0" * 400), "does not say what is expected"),
        (json.dumps([RANGE]).replace("0", "9" * 5000), "does not say what is expected"),
        (json.dumps([RANGE | {"record": "../r.json"}]), "../r.json leads out of"),
        (json.dumps([RANGE | {"record": "/etc/r.json"}]), "/etc/r.json leads out of"),
        (json.dumps([RANGE | {"what": "a\x1b[2J"}]), "has the character .*x1b"),
        (json.dumps([RANGE | {"field": 5}]), "has no name, but 5"),
        (" " * RECORD_BYTES + "[]", "at most 67,108,864 are read"),
        (json.dumps([RANGE | {"field": "b"}]), "r.json has no number b; measure again"),
        (json.dumps([RANGE | {"field": "text"}]), "r.json has no number text; measure again"),
    ],
    ids=range(16),
)
def test_expectation_that_says_no_range_is_refused_in_words(tmp_path, text, message):
    (tmp_path / "r.json").write_text(json.dumps({"a": 0.5, "text": "x"}))
    (tmp_path / "expected.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        list(compare_expected(tmp_path, tmp_path / "expected.json"))
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "RandomPress(seed=" + "9" * 30 + ")",
        "SnapKVPress(window_size=" + "9" * 30 + ")",
        "LeverageScorePress(sketch_dimension=1000001)",
        "CapPress(tau=1e-320)",
        "CapPress(tau=1e300)",
        "CapPress(tau=" + "9" * 70 + ")",
        "KnormPress # $x^$ <b>",
        "KnormPress\n",
        "\uff2bnormPress",
        "KnormPress(" + "(" * 2000 + "1" + ")" * 2000 + ")",
        "SnapKVPress(window_size=8, window_size=9)",
        "AdaKVPress(KnormPress, press=TOVAPress)",
    ],
)
def test_press_that_fails_after_measuring_or_shows_markup_is_refused_before(text):
    with pytest.raises(ValueError, match=r"cannot be|is not a press|more than 100 characters|twice"):
        parse_press(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 1e-320},
        {"temperature": 1e300},
        {"temperature": float("inf")},
        {"temperature": "hot"},
        {"top_p": 1e-320},
        {"top_k": 10**30},
        {"top_k": 1.5},
        {"repetition_penalty": 1e308},
        {"repetition_penalty": 1e-308},
        {"repetition_penalty": [1]},
        {"seed": 10**30},
        {"temperature": True},
    ],
)
def test_number_that_no_draw_can_use_is_refused(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))} must be from"):
        Sampling(**{"temperature": 1.0, "top_p": 1.0, "seed": 0} | changes)


@pytest.mark.parametrize("temperature", [0, 1e-4, 0.7, 1e4])
@pytest.mark.parametrize("penalty", [0.01, 1, 100])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_numbers_at_the_bounds_draw_a_token(temperature, penalty, dtype):
    sampling = Sampling(
        temperature=temperature, top_p=1e-6, seed=2**63 - 1, top_k=10**12, repetition_penalty=penalty
    )
    sampler = Sampler(sampling, StreamConfig(n_sink=1, window_size=10**12))
    sampler.read([1, 2])
    assert 0 <= sampler(torch.linspace(-20, 20, 50).to(dtype)) < 50


@pytest.mark.parametrize(
    "changes", [{"resamples": 10**9}, {"block": 0}, {"confidence": 5}, {"seed": -1}, {"resamples": "9"}]
)
def test_bootstrap_of_a_record_or_config_is_bounded(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))} of a bootstrap must be"):
        BootstrapConfig(**changes)


@pytest.mark.parametrize(
    "args",
    [
        ["generate", "--prompt", "a", "--max-new-tokens", "1" + "0" * 30],
        ["generate", "--prompt", "a", "--seed", "9" * 23],
        ["evaluate", "--window-size", "9" * 20],
        ["latency", "--capacity", "1000000000000000000"],
        ["ablate", "--ablation-type", "n_sink", "--n-sink", "9" * 20],
        ["verify", "results", "--seed", "9" * 23],
    ],
    ids=lambda args: " ".join(args)[:20],
)
def test_whole_number_of_the_command_line_is_bounded_before_any_work(tmp_path, args):
    refuse(streamlm(tmp_path, *args), 1, f"{args[-2]} must be at most ")
