"""Result records: what a measurement says, and how it reaches the disk whole."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

Record = dict[str, Any]  # JSON; DESIGN.md, section 5, and `perplexity.measure_perplexity` name the fields


@contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `target` that becomes `target` only if the block succeeds.

    The block writes a file or a folder at the yielded path. A kill leaves at most a hidden
    ``.{name}.*`` folder beside the target, never a half-written target.

    Args:
        target: the final path of a file or a folder; its parent is created.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        made = workshop / target.name
        yield made
        if target.is_dir():  # a rename cannot replace a folder that holds anything
            if not made.is_dir():
                raise ValueError(f"{target} is a folder; name a file to write")
            shutil.rmtree(target)
        made.replace(target)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def write_json(target: Path | str, content: Any) -> None:
    """Write `content` as JSON, whole or not at all; the same content gives the same bytes.

    Raises:
        ValueError: if a number in it is not finite.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
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
    with atomic_path(target) as path, path.open("wb") as file:
        np.save(file, array)


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
