"""What commands write, and how a file shows that it was written by one: such a file may be replaced."""

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_MIN_LOSS_NATS = -0.001  # a loss of 0 may be rounded to less


def _is_record(path: Path) -> bool:
    from streamlm.records.files import read_record

    record = read_record(path)
    environment = record.get("environment")
    return isinstance(record.get("model"), str) and isinstance(environment, dict) and "code" in environment


def _is_losses(path: Path) -> bool:
    import numpy as np

    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return bool(array.dtype == np.float32 and array.ndim == 1 and array.min() >= _MIN_LOSS_NATS)


def _is_figure(path: Path) -> bool:
    """Return whether a picture has the mark that `save_figure` puts into each."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        marks = {b"\x89PNG": b"tEXtSoftware\0streamlm", b"%PDF": b"/Creator (streamlm)"}
        return content.find(marks.get(content[:4], b"")) > 0


def _is_checkpoint(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {"identity", "seconds"} <= (file.metadata() or {}).keys()
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error


def _is_page(path: Path) -> bool:
    """Return whether a page has the mark of those that `watch` writes."""
    from streamlm.commands.watch_page import MARK

    with path.open("rb") as file:
        return MARK.encode() in file.read(1024)


@dataclass(frozen=True)
class OutputType:
    """What an output holds.

    Args:
        name: with which it is refused.
        is_marked: whether a file is one already, by its content; None where nothing marks it.
        is_text: whether a terminal can show it.
        is_read_again: whether it must be a regular file.
        is_streamed: whether it is written in place, as it comes.
    """

    name: str
    is_marked: Callable[[Path], bool] | None = None
    is_text: bool = False
    is_read_again: bool = False
    is_streamed: bool = False

    def is_ours(self, path: Path) -> bool:
        """Return whether a file is one of these already."""
        try:
            return self.is_marked is not None and self.is_marked(path)
        except (OSError, ValueError, EOFError, RecursionError):
            return False


RECORD = OutputType("record of streamlm", _is_record, is_text=True)
RUN_RECORD = OutputType("record of streamlm", _is_record, is_read_again=True)
LOSSES = OutputType("file of losses", _is_losses)
RUN_LOSSES = OutputType("file of losses", _is_losses, is_read_again=True)
FIGURE = OutputType("figure of streamlm", _is_figure)
CHECKPOINT = OutputType("checkpoint of streamlm", _is_checkpoint, is_read_again=True)
PAGE = OutputType("page of streamlm", _is_page, is_text=True)
TEXT = OutputType("text", is_text=True, is_streamed=True)
CONVERSATION = OutputType("conversation", is_text=True)
SESSION = OutputType("conversation to go on with", is_read_again=True)
