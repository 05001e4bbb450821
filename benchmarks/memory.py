"""Peak memory, measured in separate processes."""

from __future__ import annotations

import multiprocessing
import multiprocessing.queues
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def peak() -> float:
    """Peak memory of this process in MiB; with a GPU, that on the GPU."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else resident()


def resident() -> float:
    """Peak main memory of this process in MiB."""
    status = Path("/proc/self/status")  # what getrusage says begins with what the process had that started this one
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    lines = status.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def in_process(work: Callable[..., float], *given: Any) -> float:
    """The result of a function in a new process."""
    context = multiprocessing.get_context("spawn")
    result: multiprocessing.queues.Queue[float] = context.Queue()
    process = context.Process(target=_put, args=(result, work, *given))
    process.start()
    found = result.get()
    process.join()
    return found


def _put(result: multiprocessing.queues.Queue[float], work: Callable[..., float], *given: Any) -> None:
    result.put(work(*given))
