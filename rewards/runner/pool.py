"""Worker processes that score groups while the engine generates the next ones.

A worker is a fresh interpreter that runs `main` below and knows the functions by name.
"""

import math
import signal
import subprocess
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import LifoQueue

from rewards.runner.call import Answers, Call, Caller, RewardError, Scores
from rewards.runner.process import start

BATCH_SECONDS = 0.01  # of scoring in one message, beside which the message itself costs little


class WorkerError(Exception):
    """What a reward raised in a worker, with its traceback as text: the cause of a RewardError."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


_Job = tuple[Answers, Future[Scores]]


class WorkerPool:
    """Scores groups in `num_workers` processes, which start when they are first needed.

    Groups that wait and are scored fast travel in one message, which else would cost more than the scoring; those that
    turn out to be slow come back from it for others to take. A worker that dies, say by the system's memory killer, is
    replaced and its groups are scored once more, each alone.
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
        self._seconds = BATCH_SECONDS  # that a group takes; rises at once and falls slowly, for kinds may alternate
        self._closed = False

    def submit(self, answers: Answers) -> Future[Scores]:
        future: Future[Scores] = Future()
        with self._lock:
            self._waiting.append((answers, future))
            self._wake()
        return future

    def close(self) -> None:
        """Kill the workers, also in the middle of a group. What is not scored is an error to those who wait for it."""
        with self._lock:
            self._closed = True
            for worker in self._workers:
                worker.kill()
        self._threads.shutdown()
        for worker in self._workers:
            worker.stop()

    def _wake(self) -> None:
        """Have one more thread serve if there are messages for it; it wakes the next."""
        messages = math.ceil(len(self._waiting) * self._seconds / BATCH_SECONDS)
        if self._serving < min(messages, len(self._workers)):
            self._serving += 1
            self._threads.submit(self._serve)

    def _serve(self) -> None:
        """Score groups until none waits."""
        while jobs := self._take():
            worker = self._idle.get()
            try:
                wanted = [job for job in jobs if job[1].running() or job[1].set_running_or_notify_cancel()]
                self._score(worker, wanted)
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
            jobs = [self._waiting.popleft() for _ in range(count)]
            if not jobs:
                self._serving -= 1
            elif not self._closed:
                self._wake()
            return jobs

    def _score(self, worker: "_Worker", jobs: Sequence[_Job], exit_codes: Sequence[int | None] = ()) -> None:
        try:
            with self._lock:
                if not jobs:  # nobody waits any more
                    return
                if self._closed:
                    raise RewardError("the reward workers were closed before this group was scored.")
                worker.start()
            replies = worker.ask([answers for answers, _ in jobs])
        except (EOFError, OSError):  # the process has died
            exit_codes = [*exit_codes, worker.stop()]
            if len(exit_codes) == 2:
                raise self._died(exit_codes, jobs[0][0]) from None
            for job in jobs:
                self._score(worker, [job], exit_codes)
            return
        with self._lock:
            self._waiting.extendleft(reversed(jobs[len(replies) :]))
        for (_, future), reply in zip(jobs, replies, strict=False):
            if isinstance(reply, Scores):
                self._seconds = max(sum(reply.seconds), 0.9 * self._seconds, 1e-6)
                future.set_result(reply)
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
        """Have groups scored: the first of them, at least one. EOFError or OSError when the process has died."""
        if self._is_new:
            self._connection.send(self._calls)
            self._is_new = False
        self._connection.send(groups)
        return self._connection.recv()

    def kill(self) -> None:
        if process := self._process:  # its own thread may set it to None
            process.kill()

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
        replies: list[_Reply] = []
        ends = time.perf_counter() + BATCH_SECONDS
        for answers in groups:
            replies.append(_reply(score, answers))
            if time.perf_counter() > ends:
                break
        connection.send(replies)


def _reply(score: Caller, answers: Answers) -> _Reply:
    try:
        return score(answers)
    except RewardError as error:
        cause = error.__cause__
        return str(error), "".join(traceback.format_exception(cause)) if cause else ""
