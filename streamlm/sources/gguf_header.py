"""The header of a GGUF file, read within bounds: keys with their values, and where its tensors lie.

The `gguf` library believes the counts and lengths in a file, of which an element takes it hundreds of bytes,
and where a file ends early it takes what is there. It is given a file only after this.

Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from streamlm.limits import GGUF_HEADER_BYTES, GGUF_ITEMS, GGUF_KEYS, GGUF_TENSORS

_FORMATS = {
    0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor."""

    name: str
    shape: tuple[int, ...]  # as GGUF writes it, fastest first
    kind: int
    offset: int  # from the beginning of the data

    @property
    def elements(self) -> int:
        """Numbers in it."""
        elements: int = prod(self.shape)
        return elements

    def end(self) -> int:
        """Return the offset after its last byte; ValueError if its type or its shape cannot be."""
        sizes: tuple[int, int] = GGML_QUANT_SIZES[GGMLQuantizationType(self.kind)]
        block, size = sizes
        if not self.shape or 0 in self.shape or self.shape[0] % block:
            raise ValueError(f"the tensor {self.name!r:.80} has shape {self.shape}, in blocks of {block}")
        return self.offset + self.elements // block * size


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself."""

    meta: dict[str, Any]
    tensors: list[TensorInfo]


def read_header(file: Path) -> Header:
    """Return the header of a GGUF file.

    Raises:
        ValueError: it is not such a file; or its counts, lengths or offsets cannot be those of a model.
    """
    with file.open("rb") as content:
        reader = _Reader(content, min(file.stat().st_size, GGUF_HEADER_BYTES))
        header = reader.header()
        _check_offsets(header, file.stat().st_size - content.tell())
    return header


class _Reader:
    """Reads from the front of a file, so far and no further."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.items = file, size, 0

    def header(self) -> Header:
        if self.file.read(4) != b"GGUF":
            raise ValueError("it does not begin as GGUF does")
        version = self.number("<I")
        if version not in (2, 3):
            raise ValueError(
                f"its version is {version}; versions 2 and 3 are read, of little-endian machines"
            )
        n_tensors, n_keys = self.count("tensors", GGUF_TENSORS), self.count("keys", GGUF_KEYS)
        meta: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self.text()
            if key in meta:
                raise ValueError(f"it has the key {key!r:.80} twice")
            meta[key] = self.value(self.number("<I"))
        return Header(meta, [self.tensor() for _ in range(n_tensors)])

    def bytes(self, count: int) -> bytes:
        if self.file.tell() + count > self.size:
            raise ValueError(f"its header ends early, or is longer than {GGUF_HEADER_BYTES:,} bytes")
        return self.file.read(count)

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.bytes(struct.calcsize(form)))[0]

    def count(self, what: str, max_count: int) -> int:
        count: int = self.number("<Q")
        if count > max_count:
            raise ValueError(f"it says that it has {count:,} {what}, and at most {max_count:,} are read")
        return count

    def text(self) -> str:
        return self.bytes(self.number("<Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind in _FORMATS:
            return self.number(_FORMATS[kind])
        if kind != _ARRAY:
            raise ValueError(f"it has a value of type {kind}, which is not known")
        return self.array(self.number("<I"))

    def array(self, kind: int) -> list[Any]:
        if kind == _ARRAY:
            raise ValueError("it has arrays in arrays, which no model needs")
        length = self.count("items in an array", GGUF_ITEMS - self.items)
        self.items += length
        return [self.value(kind) for _ in range(length)]

    def tensor(self) -> TensorInfo:
        name, n_dims = self.text(), self.number("<I")
        if n_dims > _MAX_DIMS:
            raise ValueError(f"the tensor {name!r:.80} has {n_dims} dimensions; at most {_MAX_DIMS} are read")
        shape = tuple(self.number("<Q") for _ in range(n_dims))
        return TensorInfo(name, shape, self.number("<I"), self.number("<Q"))


def _check_offsets(header: Header, n_bytes: int) -> None:
    """Raise ValueError unless every tensor lies in the `n_bytes` after a header, apart from the others."""
    if len({tensor.name for tensor in header.tensors}) < len(header.tensors):
        raise ValueError("it has two tensors of the same name")
    end, last = 0, "the header"
    for tensor in sorted(header.tensors, key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise ValueError(f"the tensor {tensor.name!r:.80} begins before {last!r:.80} ends")
        end, last = tensor.end(), tensor.name
    if end > n_bytes:
        raise ValueError(f"the tensor {last!r:.80} ends beyond the file, which is shorter than it says")
