"""Checks of disk and clock before an experiment starts, and the state of the user's own files."""

import hashlib
import os
import tempfile
import time
from collections.abc import Collection
from datetime import datetime
from pathlib import Path

from streamlm.experiment.plan import Config, model_files, source_file
from streamlm.extras import need


def own_files(config: Config, kind: str, name: str) -> list[str]:
    """Return the user's own files that a model or corpus is made from; none if it is fetched."""
    if config[kind][name]["source"]["kind"] != "path":
        return []
    folder = model_files(config, name) if kind == "models" else []
    return folder or [source_file(config, kind, name)]


HASHED_BYTES = 1_000_000  # larger files are identified by size and time


def file_marks(config: Config, kind: str, name: str) -> list[str]:
    """Return the state of each of the user's own files, which changes with its content.

    Snakemake looks only for inputs that are newer than the output: it misses a text that was replaced by an
    older file, or edited after the clock was set back.
    """
    return [f"{file} {_mark(Path(file))}" for file in own_files(config, kind, name)]


def _mark(file: Path) -> str:
    stat = file.stat()
    if stat.st_size > HASHED_BYTES or not file.is_file():
        return f"{stat.st_size} {stat.st_mtime_ns}"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def check_results_dir(config: Config, *, writable: bool) -> None:
    """Raise ValueError if the folder of results cannot exist or, if asked, cannot be written."""
    results = Path(config["results_dir"])
    there = next(folder for folder in (results, *results.parents) if folder.exists())
    if not there.is_dir():
        raise ValueError(
            f"results_dir: {there} is a file; move it away, or name another folder in the config"
        )
    if writable:
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            raise ValueError(
                f"results_dir: {there} cannot be written ({error.strerror}); make it writable, or name "
                "another folder in the config"
            ) from error


# What a rule needs that the extra `workflow` does not bring.
OF_KVPRESS = ("compression", "decoding", "stream_eval", "retrieval", "batches")
LIBRARIES = {f"measure_{name}": "kvpress" for name in OF_KVPRESS} | {"fetch_sample": "pyarrow"}


def check_libraries(rules: Collection[str]) -> None:
    """Raise ValueError, before any job starts, if a library is missing that one of these rules needs."""
    try:
        need(*(library for rule, library in LIBRARIES.items() if rule in rules))
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from None


CLOCK_SLACK = 60  # seconds by which the clock of a file server may be ahead


def check_dates(config: Config) -> None:
    """Raise ValueError if a file that the experiment reads is dated in the future.

    After a job, Snakemake deletes its output if one of its inputs is newer.
    """
    experiment, now = config["experiment"], time.time()
    files = [Path(file) for file in own_files(config, "models", experiment["model"])]
    files += [Path(file) for name in experiment["corpora"] for file in own_files(config, "corpora", name)]
    made = [path for root in ("data", config["results_dir"]) for path in _files_below(Path(root))]
    for path in files + made:
        late = _date(path)
        if late > now + CLOCK_SLACK:
            raise ValueError(
                f"{path} is dated {datetime.fromtimestamp(late):%Y-%m-%d %H:%M}, later than this machine's "
                f"clock, {datetime.fromtimestamp(now):%Y-%m-%d %H:%M}; set the clock right, or type "
                f"`touch {path}`"
            )


def _files_below(root: Path) -> list[Path]:
    """Return all files below a folder; a running job may delete some meanwhile."""
    return sorted(Path(folder, name) for folder, _, names in os.walk(root) for name in names)


def _date(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # deleted by a running job
        return 0.0
