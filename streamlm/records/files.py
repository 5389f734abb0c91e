"""How records and their losses reach the disk whole, and how they come back."""

import errno
import fcntl
import glob
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

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
        ValueError: if the file is missing or holds no JSON object.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"there is no record {path}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds no record: a JSON object was expected")
    return record


def read_losses(record_path: Path | str) -> np.ndarray:
    """Return the per-token losses beside a record, (N-1,) float32 in nats.

    Raises:
        ValueError: if they are missing or damaged.
    """
    path = Path(record_path).with_suffix(".npy")
    try:
        losses: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"cannot read the losses of {record_path} from {path}: {error}") from error
    return losses


def hash_ids(ids: np.ndarray) -> str:
    """Return the SHA-256 of token ids as little-endian int64."""
    return hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()
