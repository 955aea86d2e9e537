"""Call reward functions on one group, in any process, and check what they return."""

import asyncio
import inspect
import json
import math
import time
from collections import defaultdict
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rewards.runner.limit import OutOfTime, time_limit
from rewards.runner.load import (
    RewardFunction,
    arguments_of,
    bind,
    check_options,
    check_signature,
    declares_spans,
    load_function,
)
from rewards.runner.values import Values, as_values
from rollout.types import Group, Problem


class RewardError(ValueError):
    """A reward function failed. The message names it and the sample; the cause is the original exception."""


@dataclass(frozen=True, slots=True)
class TrainerState:
    """Training progress under transformers' names: TrainerState(global_step=12, max_steps=100)."""

    global_step: int = 0  # optimizer steps done
    max_steps: int = 0


@dataclass(frozen=True, slots=True)
class Scores:
    """One group's scores from several reward functions.

    Scores(
        values=[[1.0, 0.0], [None, 0.5]],        # per function and completion
        metrics={"accuracy/unverifiable": [0.5]},  # values passed to log_metric
        extras={"accuracy/verdict": ["right", "wrong"]},  # columns passed to log_extra, as JSON values
        seconds=[0.004, 0.001],                  # spent in each function
    )
    """

    values: list[Values]
    metrics: dict[str, list[float]]
    extras: dict[str, list[Any]]
    seconds: list[float]


@dataclass(frozen=True, slots=True)
class Answers:
    """The part of a group that reward functions see: Answers(Problem(...), ["<think>…", …], [[5, 9, 2], …])."""

    problem: Problem
    texts: list[str]
    token_ids: list[list[int]]
    state: TrainerState = TrainerState()
    prefix: str = ""  # text of the prompt that already belongs to the answers

    @classmethod
    def of(cls, group: Group, state: TrainerState) -> "Answers":
        completions = group.completions
        return cls(
            group.problem,
            [c.text for c in completions],
            [list(c.token_ids) for c in completions],
            state,
            group.completion_prefix,
        )

    def arguments(self, function: RewardFunction, options: Mapping[str, Any], log: "_Log") -> dict[str, Any]:
        """Keyword arguments as TRL passes them: the prompt and every column, repeated for each completion."""
        repeated = {name: [value] * len(self.texts) for name, value in self.problem.columns.items()}
        conversational = not isinstance(self.problem.prompt, str)
        passed = {
            "prompts": [self.problem.prompt] * len(self.texts),
            "completions": [[{"role": "assistant", "content": text}] for text in self.texts]
            if conversational
            else self.texts,
            "completion_ids": self.token_ids,
            "trainer_state": self.state,
            "log_metric": log.metric,
            "log_extra": log.extra,
            "all_columns": repeated,
            "completion_prefix": self.prefix,
        }
        return arguments_of(function, options, repeated, passed)

    def alone(self, index: int) -> "Answers":
        """One of the completions on its own."""
        return replace(self, texts=[self.texts[index]], token_ids=[self.token_ids[index]])

    def describe(self, index: int) -> str:
        """Which sample: "completion 3 of 16 for problem 'gsm8k/train/17', which begins '<think>…'"."""
        beginning = self.texts[index][:200]
        return (
            f"completion {index + 1} of {len(self.texts)} for problem {self.problem.id!r}, which begins {beginning!r}"
        )


class _Log:
    """Collects what one call passes to TRL's `log_metric` and `log_extra`."""

    def __init__(self) -> None:
        self.metrics: defaultdict[str, list[float]] = defaultdict(list)
        self.extras: defaultdict[str, list[Any]] = defaultdict(list)

    def metric(self, name: str, value: float) -> None:
        """A number for `metrics.jsonl`, reported as the mean over a step's calls."""
        if not math.isfinite(value):
            raise ValueError(f"log_metric({name!r}, {value!r}): a metric must be finite.")
        self.metrics[name].append(float(value))

    def extra(self, column: str, values: list[Any]) -> None:
        """A column for `samples.jsonl`, one value per completion; values JSON cannot represent become strings."""
        self.extras[column].extend(json.loads(json.dumps(list(values), default=str)))


