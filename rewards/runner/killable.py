"""Worker processes for functions of hostile input: whatever an item does, it costs one worker and its time limit.

Limits are the kernel's: computing time (RLIMIT_CPU, so that a busy machine changes no result) and memory (RLIMIT_AS).
No signal handlers, no threads: works from any thread of any process, and a computation that holds the interpreter's
lock, or overflows in C, ends like any other. A worker that died is replaced when it is next needed.
"""

import atexit
import importlib
import logging
import math
import os
import resource
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from rewards.runner.process import start

logger = logging.getLogger(__name__)

_PATIENCE = 15  # wall seconds per second of computing time, before a worker that does not answer is killed


@dataclass(frozen=True, slots=True)
class Killed:
    """What an item that cost its worker results in: Killed("out of time")."""

    reason: str


class KillablePool:
    """Calls `package.module:function` with one item at a time, in up to `max_workers` processes.

    They start when first needed and end with this process. Calls from several threads wait for each other; a forked
    child starts workers of its own.
    """

    def __init__(self, function: str, *, cpu_seconds: int, memory_mb: int, max_workers: int) -> None:
        self._setup = (function, cpu_seconds, memory_mb)
        self._max_workers = max_workers
        self._patience = cpu_seconds * _PATIENCE
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._owner = os.getpid()
        atexit.register(self.close)

    def map(self, items: Sequence[Any]) -> list[Any]:
        """The function's result for each item, in order, or Killed; also for an exception, which is logged."""
        if os.getpid() != self._owner:
            self._owner, self._workers, self._lock = os.getpid(), [], threading.Lock()
        with self._lock:
            return self._map(items)

    def close(self) -> None:
        """End the workers; the next map starts new ones."""
        if os.getpid() == self._owner:
            for worker in self._workers:
                worker.stop()
            self._workers.clear()

    def pids(self) -> list[int]:
        """Process ids of the workers that run."""
        return [worker.process.pid for worker in self._workers]

    def _map(self, items: Sequence[Any]) -> list[Any]:
        results: list[Any] = [None] * len(items)
        lost: set[int] = set()  # items whose worker was killed by somebody else: they get a second one
        todo = deque(range(len(items)))
        idle = list(self._workers)
        busy: dict[Connection, tuple[_Worker, int, float]] = {}
        while todo or busy:
            while todo and (idle or len(self._workers) < self._max_workers):
                worker = idle.pop() if idle else self._start()
                index = todo.popleft()
                if not worker.send(items[index]):  # it died while idle
                    self._drop(worker)
                    todo.appendleft(index)
                    continue
                busy[worker.connection] = worker, index, time.monotonic() + self._patience
            for connection in _ready(busy):
                worker, index, _ = busy.pop(connection)
                results[index], alive = worker.receive()
                if alive:
                    idle.append(worker)
                    continue
                if worker.process.returncode == -signal.SIGKILL and not worker.expired and index not in lost:
                    lost.add(index)
                    todo.appendleft(index)
                self._drop(worker)
        return results

    def _start(self) -> "_Worker":
        worker = _Worker(self._setup)
        self._workers.append(worker)
        return worker

    def _drop(self, worker: "_Worker") -> None:
        worker.stop()
        self._workers.remove(worker)


def _ready(busy: "dict[Connection, tuple[_Worker, int, float]]") -> list[Connection]:
    """Connections with a reply; workers past their time are killed, which is one."""
    first = min(deadline for _, _, deadline in busy.values())
    ready = wait(list(busy), timeout=max(0.0, first - time.monotonic()))
    if not ready:
        for worker, _, deadline in busy.values():
            if deadline <= time.monotonic():
                worker.expired = True
                worker.process.kill()
    return [connection for connection in busy if connection in ready]


class _Worker:
    """The parent's end of one process."""

    def __init__(self, setup: tuple[str, int, int]) -> None:
        self.process, self.connection = start(__name__)
        self.expired = False  # killed by us, for its silence
        self.connection.send(setup)

    def send(self, item: Any) -> bool:
        try:
            self.connection.send(item)
        except OSError:
            return False
        return True

    def receive(self) -> tuple[Any, bool]:
        """The result, and whether the process goes on."""
        try:
            result, goes_on = self.connection.recv()
        except (EOFError, OSError):
            code = self.process.wait()
            return Killed("out of time" if code == -signal.SIGXCPU else f"ended the worker (exit code {code})"), False
        if isinstance(result, Killed) and goes_on:
            logger.error("%s", result.reason)
        return result, goes_on

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


def main(fd: int) -> None:
    """The worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    connection = Connection(fd)
    name, cpu_seconds, memory_mb = connection.recv()
    module, _, attribute = name.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        deadline = math.ceil(time.process_time()) + cpu_seconds
        resource.setrlimit(resource.RLIMIT_CPU, (deadline, resource.RLIM_INFINITY))
        try:
            reply = function(item), True
        except MemoryError:
            reply = Killed("out of memory"), False
        except Exception as error:  # a fault of ours: said, counted as unverifiable, and not the end of a run
            reply = Killed(f"fault: {type(error).__name__}: {error} ({str(item)[:300]!r})"), True
        connection.send(reply)
        if not reply[1]:
            return
