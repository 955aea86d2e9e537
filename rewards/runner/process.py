"""The parent's end of a worker process: a fresh interpreter that runs `rewards.runner.child` behind a pipe.

Not a multiprocessing child: those run the parent's __main__ again, and that may be a recipe.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from rewards.runner.child import Reply, Task

_START = (
    "import sys; sys.path[:] = sys.argv[4:]; from rewards.runner import child; child.main(*map(int, sys.argv[2:4]))"
)


START_SECONDS = 600  # for a process to start and load its function


class WorkerEndedError(Exception):
    """The process ended, or was killed at a time limit, before it replied."""

    def __init__(self, exit_code: int | None, *, out_of_time: bool) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code
        self.out_of_time = out_of_time


class Worker:
    """One worker process, started when needed and again after it ended.

    Start it from a thread that lives at least as long: the kernel kills the process when that thread ends.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        process = self._process
        return process and process.pid

    def start(self) -> None:
        """Start the process unless it runs."""
        if self._process is None:
            self._process, self._connection = _start(self._task)
            self._is_ready = False

    def ask(self, items: Sequence[Any], timeout: float | None) -> list[Reply]:
        """Replies to the first items, at least one; not later than `timeout` seconds after the process was ready.

        It has START_SECONDS to become ready.

        Raises:
            WorkerEndedError: the process ended, or was killed at the timeout.
        """
        try:
            if not self._is_ready:
                self._connection.send(self._task)
                if self._connection.poll(START_SECONDS):
                    self._connection.recv()
                    self._is_ready = True
            if self._is_ready:
                self._connection.send(items)
                if self._connection.poll(timeout):
                    return self._connection.recv()
        except (EOFError, OSError):
            exit_code = self.stop()
            out_of_time = self._task.cpu_seconds is not None and exit_code == -signal.SIGXCPU
            raise WorkerEndedError(exit_code, out_of_time=out_of_time) from None
        raise WorkerEndedError(self.stop(), out_of_time=True)

    def kill(self) -> None:
        """End the process; callable from any thread."""
        if process := self._process:  # the worker's own thread may set it to None
            process.kill()

    def stop(self) -> int | None:
        """End the process and wait for it; returns its exit code, None if it was not running."""
        if self._process is None:
            return None
        self._connection.close()
        self._process.kill()
        process, self._process = self._process, None
        return process.wait()


def _start(task: Task) -> tuple[subprocess.Popen[bytes], Connection]:
    """Start a process; its target shows up in its command line. Only its end of the pipe is passed on."""
    ours, theirs = Pipe()
    with theirs:
        command = [sys.executable, "-c", _START, task.target, str(theirs.fileno()), str(os.getpid()), *sys.path]
        environment = {**os.environ, "OMP_NUM_THREADS": str(task.threads)}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=environment)
    return process, ours
