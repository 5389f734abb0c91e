"""Ids of a hub at the command and in the workflow."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml
from command import command, only_line
from hub_files import ARTICLES, EXPERIMENT, PYTHIA, WIKITEXT, environment
from hub_server import Fault
from project import ROOT, copy_project

from streamlm.sources.corpus import read_sample


def streamlm(hub, folder, *args):
    return subprocess.run(
        command(*args), cwd=folder, env=environment(hub, folder), capture_output=True, text=True
    )


def test_command_takes_hub_ids(hub, tmp_path):
    done = streamlm(
        hub, tmp_path, "evaluate", "--model-name", PYTHIA["repo"], "--dataset-name", WIKITEXT["repo"],
        "--dataset-config", "wikitext-103-v1", "--max-samples", 2, "--n-sink", 2, "--window-size", 30,
        "--output", "record.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["model"] == PYTHIA["repo"]
    assert record["dataset"] == "Salesforce/wikitext wikitext-103-v1 test"
    texts = [text.strip() for text in list(ARTICLES.values())[:2]]
    assert record["tokens"]["count"] == len("\n\n".join(texts).encode())  # a token a byte


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model-name", "org/gone"], "no folder org/gone; as a name on the hub: cannot fetch org/gone"),
        (["--model-name", PYTHIA["repo"] + "@v9"], "404 Not Found for .*v9"),
    ],
)  # fmt: skip
def test_mistake_at_the_command_is_one_line(hub, tmp_path, args, message):
    done = streamlm(
        hub, tmp_path, "evaluate", "--model-name", PYTHIA["repo"], "--dataset-name", "wikitext", *args
    )
    assert re.search(message, only_line(done)), done.stderr


@pytest.fixture
def project(tmp_path):
    """A copy of the project, in which `snakemake` runs the hub's experiment, at sizes for a test."""
    copy_project(tmp_path)
    small = yaml.safe_load((ROOT / "configs" / "smoke.yaml").read_text())
    sizes = {key: small[key] for key in ("long_stream", "decoding_latency", "comparison", "paper", "tasks")}
    names = {"model": "pythia-70m", "corpora": ["wikitext-103", "pg19-book"]}
    sizes["experiment"] = small["experiment"] | names
    del sizes["comparison"]["presses"]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(sizes))
    return tmp_path


def snakemake(hub, folder, *targets):
    variables = environment(hub, folder)
    del variables["PYTHONPATH"]
    configs = ["--configfile", "configs/pythia-70m.yaml", "small.yaml"]
    return subprocess.run(
        [sys.executable, "-m", "snakemake", *targets, *configs],
        cwd=folder, env=variables, capture_output=True, text=True,
    )  # fmt: skip


def test_failing_fetch_of_the_workflow_shows_one_line_and_a_second_run_goes_on(hub, project):
    hub.faults.append(Fault(500, "/api/models/"))
    done = snakemake(hub, project, "data/models/pythia-70m")
    log = (project / "results/pythia-70m/logs/fetch_model/pythia-70m.log").read_text()
    assert done.returncode == 1
    assert len(log.splitlines()) == 1
    assert log in done.stdout + done.stderr
    assert re.search("cannot fetch EleutherAI/pythia-70m at .*: 500 Internal Server Error", log)
    assert not list((project / "data").rglob("*pythia*"))
    hub.faults.clear()
    assert snakemake(hub, project, "data/models/pythia-70m").returncode == 0


@pytest.mark.slow
@pytest.mark.kvpress
def test_experiment_of_the_hub_runs_end_to_end(hub, project):
    done = snakemake(hub, project, "paper", "tasks")
    assert done.returncode == 0, done.stdout + done.stderr
    results = project / "results" / "pythia-70m"
    for corpus, title in (("wikitext-103", "WikiText-103 test"), ("pg19-book", "PG19 test, first book")):
        record = json.loads((results / f"streaming_llm/{corpus}_result.json").read_text())
        assert (record["model"], record["dataset"]) == ("Pythia-70M", title)
        assert np.isfinite(record["streaming"]["perplexity"])
        sample = read_sample(project / f"data/{corpus}/sample.json")
        assert sample.source["commit"] == EXPERIMENT["corpora"][corpus]["source"]["revision"]
    assert len(read_sample(project / "data/pg19-book/sample.json").documents) == 1
    comparison = json.loads((results / "kvpress/wikitext-103_comparison.json").read_text())
    assert "SnapKVPress" in json.dumps(comparison)
    assert (results / "figures/implementation_comparison.png").read_bytes().startswith(b"\x89PNG")
    assert not list((project / "data").glob("models/smollm2*"))
    assert "Nothing to be done" in snakemake(hub, project, "paper").stderr
