"""Worker processes that score groups while the engine generates the next ones.

A worker is a fresh interpreter that runs `main` below and knows the functions by name.
"""

import math
import signal
import subprocess
import threading
import traceback
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import LifoQueue

from rewards.call import Answers, Call, Caller, RewardError, Scores
from rewards.process import start

BATCH_SECONDS = 0.01  # of scoring in one message, beside which the message itself costs little


class WorkerError(Exception):
    """What a reward raised in a worker, with its traceback as text: the cause of a RewardError."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


_Job = tuple[Answers, Future[Scores]]


class WorkerPool:
    """Scores groups in `num_workers` processes, which start when they are first needed.

    Groups that wait and are scored fast travel in one message, which else would cost more than the scoring. A worker
    that dies, say by the system's memory killer, is replaced and its groups are scored once more, each alone.
    """

    def __init__(self, calls: Sequence[Call], num_workers: int) -> None:
        self._names = ", ".join(call.name for call in calls)
        self._workers = [_Worker(calls) for _ in range(num_workers)]
        self._idle: LifoQueue[_Worker] = LifoQueue()  # last in, first out: no more processes than groups at once
        for worker in self._workers:
            self._idle.put(worker)
        # A thread per worker waits at its pipe; it costs nothing while it waits.
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="rewards")
        self._lock = threading.Lock()
        self._waiting: deque[_Job] = deque()
        self._serving = 0  # threads that will look for waiting groups before they rest
        self._seconds = BATCH_SECONDS  # that the last groups took, each
        self._closed = False

    def submit(self, answers: Answers) -> Future[Scores]:
        future: Future[Scores] = Future()
        with self._lock:
            self._waiting.append((answers, future))
            messages = math.ceil(len(self._waiting) * self._seconds / BATCH_SECONDS)
            if wake := self._serving < min(messages, len(self._workers)):
                self._serving += 1
        if wake:
            self._threads.submit(self._serve)
        return future

    def close(self) -> None:
        """Kill the workers, also in the middle of a group."""
        with self._lock:
            self._closed = True
            for worker in self._workers:
                worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.stop()

    def _serve(self) -> None:
        """Score groups until none waits."""
        while jobs := self._take():
            worker = self._idle.get()
            try:
                self._score(worker, [job for job in jobs if job[1].set_running_or_notify_cancel()])
            except Exception as error:
                for _, future in jobs:
                    if not future.done():
                        future.set_exception(error)
            finally:
                self._idle.put(worker)

    def _take(self) -> list[_Job]:
        """Of what waits, as much as takes BATCH_SECONDS to score."""
        with self._lock:
            count = min(len(self._waiting), max(1, int(BATCH_SECONDS / self._seconds)))
            if not count:
                self._serving -= 1
            return [self._waiting.popleft() for _ in range(count)]

    def _score(self, worker: "_Worker", jobs: Sequence[_Job], exit_codes: Sequence[int | None] = ()) -> None:
        try:
            with self._lock:
                if self._closed or not jobs:  # nobody waits any more
                    return
                worker.start()
            replies = worker.ask([answers for answers, _ in jobs])
        except (EOFError, OSError):  # the process has died
            exit_codes = [*exit_codes, worker.stop()]
            if len(exit_codes) == 2:
                raise self._died(exit_codes, jobs[0][0]) from None
            for job in jobs:
                self._score(worker, [job], exit_codes)
            return
        for (_, future), reply in zip(jobs, replies, strict=True):
            if isinstance(reply, Scores):
                future.set_result(reply)
                self._seconds = max(sum(reply.seconds), 1e-6)
            else:
                future.set_exception(_error(*reply))

    def _died(self, exit_codes: Sequence[int | None], answers: Answers) -> RewardError:
        return RewardError(
            f"the worker process that computes {self._names} ended twice (exit codes {exit_codes}; -9: killed, often "
            f"for lack of memory) on {answers.describe(0)}. Fewer workers need less memory."
        )


_Reply = Scores | tuple[str, str]  # or message and traceback of a RewardError


def _error(message: str, trace: str) -> RewardError:
    error = RewardError(message)
    error.__cause__ = WorkerError(trace) if trace else None
    return error


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

    def ask(self, groups: Sequence[Answers]) -> list[_Reply]:
        """Have groups scored. EOFError or OSError when the process has died."""
        if self._is_new:
            self._connection.send(self._calls)
            self._is_new = False
        self._connection.send(groups)
        return self._connection.recv()

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
            groups: Sequence[Answers] = connection.recv()
        except EOFError:
            return
        connection.send([_reply(score, answers) for answers in groups])


def _reply(score: Caller, answers: Answers) -> _Reply:
    try:
        return score(answers)
    except RewardError as error:
        cause = error.__cause__
        return str(error), "".join(traceback.format_exception(cause)) if cause else ""
