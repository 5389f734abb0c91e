"""Compressed files of others, read within the bounds of `limits`: a small one can expand without end."""

import bz2
import gzip
import io
import lzma
from typing import IO, Any

from streamlm import limits

# zipfile expands the whole of a piece at once, 20,000-fold if it is bzip2.
_PIECE = 4096


def check_expansion(name: str, n_bytes: int, compressed: int) -> None:
    """Raise ValueError if `name`, of `compressed` bytes, has expanded too far at `n_bytes`."""
    allowed = min(limits.TEXT_BYTES, max(limits.EXPANDED_BYTES, limits.EXPANSION * compressed))
    if n_bytes > allowed:
        raise ValueError(
            f"{name} has {compressed:,} bytes and expands to more than {allowed:,}: it is damaged, made to "
            "fill the memory, or too large; use another, or a part of it"
        )


def read_expanded(member: IO[bytes], name: str, compressed: int, before: int = 0) -> bytes:
    """Return all of an open member of `name`, from which `before` bytes were read already."""
    content = io.BytesIO()
    while piece := member.read(_PIECE):
        content.write(piece)
        check_expansion(name, before + content.tell(), compressed)
    return content.getvalue()


def open_expanded(file: IO[bytes]) -> Any:
    """Return a file expanded, by its first bytes: gzip, bzip2, xz, or as it is."""
    magic = file.read(6)
    file.seek(0)
    for begins, expanded in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open)):
        if magic.startswith(begins):
            return expanded(file)
    return file


class BoundedFile(io.RawIOBase):
    """A file for readers that trust the sizes in it: neither one read nor a position exceeds the bounds."""

    def __init__(self, file: Any, name: str, compressed: int) -> None:
        self.file, self.asked = file, (name, compressed)

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes; all that is left if it is negative."""
        max_bytes = limits.ARCHIVE_HEADER_BYTES
        data: bytes = self.file.read(min(size, max_bytes + 1) if size >= 0 else max_bytes + 1)
        if len(data) > max_bytes:
            raise ValueError(
                f"{self.asked[0]} has a list of files of more than {max_bytes:,} bytes; use another"
            )
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a position."""
        if whence == 0:
            check_expansion(self.asked[0], offset, self.asked[1])
        position: int = self.file.seek(offset, whence)
        return position

    def tell(self) -> int:
        """Return the position."""
        position: int = self.file.tell()
        return position

    def seekable(self) -> bool:
        """Return True: zipfile asks."""
        return True
