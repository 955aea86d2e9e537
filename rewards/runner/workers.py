"""A pool of worker processes for functions that may be slow, hang, run out of memory or crash."""

import logging
import math
import os
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from rewards.runner.child import BATCH_SECONDS, Reply, Task
from rewards.runner.process import Worker, WorkerEndedError

logger = logging.getLogger(__name__)


class WorkerError(Exception):
    """Why an item has no result: WorkerError("time", "out of time").

    kind: "time" and "memory": the item exceeded a limit. "died": it ended two workers, with these exit codes.
        "fault": the function raised an exception. "closed": the pool was closed first.
    """

    def __init__(
        self, kind: Literal["time", "memory", "died", "fault", "closed"], reason: str, exit_codes: Sequence[int] = ()
    ) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.exit_codes = list(exit_codes)


@dataclass(slots=True)
class _Job:
    item: Any
    future: Future[Any] = field(default_factory=Future)
    exit_codes: list[int] = field(default_factory=list)  # of workers that ended while they had this item


class WorkerPool:
    """Applies a function to items in up to `max_workers` processes, which start when first needed.

    An item whose worker dies is tried once more, alone, in a new worker; an item that exceeds a limit is not. Items
    that wait and are fast share a message, which would otherwise cost more than the work; slow ones are handed back
    for other workers to take. With a CPU or memory limit each item travels alone, so that it costs no other its worker.

    Every worker has a thread that waits at its pipe. All methods may be called from any thread; a forked child gets
    workers of its own. Workers die with this process, however it ends.

    Args:
        target: `package.module:function`, called with one item in the worker.
        setup: if given, the target is called with it once per worker and returns the function of one item.
        cpu_seconds: computing time per item (RLIMIT_CPU), so that a busy machine changes no result.
        memory_mb: address space of a worker (RLIMIT_AS).
        timeout: wall seconds per item, not counting the worker's start; None: no limit.
    """

    def __init__(
        self,
        target: str,
        *,
        max_workers: int,
        setup: Any = None,
        cpu_seconds: int | None = None,
        memory_mb: int | None = None,
        timeout: float | None = None,
    ) -> None:
        given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
        cores = int(given or len(os.sched_getaffinity(0)))
        # Together no more than there are cores: the threads of a reward model would spin while they wait for one.
        self._task = Task(target, setup, cpu_seconds, memory_mb, threads=max(1, cores // max_workers))
        self._max_workers = max_workers
        self._timeout = timeout
        self._batches = cpu_seconds is None and memory_mb is None
        self._reset()

    def _reset(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._waiting: deque[_Job] = deque()
        self._workers: list[Worker] = []
        self._threads: list[threading.Thread] = []
        self._idle: list[threading.Semaphore] = []  # of threads without work; the last to rest is the first to wake
        self._seconds = BATCH_SECONDS  # estimate per item; rises at once and falls slowly, since kinds may alternate
        self._closed = False

    def submit(self, item: Any) -> Future[Any]:
        """The function's result for an item; the future raises WorkerError if there is none."""
        if os.getpid() != self._owner:
            self._reset()
        job = _Job(item)
        with self._lock:
            if self._closed:
                job.future.set_exception(_closed())
            else:
                self._waiting.append(job)
                self._wake()
        return job.future

    def map(self, items: Iterable[Any]) -> list[Any]:
        """The function's result for each item, in order, with a WorkerError in place of a missing one."""
        futures = [self.submit(item) for item in items]
        try:
            return [_result(future) for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Kill the workers, even in the middle of an item. Items without a result fail, as do later ones."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            self._closed = True
            for worker in self._workers:
                worker.kill()
            while self._idle:
                self._idle.pop().release()
        for thread in self._threads:
            thread.join()

    def pids(self) -> list[int]:
        """Process ids of the running workers."""
        return [pid for worker in self._workers if (pid := worker.pid) is not None]

    def _wake(self) -> None:
        """Have one more thread serve if enough items wait for it; it wakes the next."""
        messages = math.ceil(len(self._waiting) * self._seconds / BATCH_SECONDS)
        if len(self._workers) - len(self._idle) >= min(messages, self._max_workers):
            return
        if self._idle:
            self._idle.pop().release()
            return
        worker = Worker(self._task)
        # A daemon, so that a hanging item does not keep the interpreter from exiting.
        thread = threading.Thread(target=self._serve, args=(worker,), name="worker-pool", daemon=True)
        self._workers.append(worker)
        self._threads.append(thread)
        thread.start()

    def _serve(self, worker: Worker) -> None:
        while jobs := self._take():
            try:
                self._run(worker, jobs)
            except Exception as error:  # such as an item that cannot be pickled
                for job in jobs:
                    if not job.future.done():
                        job.future.set_exception(error)
        worker.stop()

    def _take(self) -> list[_Job]:
        """Waiting jobs worth BATCH_SECONDS of work; waits for them. Empty once the pool is closed."""
        turn = threading.Semaphore(0)
        while True:
            with self._lock:
                if self._waiting:
                    count = min(len(self._waiting), max(1, int(BATCH_SECONDS / self._seconds)))
                    jobs = [self._waiting.popleft() for _ in range(count)]
                    self._wake()
                    return jobs
                if self._closed:
                    return []
                self._idle.append(turn)
            turn.acquire()

    def _run(self, worker: Worker, jobs: Sequence[_Job]) -> None:
        # A job that was handed back or is tried again runs already; one that was cancelled is dropped.
        jobs = [job for job in jobs if job.future.running() or job.future.set_running_or_notify_cancel()]
        if not jobs:
            return
        with self._lock:
            if not self._closed:
                worker.start()
        try:
            if self._closed:
                raise WorkerEndedError(None, out_of_time=False)
            replies = worker.ask([job.item for job in jobs], self._timeout)
        except WorkerEndedError as end:
            self._run_again(worker, jobs, end)
            return
        with self._lock:
            self._waiting.extendleft(reversed(jobs[len(replies) :]))
        for job, reply in zip(jobs, replies, strict=False):
            self._settle(job, reply)
        if replies[-1].kind == "memory":
            worker.stop()

    def _run_again(self, worker: Worker, jobs: Sequence[_Job], end: WorkerEndedError) -> None:
        """Each job alone, unless it is known to be at fault."""
        for job in jobs:
            job.exit_codes.append(end.exit_code or 0)
            if self._closed:
                job.future.set_exception(_closed())
            elif end.out_of_time and len(jobs) == 1:
                job.future.set_exception(WorkerError("time", "out of time"))
            elif len(job.exit_codes) == 2:
                reason = f"ended the worker (exit code {end.exit_code})"
                job.future.set_exception(WorkerError("died", reason, job.exit_codes))
            else:
                self._run(worker, [job])

    def _settle(self, job: _Job, reply: Reply) -> None:
        if reply.kind == "memory":
            job.future.set_exception(WorkerError("memory", "out of memory"))
        elif reply.kind == "fault":
            fault, trace = reply.value
            failure = WorkerError("fault", f"fault: {fault}")
            failure.__cause__ = OriginalError(trace)
            logger.error("%s", failure.reason)
            job.future.set_exception(failure)
        else:
            if self._batches:
                self._seconds = max(reply.seconds, 0.9 * self._seconds, 1e-6)
            job.future.set_result(reply.value)


class OriginalError(Exception):
    """A traceback from a worker, as text: the cause of an error raised here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _closed() -> WorkerError:
    return WorkerError("closed", "the pool is closed")


def _result(future: Future[Any]) -> Any:
    try:
        return future.result()
    except WorkerError as failure:
        return failure
