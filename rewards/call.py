"""Calling reward functions on one group, in whatever process, and checking what they return."""

import asyncio
import inspect
import math
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from rewards.load import RewardFunction, check_options, check_signature, load_function
from rollout.types import Group, Problem

Values = list[float | None]  # one per completion; None: this reward does not apply to it


class RewardError(ValueError):
    """A reward function failed. The message names it and the sample; the cause is what it raised."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What reward functions see of a group: Answers(Problem(...), ["<think>…", …], [[5, 9, 2], …])."""

    problem: Problem
    texts: list[str]
    token_ids: list[list[int]]

    @classmethod
    def of(cls, group: Group) -> "Answers":
        completions = group.completions
        return cls(group.problem, [c.text for c in completions], [list(c.token_ids) for c in completions])

    def arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments as TRL gives them: the prompt and every column repeated for each completion."""
        repeated = {name: [value] * len(self.texts) for name, value in self.problem.columns.items()}
        conversational = not isinstance(self.problem.prompt, str)
        return {
            **repeated,
            **options,  # the recipe's word counts where a column has the same name
            "prompts": [self.problem.prompt] * len(self.texts),
            "completions": [[{"role": "assistant", "content": text}] for text in self.texts]
            if conversational
            else self.texts,
            "completion_ids": self.token_ids,
        }

    def describe(self, index: int) -> str:
        """Where to find the sample: "completion 3 of 16 to problem 'gsm8k/train/17', which begins '<think>…'"."""
        beginning = self.texts[index][:200]
        return f"completion {index + 1} of {len(self.texts)} to problem {self.problem.id!r}, which begins {beginning!r}"


@dataclass(frozen=True, slots=True)
class Call:
    """A reward function with its fixed options: Call("format", "format", {"think_prefilled": True}, None)."""

    name: str
    function: str | RewardFunction
    options: dict[str, Any]
    base_dir: Path | None

    def load(self) -> RewardFunction:
        if isinstance(self.function, str):
            function = load_function(self.function, self.base_dir)
            check_options(self.function, function, self.options)
            return function
        check_signature(self.name, self.function)
        return self.function


class Caller:
    """Loaded reward functions. Called with one group's Answers, returns the values of each function, in order."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = [(call.name, call.load(), call.options) for call in calls]
        self._loop = asyncio.Runner()  # one event loop for all calls: clients that async rewards keep are bound to it

    def __call__(self, answers: Answers) -> list[Values]:
        return [self._call(name, function, options, answers) for name, function, options in self._calls]

    def close(self) -> None:
        self._loop.close()

    def _call(self, name: str, function: RewardFunction, options: dict[str, Any], answers: Answers) -> Values:
        try:
            returned = self._run(function, options, answers)
        except Exception as error:
            culprit = self._first_failing(function, options, answers)
            what = f"reward {name!r} raised {type(error).__name__}: {error}"
            raise RewardError(f"{what}\nIt was given {answers.describe(culprit or 0)}.") from error
        return _check(name, returned, answers)

    def _run(self, function: RewardFunction, options: dict[str, Any], answers: Answers) -> Any:
        returned = function(**answers.arguments(options))
        return self._loop.run(_wait_for(returned)) if inspect.isawaitable(returned) else returned

    def _first_failing(self, function: RewardFunction, options: dict[str, Any], answers: Answers) -> int | None:
        """The completion that makes the function raise when it is given alone."""
        for index in range(len(answers.texts)):
            alone = Answers(answers.problem, [answers.texts[index]], [answers.token_ids[index]])
            try:
                self._run(function, options, alone)
            except Exception:  # the error itself is on its way to the user
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
            f"number or None for each. It was given {answers.describe(0)}."
        )
    for index, value in enumerate(values):
        if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
            raise RewardError(
                f"reward {name!r} returned {value!r} ({type(value).__name__}) for {answers.describe(index)}. "
                "Rewards are finite Python numbers, or None where the reward does not apply."
            )
    return [None if value is None else float(value) for value in values]
