"""The worker process: load the target function once, then apply it to items until the parent closes the pipe."""

import ctypes
import math
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

from rollout.support.loading import load_object

BATCH_SECONDS = 0.01  # of work per message: enough that the message itself costs little
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Task:
    """What a pool's workers run: Task("rewards.answers.maths.equivalence:verify", cpu_seconds=2, memory_mb=2048)."""

    target: str  # module:function of one item; with `setup`, of the setup, and it returns the function of one item
    setup: Any = None
    cpu_seconds: int | None = None  # per item
    memory_mb: int | None = None  # of address space
    threads: int = 1  # of numeric libraries


@dataclass(frozen=True, slots=True)
class Reply:
    """Reply("done", 1.0, 0.002), Reply("memory", None, 0.5), Reply("fault", ("IndexError: …", "Traceback …"), 0.1)."""

    kind: Literal["done", "memory", "fault"]
    value: Any
    seconds: float


def main(fd: int, parent: int) -> None:
    """Serve the parent process through the descriptor `fd`."""
    _end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    connection = Connection(fd)
    task: Task = connection.recv()
    function = load_object(task.target, kind="worker target")
    if task.setup is not None:
        function = function(task.setup)
    if task.memory_mb is not None:
        resource.setrlimit(resource.RLIMIT_AS, (task.memory_mb << 20, task.memory_mb << 20))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection.send("ready")
    while True:
        try:
            items: Sequence[Any] = connection.recv()
        except EOFError:
            return
        replies = _work(function, items, task.cpu_seconds)
        connection.send(replies)
        if replies[-1].kind == "memory":  # little would fit into what is left
            return


def _end_with(parent: int) -> None:
    """Have the kernel kill this process with its parent. The pipe's EOF alone would wait for the item in work."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def _work(function: Callable[[Any], Any], items: Sequence[Any], cpu_seconds: int | None) -> list[Reply]:
    """Replies to the first items: as many as fit into BATCH_SECONDS, at least one."""
    replies: list[Reply] = []
    ends = time.perf_counter() + BATCH_SECONDS
    for item in items:
        if cpu_seconds is not None:
            limit = math.ceil(time.process_time()) + cpu_seconds
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        replies.append(_reply(function, item))
        if time.perf_counter() > ends or replies[-1].kind == "memory":
            break
    return replies


@contextmanager
def uncounted() -> Iterator[None]:
    """A block whose CPU time does not count against the item's limit, such as an import that only some items need.

    The first import after an installation also compiles the modules, which can take longer than an item may.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    started = time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
    try:
        yield
    finally:
        if soft != hard:
            soft += math.ceil(time.process_time() - started)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _reply(function: Callable[[Any], Any], item: Any) -> Reply:
    started = time.perf_counter()
    try:
        return Reply("done", function(item), time.perf_counter() - started)
    except MemoryError:
        return Reply("memory", None, time.perf_counter() - started)
    except Exception as error:
        fault = f"{type(error).__name__}: {error} ({str(item)[:300]!r})"
        return Reply("fault", (fault, traceback.format_exc()), time.perf_counter() - started)
