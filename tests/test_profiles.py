"""The two profiles agree where they must, and a run for the CPU asks for no GPU."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SLURM = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text())


def test_slurm_profile_reruns_what_the_default_profile_reruns():
    default = yaml.safe_load((ROOT / "profiles/default/config.yaml").read_text())
    for key in ("rerun-triggers", "rerun-incomplete", "show-failed-logs"):
        assert SLURM[key] == default[key]


def test_slurm_profile_gives_every_measuring_rule_a_node_of_its_own():
    rules = re.findall(r"^rule (\w+):", (ROOT / "workflow/rules/measure.smk").read_text(), re.MULTILINE)
    assert set(SLURM["set-resources"]) == set(rules)
    assert all("--exclusive" in resources["slurm_extra"] for resources in SLURM["set-resources"].values())


def test_what_takes_seconds_or_needs_the_network_runs_where_snakemake_runs():
    text = "".join(file.read_text() for file in (ROOT / "workflow/rules").glob("*.smk"))
    light = set(
        re.findall(
            r"^(?:use rule \w+ as|rule) ((?:fetch|collect|write|plot)_\w+)(?: with)?:", text, re.MULTILINE
        )
    )
    lists = re.findall(r"^localrules:\n((?:    \w+,\n)+)", text, re.MULTILINE)
    assert len(light) > 10
    assert light == set(re.findall(r"\w+", " ".join(lists)))


@pytest.mark.parametrize(("device", "asked"), [("auto", ["1"]), ("cuda", ["1"]), ("cpu", [])])
def test_a_measuring_job_asks_for_a_gpu_unless_the_device_is_the_cpu(device, asked):
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "results/runs/pg19/dense.json", "--nolock", "--forceall",
         "--config", f"compute={{device: {device}}}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    job = done.stdout.partition("rule measure_perplexity:")[2].partition("\n\n")[0]
    assert re.findall(r"gpu=(\d+)", re.search(r"resources: (.*)", job)[1]) == asked
