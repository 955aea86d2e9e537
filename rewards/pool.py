"""Worker processes that score groups while the engine generates the next ones.

A worker is a fresh interpreter that runs `main` below and knows the functions by name.
"""

import signal
import subprocess
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import LifoQueue

from rewards.call import Answers, Call, Caller, RewardError, Scores
from rewards.process import start


class WorkerError(Exception):
    """What a reward raised in a worker, with its traceback as text: the cause of a RewardError."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class WorkerPool:
    """Scores groups in `num_workers` processes, which start when they are first needed.

    A worker that dies, say by the system's memory killer, is replaced and its group is scored once more.
    """

    def __init__(self, calls: Sequence[Call], num_workers: int) -> None:
        self._names = ", ".join(call.name for call in calls)
        self._workers = [_Worker(calls) for _ in range(num_workers)]
        self._idle: LifoQueue[_Worker] = LifoQueue()  # last in, first out: no more processes than groups at once
        for worker in self._workers:
            self._idle.put(worker)
        # A thread per worker waits at its pipe; it costs nothing while it waits.
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="rewards")
        self._closed = False

    def submit(self, answers: Answers) -> Future[Scores]:
        return self._threads.submit(self._score, answers)

    def close(self) -> None:
        """Kill the workers, also in the middle of a group."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown(wait=True)
        for worker in self._workers:
            worker.stop()

    def _score(self, answers: Answers) -> Scores:
        worker = self._idle.get()
        exit_codes: list[int | None] = []
        try:
            while not self._closed and len(exit_codes) < 2:
                worker.start()
                try:
                    return worker.ask(answers)
                except (EOFError, OSError):  # the process has died
                    exit_codes.append(worker.stop())
        finally:
            self._idle.put(worker)
        raise RewardError(
            f"the worker process that computes {self._names} ended twice (exit codes {exit_codes}; -9: killed, often "
            f"for lack of memory) on {answers.describe(0)}. Fewer workers need less memory."
        )


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = calls
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process unless it runs."""
        if self._process is not None:
            return
        self._process, self._connection = start(__name__)
        self._is_new = True

    def ask(self, answers: Answers) -> Scores:
        """Have one group scored. EOFError or OSError when the process has died."""
        if self._is_new:
            self._connection.send(self._calls)
            self._is_new = False
        self._connection.send(answers)
        reply: Scores | tuple[str, str] = self._connection.recv()
        if isinstance(reply, tuple):
            message, trace = reply
            raise RewardError(message) from (WorkerError(trace) if trace else None)
        return reply

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def stop(self) -> int | None:
        """Make sure that the process is gone; returns its exit code, None if there was none."""
        if self._process is None:
            return None
        self._connection.close()
        self._process.kill()
        process, self._process = self._process, None
        return process.wait()


def main(fd: int) -> None:
    """The worker process: load the functions once, then score what arrives until the parent closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    connection = Connection(fd)
    calls: Sequence[Call] = connection.recv()
    score = Caller(calls)
    while True:
        try:
            answers: Answers = connection.recv()
        except EOFError:
            return
        try:
            reply = score(answers)
        except RewardError as error:
            cause = error.__cause__
            reply = (str(error), "".join(traceback.format_exception(cause)) if cause else "")
        connection.send(reply)
