"""Bytes that a cache holds, that a device can still give, and that something takes while it runs."""

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import Cache

from streamlm.cache.kept_state import state_tensors
from streamlm.cache.sink_cache import SinkCache

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEMORY, OWN_GROUP = Path("/proc/meminfo"), Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")


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


def available_bytes(device: torch.device) -> int | None:
    """Return the bytes that a device can still give to this process; None where that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu" or not MEMORY.exists():
        return None
    return max(0, min([_kib(MEMORY, "MemAvailable"), *_left_in_groups()]))


def _left_in_groups() -> Iterator[int]:
    """Yield what the limits of this process leave, of its control group and of those around it."""
    lines = OWN_GROUP.read_text(encoding="ascii").splitlines() if OWN_GROUP.exists() else []
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    for group in (GROUPS / own, *(GROUPS / own).parents):
        if not group.is_relative_to(GROUPS) or not (group / "memory.max").exists():
            continue
        limit, used = (
            (group / f"memory.{name}").read_text(encoding="ascii").strip() for name in ("max", "current")
        )
        if limit != "max":
            stat = dict(line.split() for line in (group / "memory.stat").read_text("ascii").splitlines())
            yield int(limit) - int(used) + int(stat["inactive_file"])  # read from disk, and given back


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
    before = _kib(STATUS, "VmRSS")
    run()
    return max(0, _kib(STATUS, "VmHWM") - before)


def _kib(file: Path, field: str) -> int:
    """Return the bytes of a field that a file of /proc gives in KiB."""
    lines = file.read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
