"""Bytes that a cache holds, and how far the memory of this process rises while something runs."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import Cache

from streamlm.cache.kept_state import state_tensors
from streamlm.cache.sink_cache import SinkCache

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def held_bytes(cache: Cache | None) -> int:
    """Return the bytes that a cache holds, our untouched sinks included; 0 without one."""
    if cache is None:
        return 0
    if isinstance(cache, SinkCache):
        return cache.nbytes
    held: list[Tensor] = []
    for layer in cache.layers:
        held += state_tensors(layer).values()
        held += (layer.keys, layer.values) if hasattr(layer, "keys") else ()
    return sum(tensor.nbytes for tensor in held)


def measure_rise(run: Callable[[], object], device: torch.device) -> int | None:
    """Return by how many bytes the peak of memory during `run` lies above what was held before.

    On a GPU that is its allocated memory; on a CPU, where Linux counts it, the resident memory of the
    process; elsewhere it is not known, and None.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return int(torch.cuda.max_memory_allocated(device)) - before
    if device.type != "cpu" or not CLEAR.exists():
        return None
    # What the allocator keeps back for later would hide a rise.
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
    CLEAR.write_text("5", encoding="ascii")  # resets the peak, see proc(5)
    before = _resident("VmRSS")
    run()
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    lines = STATUS.read_text(encoding="ascii").splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(kib)
