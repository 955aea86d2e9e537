"""Call reward functions on one group, in any process, and check what they return."""

import asyncio
import inspect
import json
import math
import time
from collections import defaultdict
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from rewards.runner.load import RewardFunction, bind, check_signature, load_function
from rollout.types import Group, Problem

Values = list[float | None]  # one per completion; None: the reward does not apply


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
        extras={"gold_parsed": ["[42]", "[42]"]},  # columns passed to log_extra, as JSON values
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

    @classmethod
    def of(cls, group: Group, state: TrainerState) -> "Answers":
        completions = group.completions
        return cls(group.problem, [c.text for c in completions], [list(c.token_ids) for c in completions], state)

    def arguments(self, options: Mapping[str, Any], log: "_Log") -> dict[str, Any]:
        """Keyword arguments as TRL passes them: the prompt and every column, repeated for each completion."""
        repeated = {name: [value] * len(self.texts) for name, value in self.problem.columns.items()}
        conversational = not isinstance(self.problem.prompt, str)
        return {
            **repeated,
            **options,  # override a column of the same name
            "prompts": [self.problem.prompt] * len(self.texts),
            "completions": [[{"role": "assistant", "content": text}] for text in self.texts]
            if conversational
            else self.texts,
            "completion_ids": self.token_ids,
            "trainer_state": self.state,
            "log_metric": log.metric,
            "log_extra": log.extra,
        }

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
        return problem.columns["data_source"] in self.data_sources


class Caller:
    """Loaded reward functions: maps a group's Answers to Scores, with the functions in order."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = [(call, *call.load()) for call in calls]
        self._loop = asyncio.Runner()  # one event loop for all calls, because async clients are bound to theirs

    def __call__(self, answers: Answers) -> Scores:
        scores = Scores([], {}, {}, [])
        for call, function, options in self._calls:
            started = time.perf_counter()
            if not call.applies_to(answers.problem):
                scores.values.append([None] * len(answers.texts))
            else:
                scores.values.append(self._call(call.name, function, options, answers, scores))
            scores.seconds.append(time.perf_counter() - started)
        return scores

    def close(self) -> None:
        self._loop.close()

    def _call(
        self, name: str, function: RewardFunction, options: dict[str, Any], answers: Answers, scores: Scores
    ) -> Values:
        log = _Log()
        try:
            returned = self._run(function, options, answers, log)
        except Exception as error:
            culprit = self._first_failing(function, options, answers)
            what = f"reward {name!r} raised {type(error).__name__}: {error}"
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
        return _check(name, returned, answers)

    def _run(self, function: RewardFunction, options: dict[str, Any], answers: Answers, log: _Log) -> Any:
        returned = function(**answers.arguments(options, log))
        return self._loop.run(_wait_for(returned)) if inspect.isawaitable(returned) else returned

    def _first_failing(self, function: RewardFunction, options: dict[str, Any], answers: Answers) -> int | None:
        """Index of the first completion that makes the function raise on its own, if any."""
        for index in range(len(answers.texts)):
            alone = Answers(answers.problem, [answers.texts[index]], [answers.token_ids[index]], answers.state)
            try:
                self._run(function, options, alone, _Log())
            except Exception:  # the original error is about to be raised
                return index
        return None


async def _wait_for(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _check(name: str, returned: Any, answers: Answers) -> Values:
    values = list(returned) if isinstance(returned, Iterable) else [returned]
    if len(values) != len(answers.texts) or not isinstance(returned, Iterable):
        what = f"{len(values)} values" if isinstance(returned, Iterable) else repr(returned)
        raise RewardError(
            f"reward {name!r} returned {what} for {len(answers.texts)} completions. It must return a list with one "
            f"number or None per completion. It was given {answers.describe(0)}."
        )
    for index, value in enumerate(values):
        if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
            raise RewardError(
                f"reward {name!r} returned {value!r} ({type(value).__name__}) for {answers.describe(index)}. "
                "A reward must be a finite number, or None if it does not apply."
            )
    return [None if value is None else float(value) for value in values]
