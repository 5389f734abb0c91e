"""Copies of the project in which the workflow runs as a user runs it."""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTS = (
    "Snakefile",
    "config.yaml",
    "configs",
    "profiles",
    "workflow",
    "streamlm",
    "README.md",
    "Makefile",
    "envs",
)


def copy_project(place, more=()):
    """Copy what the workflow needs, and `more` of the project, to a folder; return it."""
    for part in (*PARTS, *more):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
        (place / part).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / part, place / part)
    return place


def make_tiny_model(place):
    """Make the model of the smoke experiment, in a process of its own: its seed is global."""
    program = [sys.executable, str(ROOT / "tests" / "tiny_model.py"), "data/smoke/model"]
    subprocess.run(program, cwd=place, check=True, capture_output=True)


def environment():
    """Return the environment of a user's shell: nothing leads to this checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def snakemake(place, *args, overlay=None):
    overlays = [] if overlay is None else [str(overlay)]
    return subprocess.run(
        [sys.executable, "-m", "snakemake", *args, "--configfile", "configs/smoke.yaml", *overlays],
        cwd=place, env=environment(), capture_output=True, text=True,
    )  # fmt: skip


@cache
def run_smoke(folder):
    """Return a copy of the project in which the smoke experiment has run, once for all tests."""
    place = copy_project(folder / "project")
    make_tiny_model(place)
    done = snakemake(place, "paper", "tasks")
    assert done.returncode == 0, done.stdout + done.stderr
    return place
