"""Groups in, scored groups out: run a recipe's reward functions and sum what they return."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewards.runner.call import Answers, Call, Caller, RewardError, Scores, TrainerState
from rewards.runner.limit import OutOfTime, time_limit
from rewards.runner.load import (
    ON_REQUEST,
    PASSED,
    RewardFunction,
    declares_spans,
    option_names,
    required_columns,
    run_check,
)
from rewards.runner.remote import Raised, RemoteCaller
from rewards.runner.values import Decode, Spans, Steps, steps_of
from rollout.types import Group, Problem

__all__ = ["RewardError", "RewardSpec", "Rewards", "ScoredGroup", "Submitted", "TrainerState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSpec:
    """One entry of a recipe's rewards.

    RewardSpec(
        name="accuracy",                # in metrics: rewards/accuracy/mean; None: the function's own name
        function="accuracy",            # a built-in, package.module:function, path/to/file.py:function, a callable
        weight=0.5,
        options={"answer_in": "box"},   # keyword arguments of every call
        requires="format",              # counts as 0 unless that reward exceeds 0.5 for the completion
        data_sources=["gsm8k"],         # only for problems with one of these in column data_source; None: all
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
        rewards=[1.5, 0.0],                                      # weighted sums; NaN if no function applied
        breakdown={"accuracy": [1.0, 1.0], "format": [1.0, 0.0]},  # unweighted values; None: does not apply
        gated={"accuracy": [False, True]},                       # for rewards with a gate: True if it is closed
        metrics={"accuracy/unverifiable": [0.5]},                # values passed to log_metric
        extras={"accuracy/verdict": ["right", "wrong"]},         # and to log_extra, one value per completion
        seconds={"accuracy": 0.004, "format": 0.001},            # spent in each function
        steps=[],  # if a function with a weight returned spans: [[(token, reward), …], …]
    )
    """

    group: Group
    rewards: list[float]
    breakdown: dict[str, list[float | None]]
    gated: dict[str, list[bool]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    extras: dict[str, list[Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    steps: list[Steps] = field(default_factory=list)  # weighted; see rewards.runner.values.steps_of

    @property
    def counted(self) -> dict[str, list[float | None]]:
        """The values that enter the weighted sum: the breakdown, with 0 behind a closed gate."""
        return _counted(self.breakdown, self.gated)


class Rewards:
    """A run's reward functions.

    Functions named by strings run in `num_workers` processes (0: in this one), which start with the first group;
    callables always run in this process. All functions are loaded here, so that a wrong name fails before training.

    Args:
        specs: functions, each with its own name; none: every reward is NaN.
        num_workers: processes; two to four suffice unless a function is slow.
        base_dir: where relative paths in `path/to/file.py:function` start; None: the working directory.
        timeout: wall seconds the functions of a process may take per group, together, and each to be loaded; None: no
            limit. In this process it cannot interrupt a computation in C.

    Attributes:
        names: the functions' names, in order.
        reward_weights: their weights.
        state: passed to functions as `trainer_state`; the trainer sets it before each rollout.
        decode: finds the tokens of spans; None: groups have no steps.
    """

    def __init__(
        self,
        specs: Sequence[RewardSpec],
        *,
        num_workers: int,
        base_dir: Path | None = None,
        timeout: float | None = 600.0,
    ) -> None:
        self.names = [spec.name or _own_name(spec.function) for spec in specs]
        self.reward_weights = [spec.weight for spec in specs]
        self.state = TrainerState()
        self.decode: Decode | None = None
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
        self._loaded = [_load(call, timeout) for call in self._calls]
        self._needed = [required_columns(function, options) for function, options in self._loaded]
        self._hidden = [option_names(function, options) for function, options in self._loaded]
        here = [call for call in self._calls if num_workers == 0 or not isinstance(call.function, str)]
        remote = [call for call in self._calls if call not in here]
        self._caller = Caller(here, timeout)
        self._order = [call.name for call in (*here, *remote)]
        self._remote = RemoteCaller(remote, num_workers, timeout) if remote else None

    @property
    def data_sources(self) -> set[str]:
        """All data sources named in the specs."""
        return {source for call in self._calls for source in call.data_sources or ()}

    @property
    def only_for_sources(self) -> bool:
        """Whether there are rewards, each limited to some data sources."""
        return bool(self._calls) and all(call.data_sources is not None for call in self._calls)

    @property
    def with_spans(self) -> list[str]:
        """Names of the rewards with a weight that declare that they return spans."""
        parts = zip(self.names, self._loaded, self.reward_weights, strict=True)
        return [name for name, (function, _), weight in parts if weight and declares_spans(function)]

    def count_for(self, data_source: str) -> list[str]:
        """Names of the rewards with a weight for this data source's problems, those that name it first."""
        weighted = [call for call, weight in zip(self._calls, self.reward_weights, strict=True) if weight]
        named = [call.name for call in weighted if data_source in (call.data_sources or ())]
        return named + [call.name for call in weighted if call.data_sources is None]

    def options(self, name: str) -> dict[str, Any]:
        """A reward's options, as they were given."""
        return self._calls[self.names.index(name)].options

    def check(self, problem: Problem) -> dict[str, str | None]:
        """Whether this problem's answers can be graded: {"format": None, "accuracy": "the reference answer is empty"}.

        For each reward that applies to the problem: why not, from its `check_columns(columns) -> str | None`; None if
        they can, or if the function has no such check.

        Raises:
            ValueError: a column that a function needs is missing, or a column has the name of an option and would fill
                the same parameter.
        """
        reasons: dict[str, str | None] = {}
        parts = zip(self._calls, self._loaded, self._needed, self._hidden, strict=True)
        for call, (function, options), needed, hidden in parts:
            if not call.applies_to(problem):
                continue
            for column in needed:
                if column not in problem.columns:
                    raise ValueError(
                        f"reward {call.name!r} needs the column {column!r}, but problem {problem.id!r} has "
                        f"{', '.join(problem.columns) or 'none'}. Map it in the recipe: columns: {{{column}: …}}."
                    )
            for option in options:
                if option in problem.columns and option not in hidden:
                    raise ValueError(
                        f"reward {call.name!r} has the option {option!r}, but the dataset has a column of that name, "
                        "and both would fill the same parameter. Remove the option to use the column, or rename one of "
                        "them."
                    )
            reasons[call.name] = run_check(function, problem.columns, options)
        return reasons

    def unread_columns(self, columns: Iterable[str]) -> set[tuple[str, str]]:
        """(reward, column) where the column is not passed, because an option or a fixed argument has that name."""
        present = list(columns)
        fixed = (*PASSED, *ON_REQUEST)
        return {
            (call.name, column)
            for call, hidden in zip(self._calls, self._hidden, strict=True)
            for column in present
            if column in hidden or column in fixed
        }

    def score(self, groups: Iterable[Group]) -> Iterator[ScoredGroup]:
        """Send each group to the workers as it arrives; yield scored groups in the same order as they become ready.

        A completion's reward is the sum of weight x value over the functions that did not return None. If all did, it
        is NaN: the sample gets advantage 0 and is left out of all means (as in TRL).

        Raises:
            RewardError: a function raised, exceeded the time limit, or did not return one finite number or None per
                completion.
        """
        waiting: deque[tuple[Submitted, Scores]] = deque()
        try:
            for group in groups:
                submitted = self.submit(group)
                waiting.append((submitted, self._caller(submitted.answers)))
                while waiting and waiting[0][0].future.done():
                    yield self._finish(*waiting.popleft())
            while waiting:
                yield self._finish(*waiting.popleft())
        finally:  # after an error or an early exit, do not start what is still queued
            for left, _ in waiting:
                left.future.cancel()

    def submit(self, group: Group) -> "Submitted":
        """Send one group to the workers, from any thread; `result` gives it with its rewards."""
        answers = Answers.of(group, self.state)
        if self._remote is not None:
            return Submitted(group, answers, self._remote.submit(answers))
        nothing: Future[Scores | Raised] = Future()
        nothing.set_result(Scores([], {}, {}, []))
        return Submitted(group, answers, nothing)

    def result(self, submitted: "Submitted") -> ScoredGroup:
        """A submitted group with its rewards; the functions of this process run now. Errors as in `score`."""
        return self._finish(submitted, self._caller(submitted.answers))

    def close(self) -> None:
        """End the worker processes."""
        self._caller.close()
        if self._remote is not None:
            self._remote.close()

    def _finish(self, submitted: "Submitted", here: Scores) -> ScoredGroup:
        parts = [here]
        if self._remote is not None:
            parts.append(self._remote.result(submitted.future, submitted.answers))
        values = dict(zip(self._order, (v for part in parts for v in part.values), strict=True))
        seconds = dict(zip(self._order, (s for part in parts for s in part.seconds), strict=True))
        metrics: dict[str, list[float]] = {}
        for name, logged in (item for part in parts for item in part.metrics.items()):
            metrics.setdefault(name, []).extend(logged)
        breakdown = {name: values[name] for name in self.names}
        gated = {name: [not _holds(v) for v in breakdown[gate]] for name, gate in self._gates.items()}
        rows = list(zip(*_counted(breakdown, gated).values(), strict=True))
        steps = []
        weighted = [[v for v, weight in zip(row, self.reward_weights, strict=True) if weight] for row in rows]
        if self.decode is not None and any(isinstance(value, Spans) for row in weighted for value in row):
            pairs = zip(submitted.group.completions, rows, strict=True)
            steps = [steps_of(completion, row, self.reward_weights, self.decode) for completion, row in pairs]
        return ScoredGroup(
            submitted.group,
            rewards=[self._sum(row) for row in rows] if breakdown else [math.nan] * len(submitted.answers.texts),
            breakdown=breakdown,
            gated=gated,
            metrics=metrics,
            extras={column: logged for part in parts for column, logged in part.extras.items()},
            seconds={name: seconds[name] for name in self.names},
            steps=steps,
        )

    def _sum(self, values: Sequence[float | None]) -> float:
        terms = [weight * value for weight, value in zip(self.reward_weights, values, strict=True) if value is not None]
        return sum(terms) if terms else math.nan


