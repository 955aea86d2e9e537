"""This machine: its memory, and its speed as measured in a moment."""

import functools
import os
import time

import psutil
import torch


def machine(num_processes: int) -> tuple[str, int, str]:
    """Device type, bytes available to one process, and the name of that memory."""
    if torch.cuda.is_available():
        return "cuda", torch.cuda.get_device_properties(0).total_memory, torch.cuda.get_device_name(0)
    name = "RAM" if num_processes == 1 else f"RAM / {num_processes}"
    return "cpu", psutil.virtual_memory().total // num_processes, name


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


@functools.cache
def machine_flops(dtype: str, processes: int = 1, device: str | None = None) -> float:
    """FLOPs per second of a large matrix product, measured for under a second. On CPU, processes share the cores.

    device: "cuda" or "cpu"; None: a GPU if there is one.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    size = 8192 if device == "cuda" else 512
    matrix = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    best, end = float("inf"), time.perf_counter() + 0.3
    while time.perf_counter() < end:
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the GPU
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best * (min(processes, torch.cuda.device_count()) if device == "cuda" else 1)


@functools.cache
def machine_bandwidth() -> float:
    """Bytes read and written per second by a large copy, measured for under a second."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.ones(2**28 if device == "cuda" else 2**24, device=device)  # larger than caches: 1 GiB, 64 MiB
    target = torch.empty_like(source)
    best, end = float("inf"), time.perf_counter() + 0.3
    while time.perf_counter() < end:
        start = time.perf_counter()
        target.copy_(source)
        target[0].item()  # waits for the GPU
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best
