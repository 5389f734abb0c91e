"""Files of tensors that are read whole or refused: each has a hash of everything in it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from streamlm.records.files import atomic_path


def write_tensors(path: Path | str, about: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and what is said about them as safetensors, whole or not at all."""
    content = save(dict(tensors), metadata={**about, "digest": digest_of(about, tensors)})
    with atomic_path(path) as made:
        made.write_bytes(content)  # `save_file` hides why a disk refuses


def read_about(path: Path | str) -> dict[str, str]:
    """Return what is said about the tensors; they are not read, and nothing is checked.

    Raises:
        SafetensorError, OSError: if it is no safetensors file.
    """
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """Return the tensors by name, on the CPU.

    Raises:
        SafetensorError, OSError: if it is no safetensors file.
        ValueError: if it does not hold what `write_tensors` wrote.
    """
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if about.get("digest") != digest_of(about, tensors):
        raise ValueError("it does not hold what was written to it")
    return tensors


def digest_of(about: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of all that a file holds but itself."""
    digest = hashlib.sha256()
    for key, text in sorted(about.items()):
        if key != "digest":
            digest.update(f"{key} {len(text)} {text}".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in the order of its elements."""
    data: memoryview = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return data
