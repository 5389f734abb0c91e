"""Open the files that a user names, which can be pipes, devices or other people's arrays."""

import io
import json
import os
import select
import stat
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from streamlm import limits
from streamlm.characters import without_steering

_PIECE = 1 << 20  # bytes


@contextmanager
def open_text(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, a pipe or a terminal to read from its beginning.

    A pipe into which nobody writes is waited for, with a warning.

    Raises:
        ValueError: if it is something else, or cannot be opened.
    """
    shown = without_steering(str(path))
    try:
        # Otherwise the opening itself would wait for somebody who writes.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"no such file: {shown}; correct the path") from error
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"cannot read {shown} ({reason}); use a file that you may read") from error
    try:
        _check_readable(handle, shown)
    except BaseException:
        os.close(handle)
        raise
    os.set_blocking(handle, True)
    with os.fdopen(handle, "rb") as file:
        yield file


def _check_readable(handle: int, shown: str) -> None:
    """Raise ValueError unless an open file has an end; of a pipe, wait for the first byte or its end."""
    mode = os.fstat(handle).st_mode
    if stat.S_ISDIR(mode):
        raise ValueError(f"no such file: {shown} is a folder; correct the path")
    if stat.S_ISFIFO(mode):
        _await_writer(handle, shown)
    elif not stat.S_ISREG(mode) and not os.isatty(handle):
        raise ValueError(f"{shown} is a device, and may never end; use a file or a pipe")


def _await_writer(handle: int, shown: str) -> None:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    if not poll.poll(1000 * limits.QUIET_PIPE_SECONDS):
        warnings.warn(f"waiting for somebody to write into the pipe {shown}; Ctrl-C ends it", stacklevel=6)
        poll.poll()


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Return what `open_text` opens; raise ValueError if there is more than `max_bytes` of it."""
    with open_text(path) as file:  # in pieces: read(n) reserves n bytes, whatever there is
        content = io.BytesIO()
        while content.tell() <= max_bytes and (piece := file.read(_PIECE)):
            content.write(piece)
    if content.tell() > max_bytes:
        raise ValueError(
            f"{without_steering(str(path))} has more than {max_bytes:,} bytes; use a smaller file, or a part"
        )
    return content.getvalue()


def load_json(path: Path, *, max_bytes: int, max_depth: int) -> Any:
    """Return what a JSON file holds, NaN and infinities as Python reads them.

    Args:
        path: the file.
        max_bytes: that it may have.
        max_depth: of lists and objects inside one another.

    Raises:
        ValueError: why it is not read, without its name: it is no regular file or too large, is no JSON in
            UTF-8, is nested too deeply, or names a key twice.
    """
    check_regular(path, max_bytes)
    try:
        content = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=_without_repeats)
    except RecursionError as error:  # json's own, before any depth could be counted
        raise ValueError(f"it is nested deeper than {max_depth} levels") from error
    _check_depth(content, max_depth)
    return content


def check_regular(path: Path, max_bytes: int) -> None:
    """Raise ValueError, without its name, unless a path is a regular file of at most so many bytes."""
    if not path.is_file():
        raise ValueError("it is not a plain file")
    if (size := path.stat().st_size) > max_bytes:
        raise ValueError(f"it has {size:,} bytes, and at most {max_bytes:,} are read")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"it names the key {key!r:.60} twice")
    return content


def _check_depth(value: Any, levels: int) -> None:
    """Raise ValueError if a JSON value has more levels; a value that is no list or object has none."""
    waiting = [(value, 0)]
    while waiting:
        each, depth = waiting.pop()
        if isinstance(each, (dict, list)):
            if depth == levels:
                raise ValueError(f"it is nested deeper than {levels} levels")
            inner = each.values() if isinstance(each, dict) else each
            waiting += [(part, depth + 1) for part in inner]


def read_array(path: Path | str) -> np.ndarray:
    """Return the array of numbers in a `.npy` file; no more memory is used than the file has bytes.

    Raises:
        ValueError: if the file is missing, is cut short, or contains something else.
    """
    path = Path(path)
    shown = without_steering(str(path))
    if not path.is_file():
        raise ValueError(f"no such file: {shown}; correct the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numpy, about what is refused here
            mapped = np.lib.format.open_memmap(path, mode="r")
            if mapped.dtype.itemsize == 0:  # any number of elements without a byte
                raise ValueError("no numbers")
    except OSError as error:
        raise ValueError(f"cannot read {shown} ({error.strerror or error})") from error
    except Exception as error:  # a header can provoke any error, and numpy's advice is to load pickles
        raise ValueError(
            f"{shown} is not a whole .npy file of numbers; write it again, with numpy.save"
        ) from error
    try:
        return np.array(mapped)
    except MemoryError as error:
        raise ValueError(f"there is no memory for {shown}; take a part of it") from error


def read_tokens(path: Path | str) -> np.ndarray:
    """Return the token ids in a `.npy` file, (T,) int64.

    Raises:
        ValueError: the file is missing, damaged or contains something else.
    """
    ids = read_array(path)
    if ids.ndim != 1 or ids.dtype != np.int64:
        raise ValueError(
            f"{without_steering(str(path))} must contain one row of int64 token ids, got {ids.dtype.str} of "
            f"shape {ids.shape}; write them again, with numpy.save"
        )
    return ids
