"""Groups in, scored groups out: runs the reward functions of a recipe and sums what they return."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewards.runner.call import Answers, Call, Caller, RewardError, Scores, TrainerState
from rewards.runner.load import RewardFunction, required_columns
from rewards.runner.pool import WorkerPool
from rollout.types import Group, Problem

__all__ = ["RewardError", "RewardSpec", "Rewards", "ScoredGroup", "TrainerState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSpec:
    """One line of a recipe's rewards.

    RewardSpec(
        name="accuracy",                # in metrics: rewards/accuracy/mean; None: the function's own name
        function="accuracy",            # a built-in, package.module:function, path/to/file.py:function, a callable
        weight=0.5,
        options={"answer_in": "box"},   # keyword arguments, the same for every call
        requires="format",              # counts 0 unless that reward is above 0.5 for the completion
        data_sources=["gsm8k"],         # for problems whose column data_source is one of these; None: for all
    )
    """

    function: str | RewardFunction
    weight: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    requires: str | None = None
    data_sources: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group with its rewards.

    ScoredGroup(
        group,
        rewards=[1.5, 0.0],                                      # weighted sums; NaN where no function applied
        breakdown={"accuracy": [1.0, 1.0], "format": [1.0, 0.0]},  # as the functions say; None: does not apply
        gated={"accuracy": [False, True]},                       # rewards with a gate: True where it is shut
        metrics={"accuracy/unverifiable": [0.5]},                # what the functions gave to log_metric
        extras={"gold_parsed": ["[42]", "[42]"]},                # and to log_extra, one value for each completion
        seconds={"accuracy": 0.004, "format": 0.001},            # that the functions took
    )
    """

    group: Group
    rewards: list[float]
    breakdown: dict[str, list[float | None]]
    gated: dict[str, list[bool]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    extras: dict[str, list[Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def counted(self) -> dict[str, list[float | None]]:
        """What enters the sum, before weights: the breakdown, with 0 behind a shut gate."""
        return _counted(self.breakdown, self.gated)


class Rewards:
    """The reward functions of a run.

    Functions given as strings run in `num_workers` processes (0: in this one), which start with the first group;
    callables always run in this process. All are loaded here, so that a wrong name is an error before training.

    Args:
        specs: the functions, at least one, each with its own name.
        num_workers: processes; two to four are plenty unless a function is slow.
        base_dir: where relative paths of `path/to/file.py:function` start; None: the working directory.

    Attributes:
        names: of the functions, in order.
        weights: theirs.
        state: what functions get as `trainer_state`; the trainer sets it before each rollout.
    """

    def __init__(self, specs: Sequence[RewardSpec], *, num_workers: int, base_dir: Path | None = None) -> None:
        self.names = [spec.name or _own_name(spec.function) for spec in specs]
        self.weights = [spec.weight for spec in specs]
        self.state = TrainerState()
        self._gates = {name: spec.requires for name, spec in zip(self.names, specs, strict=True) if spec.requires}
        _check_names(self.names, self._gates)
        self._calls = [
            Call(
                name,
                spec.function,
                spec.options,
                base_dir,
                None if spec.data_sources is None else frozenset(spec.data_sources),
            )
            for name, spec in zip(self.names, specs, strict=True)
        ]
        self._loaded = [call.load() for call in self._calls]
        self._needed = [required_columns(function, options) for function, options in self._loaded]
        here = [call for call in self._calls if num_workers == 0 or not isinstance(call.function, str)]
        remote = [call for call in self._calls if call not in here]
        self._caller = Caller(here)
        self._order = [call.name for call in (*here, *remote)]
        self._pool = WorkerPool(remote, num_workers) if remote else None

    @property
    def data_sources(self) -> set[str]:
        """All that the specs name."""
        return {source for call in self._calls for source in call.data_sources or ()}

    @property
    def only_for_sources(self) -> bool:
        """Whether every reward is for some data sources alone."""
        return all(call.data_sources is not None for call in self._calls)

    def check(self, problem: Problem) -> dict[str, str | None]:
        """Whether rewards can judge answers to this problem: {"format": None, "accuracy": "the gold is empty"}.

        Of each reward that is for this problem, what its `check_columns(columns) -> str | None` says, None where the
        function has none. ValueError where a column that a function cannot do without is missing.
        """
        reasons: dict[str, str | None] = {}
        for call, (function, options), needed in zip(self._calls, self._loaded, self._needed, strict=True):
            if not call.applies_to(problem):
                continue
            for column in needed:
                if column not in problem.columns:
                    raise ValueError(
                        f"reward {call.name!r} reads the column {column!r}, and problem {problem.id!r} has "
                        f"{', '.join(problem.columns) or 'none'}. Name it: columns: {{{column}: …}}."
                    )
            check = getattr(function, "check_columns", None)
            reasons[call.name] = None if check is None else check({**problem.columns, **options})
        return reasons

    def score(self, groups: Iterable[Group]) -> Iterator[ScoredGroup]:
        """Send each group to the workers as it arrives; yield scored groups, in the same order, as they are ready.

        The reward of a completion is the sum of weight x value over the functions that did not return None; where all
        did, it is NaN: the sample has no advantage and enters no mean (as in TRL). RewardError when a function raises,
        returns another number of values than completions, or a value that is not a finite number.
        """
        waiting: deque[tuple[Group, Future[Scores] | None, Scores]] = deque()
        try:
            for group in groups:
                answers = Answers.of(group, self.state)
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

    def _finish(self, group: Group, remote: Future[Scores] | None, here: Scores) -> ScoredGroup:
        parts = [here] if remote is None else [here, remote.result()]
        values = dict(zip(self._order, (v for part in parts for v in part.values), strict=True))
        seconds = dict(zip(self._order, (s for part in parts for s in part.seconds), strict=True))
        metrics: dict[str, list[float]] = {}
        for name, logged in (item for part in parts for item in part.metrics.items()):
            metrics.setdefault(name, []).extend(logged)
        breakdown = {name: values[name] for name in self.names}
        gated = {name: [not _holds(v) for v in breakdown[gate]] for name, gate in self._gates.items()}
        return ScoredGroup(
            group,
            rewards=[self._sum(row) for row in zip(*_counted(breakdown, gated).values(), strict=True)],
            breakdown=breakdown,
            gated=gated,
            metrics=metrics,
            extras={column: logged for part in parts for column, logged in part.extras.items()},
            seconds={name: seconds[name] for name in self.names},
        )

    def _sum(self, values: Sequence[float | None]) -> float:
        terms = [weight * value for weight, value in zip(self.weights, values, strict=True) if value is not None]
        return sum(terms) if terms else math.nan


def _counted(breakdown: dict[str, list[float | None]], gated: dict[str, list[bool]]) -> dict[str, list[float | None]]:
    behind = {
        name: [
            0.0 if is_shut and value is not None else value
            for value, is_shut in zip(breakdown[name], shut, strict=True)
        ]
        for name, shut in gated.items()
    }
    return {name: behind.get(name, values) for name, values in breakdown.items()}


def _holds(value: float | None) -> bool:
    return value is not None and value > 0.5


def _check_names(names: Sequence[str], gates: dict[str, str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"reward {name!r} is listed more than once, so that its metrics would be mixed up. "
                "List it once, or give each a name of its own."
            )
    for name, gate in gates.items():
        if gate not in names or gate == name:
            others = ", ".join(other for other in names if other != name) or "none"
            raise ValueError(f"reward {name!r} requires {gate!r}, which is no other reward of this run ({others}).")


def _own_name(function: str | RewardFunction) -> str:
    if isinstance(function, str):
        return function.rpartition(":")[2]
    return getattr(function, "__name__", type(function).__name__)
