"""The smoke experiment on a real Slurm cluster of one node, through the profile: `make test-slurm`."""

import getpass
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from slurm_cluster import client, one_node_cluster

ROOT = Path(__file__).parent.parent
PROFILE = [
    "--workflow-profile=workflow/profiles/slurm",
    # What a real site has otherwise: more cores, accounting, queues that are long.
    f"--cores={os.cpu_count()}",
    "--slurm-status-command=squeue",
    "--slurm-no-account",
    "--slurm-init-seconds-before-status-checks=3",
]
VICTIM = "rule_measure_perplexity_wildcards_readme_dense"  # as the plugin comments it
VICTIM_LOG = "results/smoke/logs/measure_perplexity/readme/dense.log"
LOCAL = ("fetch_", "collect_", "write_", "plot_")  # rules of seconds, or that need the network
HOUR = 3600


def snakemake(*args):
    return [sys.executable, "-m", "snakemake", *args, "--configfile", "configs/smoke.yaml"]


def planned(place, environment, *args):
    """Return how many jobs of each rule a dry run lists."""
    done = subprocess.run(
        snakemake("-n", *args), cwd=place, env=environment, capture_output=True, text=True, check=True
    )
    table = re.search(r"^job +count\n(.*?)^total", done.stdout, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^(\w+) +(\d+)$", table[1], re.MULTILINE) if table else []
    return {rule: int(count) for rule, count in rows if rule != "all"}


def jobs_of(environment):
    """Return the fields of every job that the cluster has seen, in order of submission."""
    lines = client("scontrol show jobs --oneliner", environment).splitlines()
    return [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines]


def rule_of(job):
    return re.match(r"rule_(\w+?)(_wildcards_|$)", job["Comment"])[1]


def cancel_victim(place, environment, process):
    """Cancel the victim once its script has begun; return its job id."""
    while process.poll() is None:
        for job in jobs_of(environment):
            if (
                job.get("Comment") == VICTIM
                and job["JobState"] == "RUNNING"
                and (place / VICTIM_LOG).exists()
            ):
                client(f"scancel {job['JobId']}", environment)
                return job["JobId"]
        time.sleep(0.5)
    return None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The whole experiment, of which one job was cancelled while it ran; the cluster is still up."""
    place = tmp_path_factory.mktemp("shared") / "project"
    shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(".*", "data", "results", "*.egg-info"))
    tiny = [sys.executable, "tests/tiny_model.py", "data/smoke/model"]
    subprocess.run(tiny, cwd=place, check=True)
    with one_node_cluster(tmp_path_factory.mktemp("slurm")) as environment:
        environment.pop("PYTHONPATH", None)
        plan = planned(place, environment)
        with (place / "run.log").open("w") as log:
            process = subprocess.Popen(
                snakemake("all", *PROFILE), cwd=place, env=environment, stdout=log, stderr=log
            )
            try:
                cancelled = cancel_victim(place, environment, process)
                process.wait(HOUR)
            finally:
                process.terminate()
                process.wait()
        jobs = jobs_of(environment)
        yield {
            "place": place, "environment": environment, "plan": plan, "cancelled": cancelled,
            "status": process.returncode, "log": (place / "run.log").read_text(), "jobs": jobs,
        }  # fmt: skip


def test_the_cluster_ran_every_job_that_is_not_local(run):
    assert run["status"] == 0, run["log"][-5000:]
    completed = Counter(rule_of(job) for job in run["jobs"] if job["JobState"] == "COMPLETED")
    assert completed == {rule: n for rule, n in run["plan"].items() if not rule.startswith(LOCAL)}
    assert completed["measure_perplexity"] == 18


def test_a_cancelled_job_is_tried_again_and_finishes(run):
    tries = [job for job in run["jobs"] if job["Comment"] == VICTIM]
    assert [job["JobState"] for job in tries] == ["CANCELLED", "COMPLETED"]
    assert tries[0]["JobId"] == run["cancelled"]
    assert f"SLURM-job '{run['cancelled']}' failed, SLURM status is: 'CANCELLED'" in run["log"]
    assert run["log"].count("Trying to restart job") == 1


def test_results_are_whole_under_either_profile(run):
    figures = run["place"] / "results/smoke/figures"
    assert len(list(figures.glob("*.png"))) == sum(rule.startswith("plot_") for rule in run["plan"])
    assert planned(run["place"], run["environment"], *PROFILE) == {}
    assert planned(run["place"], run["environment"]) == {}


def test_measuring_jobs_ask_for_one_gpu_and_the_whole_node(run):
    for job in run["jobs"]:
        measures = rule_of(job).startswith("measure_")
        assert (job.get("TresPerJob") == "gres:gpu:1") == measures
        assert (job["OverSubscribe"] == "NO") == measures
        assert job["NumCPUs"] == (str(os.cpu_count()) if measures else "1")


def test_nothing_runs_beside_a_measuring_job(run):
    for job in run["jobs"]:
        if rule_of(job).startswith("measure_"):
            for other in run["jobs"]:
                apart = other["EndTime"] <= job["StartTime"] or other["StartTime"] >= job["EndTime"]
                assert apart or other is job, (other["Comment"], job["Comment"])


def test_a_run_for_the_cpu_asks_for_no_gpu(run):
    target = "results/smoke/runs/readme/sink4_window8.json"  # measured anew, since the device is another
    done = subprocess.run(
        snakemake(target, *PROFILE, "--config", "compute={device: cpu}"),
        cwd=run["place"], env=run["environment"], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    job = jobs_of(run["environment"])[-1]
    assert rule_of(job) == "measure_perplexity"
    assert "TresPerJob" not in job


def test_the_cluster_ends_with_its_block(tmp_path):
    with one_node_cluster(tmp_path) as environment:
        assert client("srun --ntasks=1 id --user --name", environment) == getpass.getuser()
    left = [process.info["environ"] or {} for process in psutil.process_iter(["environ"])]
    assert not any(environ.get("SLURM_CONF") == environment["SLURM_CONF"] for environ in left)
