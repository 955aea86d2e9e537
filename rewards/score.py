"""Groups in, scored groups out: runs the reward functions of a recipe and sums what they return."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewards.call import Answers, Call, Caller, RewardError, Values
from rewards.load import RewardFunction
from rewards.pool import WorkerPool
from rollout.types import Group

__all__ = ["RewardError", "RewardSpec", "Rewards", "ScoredGroup"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSpec:
    """One line of a recipe's rewards.

    RewardSpec(
        name="format",                      # in metrics: rewards/format/mean; None: the function's own name
        function="format",                  # a built-in, package.module:function, path/to/file.py:function, a callable
        weight=0.5,
        options={"think_prefilled": True},  # keyword arguments, the same for every call
    )
    """

    function: str | RewardFunction
    weight: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group with its rewards.

    ScoredGroup(
        group,
        rewards=[1.5, 0.5],                                      # weighted sums; NaN where no function applied
        breakdown={"accuracy": [1.0, 0.0], "format": [1.0, 1.0]},  # before weights; None: does not apply
    )
    """

    group: Group
    rewards: list[float]
    breakdown: dict[str, list[float | None]]


class Rewards:
    """The reward functions of a run.

    Functions given as strings run in `num_workers` processes (0: in this one), which start with the first group;
    callables always run in this process. All are loaded here, so that a wrong name is an error before training.

    Args:
        specs: the functions, at least one, each with its own name.
        num_workers: processes; two to four are plenty unless a function is slow.
        base_dir: where relative paths of `path/to/file.py:function` start; None: the working directory.
    """

    def __init__(self, specs: Sequence[RewardSpec], *, num_workers: int, base_dir: Path | None = None) -> None:
        self.names = [spec.name or _own_name(spec.function) for spec in specs]
        self._weights = [spec.weight for spec in specs]
        for name in self.names:
            if self.names.count(name) > 1:
                raise ValueError(
                    f"reward {name!r} is listed more than once, so that its metrics would be mixed up. "
                    "List it once, or wrap it in a function of another name."
                )
        calls = [
            Call(name, spec.function, spec.options, base_dir) for name, spec in zip(self.names, specs, strict=True)
        ]
        self._here = [call for call in calls if num_workers == 0 or not isinstance(call.function, str)]
        remote = [call for call in calls if call not in self._here]
        for call in remote:
            call.load()
        self._caller = Caller(self._here)
        self._remote_names = [call.name for call in remote]
        self._pool = WorkerPool(remote, num_workers) if remote else None

    def score(self, groups: Iterable[Group]) -> Iterator[ScoredGroup]:
        """Send each group to the workers as it arrives; yield scored groups, in the same order, as they are ready.

        The reward of a completion is the sum of weight x value over the functions that did not return None; where all
        did, it is NaN: the sample has no advantage and enters no mean (as in TRL). RewardError when a function raises,
        returns another number of values than completions, or a value that is not a finite number.
        """
        waiting: deque[tuple[Group, Future[list[Values]] | None, list[Values]]] = deque()
        try:
            for group in groups:
                answers = Answers.of(group)
                remote = self._pool.submit(answers) if self._pool else None
                waiting.append((group, remote, self._caller(answers)))
                while waiting and (waiting[0][1] is None or waiting[0][1].done()):
                    yield self._finish(*waiting.popleft())
            while waiting:
                yield self._finish(*waiting.popleft())
        finally:  # left early or by an error: nothing that nobody waits for is started
            for _, remote, _ in waiting:
                if remote is not None:
                    remote.cancel()

    def close(self) -> None:
        """End the worker processes."""
        self._caller.close()
        if self._pool is not None:
            self._pool.close()

    def _finish(self, group: Group, remote: Future[list[Values]] | None, here: list[Values]) -> ScoredGroup:
        values = dict(zip([call.name for call in self._here], here, strict=True))
        if remote is not None:
            values |= zip(self._remote_names, remote.result(), strict=True)
        breakdown = {name: values[name] for name in self.names}
        rewards = [self._sum(row) for row in zip(*breakdown.values(), strict=True)]
        return ScoredGroup(group, rewards, breakdown)

    def _sum(self, values: Sequence[float | None]) -> float:
        terms = [weight * value for weight, value in zip(self._weights, values, strict=True) if value is not None]
        return sum(terms) if terms else math.nan


def _own_name(function: str | RewardFunction) -> str:
    if isinstance(function, str):
        return function.rpartition(":")[2]
    return getattr(function, "__name__", type(function).__name__)