@dataclass(frozen=True, slots=True)
class Submitted:
    """A group that the workers have; without workers, its future is done at once."""

    group: Group
    answers: Answers
    future: Future[Scores | Raised]


def _counted(breakdown: dict[str, list[float | None]], gated: dict[str, list[bool]]) -> dict[str, list[float | None]]:
    behind = {
        name: [
            0.0 if is_closed and value is not None else value
            for value, is_closed in zip(breakdown[name], closed, strict=True)
        ]
        for name, closed in gated.items()
    }
    return {name: behind.get(name, values) for name, values in breakdown.items()}


def _load(call: Call, timeout: float | None) -> tuple[RewardFunction, dict[str, Any]]:
    try:
        with time_limit(timeout):
            return call.load()
    except OutOfTime:
        raise ValueError(
            f"reward {call.name!r}: {call.function} was not loaded within the time limit of {timeout:g} s. Move slow "
            "work out of the file's top level, or raise trainer.reward_timeout."
        ) from None


def _holds(value: float | None) -> bool:
    return value is not None and value > 0.5


def _check_names(names: Sequence[str], gates: dict[str, str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"reward {name!r} is listed more than once, so its metrics would be mixed up. "
                "List it once, or give each entry its own `name`."
            )
    for name, gate in gates.items():
        if gate not in names or gate == name:
            others = ", ".join(other for other in names if other != name) or "none"
            raise ValueError(
                f"reward {name!r} requires {gate!r}, which is not another reward of this run. Others: {others}."
            )


def _own_name(function: str | RewardFunction) -> str:
    if isinstance(function, str):
        return function.rpartition(":")[2]
    return getattr(function, "__name__", type(function).__name__)
