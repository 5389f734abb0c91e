"""Number types, devices and threads by their names, and the time once a device has finished."""

import os
import re
import time

import torch


def parse_dtype(name: str) -> torch.dtype:
    """Return the torch floating-point type called `name`."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"unknown dtype {name!r}; use float32, bfloat16, float16 or float64")
    return dtype


def choose_device(name: str) -> str:
    """Return the torch device called `name`; "auto" is CUDA when present, else the CPU."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"unknown device {name!r}; use auto, cpu, mps, cuda or cuda:N")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return name


def device_name(device: str) -> str:
    """Return the device and, for a GPU, its model."""
    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return device


def use_threads(torch_threads: int | str) -> None:
    """Set the threads of CPU arithmetic; "auto" is every core this process may run on.

    Snakemake's ``--cores 1`` sets OMP_NUM_THREADS=1, which would otherwise leave torch one thread.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)) if torch_threads == "auto" else int(torch_threads))


def now(device: torch.device) -> float:
    """Return the time in seconds once the device has finished what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