@dataclass(frozen=True, slots=True)
class Call:
    """A reward function with its fixed options: Call("format", "format", {"think_prefilled": True}, None, None)."""

    name: str
    function: str | RewardFunction
    options: dict[str, Any]
    base_dir: Path | None
    data_sources: frozenset[str] | None = None  # call only for problems from these; None: for all

    def load(self) -> tuple[RewardFunction, dict[str, Any]]:
        """The function and the options to pass on every call."""
        if isinstance(self.function, str):
            return bind(self.function, load_function(self.function, self.base_dir), self.options)
        check_signature(self.name, self.function)
        check_options(self.name, self.function, self.options)
        return self.function, self.options

    def applies_to(self, problem: Problem) -> bool:
        """Whether the problem's column `data_source` is one of `data_sources`."""
        if self.data_sources is None:
            return True
        if "data_source" not in problem.columns:
            raise RewardError(
                f"reward {self.name!r} is limited to data_sources {', '.join(sorted(self.data_sources))}, but problem "
                f"{problem.id!r} has no column 'data_source'. Map one in the recipe: columns: {{data_source: …}}."
            )
        return str(problem.columns["data_source"]) in self.data_sources


class Caller:
    """Loaded reward functions: maps a group's Answers to Scores, with the functions in order.

    timeout: seconds the functions may take for a group, together; None: no limit.
    """

    def __init__(self, calls: Sequence[Call], timeout: float | None = None) -> None:
        self._calls = [(call, *call.load()) for call in calls]
        self._timeout = timeout
        self._loop = asyncio.Runner()  # one event loop for all calls, because async clients are bound to theirs

    def __call__(self, answers: Answers) -> Scores:
        scores = Scores([], {}, {}, [])
        name = ""
        try:
            with time_limit(self._timeout if self._calls else None):
                for call, function, options in self._calls:
                    started, name = time.perf_counter(), call.name
                    if not call.applies_to(answers.problem):
                        scores.values.append([None] * len(answers.texts))
                    else:
                        scores.values.append(self._call(name, function, options, answers, scores))
                    scores.seconds.append(time.perf_counter() - started)
        except OutOfTime:
            raise RewardError(out_of_time(f"reward {name!r}", self._timeout or 0, answers)) from None
        return scores

    def close(self) -> None:
        self._loop.close()

    def _call(
        self, name: str, function: RewardFunction, options: dict[str, Any], answers: Answers, scores: Scores
    ) -> Values:
        log = _Log()
        try:
            returned = self._run(function, options, answers, log)
        except (Exception, SystemExit) as error:
            culprit = self._first_failing(function, options, answers)
            what = f"reward {name!r} {_did(error, answers)}"
            raise RewardError(f"{what}\nIt was given {answers.describe(culprit or 0)}.") from error
        for metric, values in log.metrics.items():
            scores.metrics.setdefault(metric, []).extend(values)
        for column, values in log.extras.items():
            if len(values) != len(answers.texts):
                raise RewardError(
                    f"reward {name!r} passed {len(values)} values to log_extra({column!r}, …) for {len(answers.texts)} "
                    f"completions. Pass one per completion. It was given {answers.describe(0)}."
                )
            scores.extras[f"{name}/{column}" if column in scores.extras else column] = values
        lengths = [len(text) for text in answers.texts]
        try:
            return as_values(name, returned, lengths, answers.describe, spans=declares_spans(function))
        except ValueError as error:
            raise RewardError(str(error)) from None

    def _run(self, function: RewardFunction, options: dict[str, Any], answers: Answers, log: _Log) -> Any:
        returned = function(**answers.arguments(function, options, log))
        return self._loop.run(_wait_for(returned)) if inspect.isawaitable(returned) else returned

    def _first_failing(self, function: RewardFunction, options: dict[str, Any], answers: Answers) -> int | None:
        """Index of the first completion that makes the function raise on its own, if any."""
        for index in range(len(answers.texts)):
            try:
                self._run(function, options, answers.alone(index), _Log())
            except (Exception, SystemExit, OutOfTime) as error:  # the original error is about to be raised
                return None if isinstance(error, OutOfTime) else index
        return None


def _did(error: BaseException, answers: Answers) -> str:
    """What a function did instead of returning: "raised KeyError: 'x'"."""
    if isinstance(error, SystemExit):
        return f"called sys.exit({error.code!r}), which would end the run. Raise an exception, or return a value."
    said = f"raised {type(error).__name__}: {error}"
    if isinstance(error, TypeError) and "string ind" in str(error) and isinstance(answers.problem.prompt, str):
        return (
            f"{said}. The prompts are strings, and so are the completions: a function that reads messages, "
            "completion[0]['content'], needs prompts that are lists of messages."
        )
    return said


def out_of_time(who: str, timeout: float, answers: Answers) -> str:
    """The error message for functions that exceeded the time limit."""
    return (
        f"{who} did not return within the time limit of {timeout:g} s for a group.\nIt was given "
        f"{answers.describe(0)}. Make it faster or have it give up earlier, or raise trainer.reward_timeout."
    )


async def _wait_for(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
