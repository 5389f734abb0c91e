"""A small but real run of the workflow, for tests that disturb it or repeat it."""

import json
import os
import signal
import subprocess
import sys
import time

import yaml
from project import copy_project, environment, make_tiny_model

RESULTS = "results/small"
TARGETS = [
    f"{RESULTS}/figures/{name}.png" for name in ("main_comparison", "ablation_window_size", "ablation_n_sink")
]
OVERLAY = {
    "results_dir": RESULTS,
    "experiment": {
        "corpora": ["readme"],
        "window_ablation": {"n_sink": 4, "window_sizes": [28]},
        "sink_ablation": {"capacities": [32], "n_sinks": [0, 4]},
    },
}
# All that two runs on one machine may differ in.
TIMED = {"runtime_sec", "tokens_per_sec", "speedup"}


def make_project(place):
    """Copy the project to a folder, with a tiny model and the overlay of the small experiment."""
    copy_project(place)
    (place / "configs" / "small.yaml").write_text(yaml.safe_dump(OVERLAY))
    make_tiny_model(place)
    return place


def start(place, *args, said="said.txt"):
    """Start snakemake in a process group of its own; its output goes to the file `said`."""
    command = [sys.executable, "-m", "snakemake", *args, "--configfile"]
    with (place / said).open("w") as file:
        return subprocess.Popen(
            [*command, "configs/smoke.yaml", "configs/small.yaml"],
            cwd=place, env=environment(), stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip


def run(place, *args):
    """Run snakemake to its end; return whether it succeeded, and its output."""
    process = start(place, *args)
    return process.wait() == 0, (place / "said.txt").read_text()


def end_group(process, number):
    """Send a signal to the process and all its children, and wait until none is left."""
    os.killpg(process.pid, number)
    process.wait(timeout=120)
    while True:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)  # a process that was just being started
        time.sleep(0.05)


def contents(place):
    """Return the content of every finished file, by name; of records, all but times."""
    files = {}
    for path in sorted([*(place / RESULTS).rglob("*"), *(place / "data").rglob("*.npy")]):
        if path.suffix == ".json":
            files[str(path.relative_to(place))] = without_times(json.loads(path.read_bytes()))
        elif path.suffix == ".npy":
            files[str(path.relative_to(place))] = path.read_bytes()
    return {name: content for name, content in files.items() if "/." not in name}


def without_times(value):
    """Return a JSON value without the fields that hold a measured time."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMED}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def leftovers(place):
    """Return the hidden files and folders that interrupted writes left."""
    return [path for root in ("data", "results") for path in (place / root).rglob(".*")]
