"""Calling reward functions in worker processes, so that groups are scored while the engine generates the next ones."""

import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from rewards.runner.call import Answers, Call, Caller, RewardError, Scores, out_of_time
from rewards.runner.workers import OriginalError, WorkerError, WorkerPool

_GRACE = 5.0  # seconds after the limit, when the worker has not interrupted the function, as in C code: it is killed


@dataclass(frozen=True, slots=True)
class Raised:
    """A RewardError on its way out of a worker: its message, and the traceback of its cause, if any."""

    message: str
    trace: str


class RemoteCaller:
    """`rewards.runner.call.Caller` in `num_workers` processes, with a time limit per group in seconds (None: none)."""

    def __init__(self, calls: Sequence[Call], num_workers: int, timeout: float | None) -> None:
        self._names = [call.name for call in calls]
        self._timeout = timeout
        self._pool = WorkerPool(
            f"{__name__}:scorer",
            setup=(calls, timeout),
            max_workers=num_workers,
            timeout=None if timeout is None else timeout + _GRACE,
        )

    def submit(self, answers: Answers) -> Future[Scores | Raised]:
        return self._pool.submit(answers)

    def result(self, future: Future[Scores | Raised], answers: Answers) -> Scores:
        """The scores of a submitted group; RewardError if a function, its worker or the time limit failed it."""
        try:
            reply = future.result()
        except WorkerError as failure:
            if failure.kind == "fault":
                raise
            raise RewardError(self._explain(failure, answers)) from None
        if isinstance(reply, Raised):
            raise RewardError(reply.message) from (OriginalError(reply.trace) if reply.trace else None)
        return reply

    def close(self) -> None:
        """Kill the workers, even in the middle of a group."""
        self._pool.close()

    def _explain(self, failure: WorkerError, answers: Answers) -> str:
        names = ", ".join(map(repr, self._names))
        if failure.kind == "closed":
            return "the reward workers were closed before this group was scored."
        if failure.kind == "time":
            return out_of_time(f"one of the rewards {names}", self._timeout or 0, answers)
        return (
            f"the worker process that computes reward {names} died twice (exit codes {failure.exit_codes}; -9: killed, "
            f"often for lack of memory).\nIt was given {answers.describe(0)}. Use fewer workers if memory is short."
        )


def scorer(setup: tuple[Sequence[Call], float | None]) -> Callable[[Answers], Scores | Raised]:
    """In the worker: the function that scores one group."""
    caller = Caller(*setup)

    def score(answers: Answers) -> Scores | Raised:
        try:
            return caller(answers)
        except RewardError as error:
            cause = error.__cause__
            return Raised(str(error), "".join(traceback.format_exception(cause)) if cause else "")

    return score
