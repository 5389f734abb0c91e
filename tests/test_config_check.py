"""Wrong configs as a user meets them: one report from `snakemake`, before any job and without a traceback."""

import resource
import subprocess
import sys

import pytest
from project import copy_project, environment


@pytest.fixture
def project(tmp_path):
    """A copy of the project that has not run."""
    copy_project(tmp_path)
    (tmp_path / "data/smoke/model").mkdir(parents=True)
    (tmp_path / "data/smoke/model/config.json").write_text('{"max_position_embeddings": 33}')
    return tmp_path


def dry_run(project, *args):
    """Return the exit status and the output of a dry run, which must take less than 5 seconds of a core."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", *args],
        cwd=project, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("edit", "overlay", "lines"),
    [
        (
            ("n_sink: 4\n  window_size", "n_sink: four\n  window_size"),
            "experiment: {window_sizee: 3}\nbootstrap:\ncompute: {dtype: float8}\n"
            "long_stream: {capacities: [4]}\n",
            [
                "  experiment.n_sink: 'four' is of the wrong type; use an integer of 1 or more, in digits",
                "  experiment.window_sizee: 3 is under an unknown key; did you mean window_size?",
                "  bootstrap: null is of the wrong type; use a section with block, resamples,",
                "  compute.dtype: 'float8' is not known; did you mean float64? use one of float32, ",
                "  long_stream: capacity 4 leaves no window beside 4 sinks; raise it or take fewer sinks",
            ],
        ),
        (("seed: 0", "seed: 0\n  seed: 1"), None, ["  bootstrap.seed: written twice in config.yaml, lines"]),
        (("bootstrap: #", "bootstrap: { #"), None, ["config.yaml line ", "not valid YAML: "]),
        (None, "a: [1\n", ["Config file is not valid JSON or YAML."]),
        (None, "- experiment\n", ["Config file must be given as JSON or YAML with keys at top level."]),
        (None, "", ["Config file must be given as JSON or YAML with keys at top level."]),
    ],
    ids=["faults of both files", "twice", "no YAML", "overlay no YAML", "overlay a list", "overlay empty"],
)
def test_wrong_config_is_one_report_to_the_user_before_any_job(project, edit, overlay, lines):
    if edit is not None:
        text = (project / "config.yaml").read_text()
        assert edit[0] in text
        (project / "config.yaml").write_text(text.replace(*edit, 1))
    if overlay is not None:
        (project / "mine.yaml").write_text(overlay)
    status, output = dry_run(project, *([] if overlay is None else ["--configfile", "mine.yaml"]))
    assert status == 1
    for line in lines:
        assert output.count(line) == 1, (line, output)
    assert output.count("WorkflowError") == 1
    assert "Traceback" not in output
    assert "rule " not in output


def test_section_on_the_command_line_has_a_remedy_that_can_be_followed(project):
    status, output = dry_run(project, "--config", "experiment={n_sink: 2}")
    assert status == 1
    assert "experiment after --config as text; write them into a YAML file, and name it with" in output
    (project / "mine.yaml").write_text("experiment: {n_sink: 2}")
    assert dry_run(project, "--configfile", "mine.yaml")[0] == 0
    assert dry_run(project, "--config", "results_dir=results/mine")[0] == 0


def test_overlay_that_does_not_exist_is_named_before_any_job(project):
    # Snakemake itself opens it, before it reads a line of this project: the traceback above is its own.
    status, output = dry_run(project, "--configfile", "missing.yaml")
    assert status == 1
    assert "FileNotFoundError: [Errno 2] No such file or directory: 'missing.yaml'\n" in output
    assert "rule " not in output


def test_user_is_warned_of_windows_beyond_the_model_and_goes_on(project):
    status, output = dry_run(project, "--configfile", "configs/smoke.yaml")
    assert status == 0
    assert (
        output.count("decoding_latency: a cache of 64 tokens is beyond the 33 that tiny is trained to; it")
        == 1
    )
    assert output.count(" is trained to; ") == 1
