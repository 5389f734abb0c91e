"""How records and their losses reach the disk whole, and how they come back."""

import errno
import fcntl
import glob
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from streamlm.characters import find_steering, without_steering
from streamlm.input_files import load_json, read_array
from streamlm.limits import RECORD_BYTES, RECORD_DEPTH, RECORD_INT
from streamlm.records.types import Record


@contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `target` that becomes `target` only if the block succeeds.

    The block writes a file or a folder at the yielded path. A kill leaves at most a hidden
    ``.{name}.*`` folder beside the target, never a half-written target; the next write of it clears that.

    Args:
        target: the final path of a file or a folder; its parent is created.

    Raises:
        OSError: one line, if the disk refuses: what could not be written, why, and what to do.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(target)
        with _workshop(target) as workshop:
            made = workshop / target.name
            yield made
            if target.is_dir():  # a rename cannot replace a folder that holds anything
                if not made.is_dir():
                    raise ValueError(f"{target} is a folder; name a file to write")
                shutil.rmtree(target)
            made.replace(target)
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        raise OSError(f"cannot write {target}: {error.strerror}; {remedy}") from error


_FREE = "nothing of it is kept and what was there stays; free some space and run the same command again"
_ALLOW = "make the folder writable, or name another"
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FREE),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _ALLOW),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "a file stands where a folder is needed; move it away"),
}


@contextmanager
def _workshop(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target`, locked while it is in use; the system unlocks it at a kill."""
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    with _open_folder(folder) as handle:
        with suppress(OSError):  # a file system without locks: nothing is cleared there either
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _open_folder(folder: Path) -> Iterator[int]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield handle
    finally:
        os.close(handle)


def clear_leftovers(target: Path | str) -> None:
    """Remove what killed writes of `target` left beside it; a write that still runs is let alone."""
    target = Path(target)
    for folder in target.parent.glob(f".{glob.escape(target.name)}.*"):
        with suppress(OSError), _open_folder(folder) as handle:  # in use, gone, or not ours
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if {path.name for path in folder.iterdir()} <= {target.name}:
                shutil.rmtree(folder, ignore_errors=True)


def discard_checkpoint(path: Path | str | None) -> None:
    """Remove the state of a run whose results are safe on disk."""
    if path is not None:
        Path(path).unlink(missing_ok=True)
        clear_leftovers(path)


def write_json(target: Path | str, content: Any) -> None:
    """Write `content` as JSON, whole or not at all; the same content gives the same bytes.

    Raises:
        ValueError: if a number in it is not finite.
    """
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(
            f"{target} is not written, a number in it is not finite ({error}); "
            "the model's weights are damaged, or its dtype is too narrow for it"
        ) from error
    with atomic_path(target) as path:
        path.write_text(text + "\n", encoding="utf-8")


def write_jsons(targets: Sequence[Path | str], contents: Sequence[Any]) -> None:
    """Write each content to its target, as `write_json` does."""
    for target, content in zip(targets, contents, strict=True):
        write_json(target, content)


def write_text(target: Path | str, text: str) -> None:
    """Write `text`, whole or not at all."""
    with atomic_path(target) as path:
        path.write_text(text, encoding="utf-8")


def write_array(target: Path | str, array: np.ndarray) -> None:
    """Write `array` as `.npy`, whole or not at all."""
    # Into a file numpy writes past Python, and of a full disk says "0 written" without a reason.
    content = io.BytesIO()
    np.save(content, array)
    with atomic_path(target) as path:
        path.write_bytes(content.getbuffer())


def read_record(path: Path | str) -> Record:
    """Return the record in a JSON file.

    Raises:
        ValueError: if it holds no JSON object, or `read_json` does not read it.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds no record: a JSON object was expected")
    return record


def read_json(path: Path | str) -> Any:
    """Return what a JSON file holds.

    Raises:
        ValueError: if the file is missing or no JSON, too large or nested too deeply; if a number is not
            finite or has more than 64 bits; if a text has characters that steer a terminal.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is no record {path}")
    try:
        content = load_json(path, max_bytes=RECORD_BYTES, max_depth=RECORD_DEPTH)
        _check_values(content)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON of a record: {error}") from error
    return content


def _check_values(content: Any) -> None:
    """Raise ValueError for a text that steers a terminal, or a number that no record has."""
    waiting = [content]
    while waiting:
        match waiting.pop():
            case str(text) if steering := find_steering(text):
                raise ValueError(f"{without_steering(text)[:80]!r} has the character {steering}")
            case float(number) if not math.isfinite(number):
                raise ValueError(f"the number {json.dumps(number)} is not finite")
            case int(number) if abs(number) > RECORD_INT:
                raise ValueError("a number in it has more than 64 bits")
            case list(items):
                waiting += items
            case dict(section):
                waiting += [*section, *section.values()]


def read_losses(record_path: Path | str) -> np.ndarray:
    """Return the per-token losses beside a record, (N-1,) float32 in nats; of a comparison, its scores.

    Raises:
        ValueError: if they are missing or damaged, or not finite numbers.
    """
    path = Path(record_path).with_suffix(".npy")
    try:
        losses = read_array(path)
    except ValueError as error:
        raise ValueError(f"cannot read the losses of {record_path}: {error}") from error
    if losses.dtype not in (np.float32, np.float64) or losses.ndim == 0 or not np.isfinite(losses).all():
        raise ValueError(
            f"cannot read the losses of {record_path} from {path}: they are not finite floating-point numbers"
        )
    return losses


def hash_ids(ids: np.ndarray) -> str:
    """Return the SHA-256 of token ids as little-endian int64."""
    return hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()
