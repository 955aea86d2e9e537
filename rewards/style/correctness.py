"""Calling the reward that decides what is correct, for rewards that only rate a completion's length."""

import inspect
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from rewards.runner.load import (
    PASSED,
    RewardFunction,
    arguments_of,
    bind,
    declares_spans,
    load_function,
    required_columns,
    run_check,
)
from rewards.runner.values import Values, as_values
from rewards.text import Text, completion_text


def check_correctness(reward: str, columns: Mapping[str, Any]) -> str | None:
    """Why `reward` cannot grade a problem with these columns; None if it can.

    Raises:
        ValueError: no such reward, it needs an option or runs asynchronously, or a column it needs is missing.
    """
    function = _load(reward)
    for column in required_columns(function, {}):
        if column not in columns:
            raise ValueError(
                f"correctness={reward!r} needs the column {column!r}, but the dataset has "
                f"{', '.join(columns) or 'none'}. Map it in the recipe: columns: {{{column}: …}}."
            )
    return run_check(function, columns, {})


def correctness_of(
    reward: str,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    completion_ids: Sequence[Sequence[int]],
    all_columns: Mapping[str, Sequence[Any]] | None,
    completion_prefix: str,
    *,
    passed: Mapping[str, Any],
) -> Values:
    """`reward`'s values. passed: the length reward's other arguments, among them the columns if all_columns is None."""
    function = _load(reward)
    columns = {k: v for k, v in passed.items() if k not in PASSED} if all_columns is None else all_columns
    given = {name: value for name, value in passed.items() if name in PASSED} | {
        "prompts": prompts,
        "completions": completions,
        "completion_ids": completion_ids,
        "all_columns": columns,
        "completion_prefix": completion_prefix,
    }
    returned = function(**arguments_of(function, {}, columns, given))
    lengths = [len(completion_text(completion)) for completion in completions]
    return as_values(
        reward,
        returned,
        lengths,
        lambda index: f"completion {index + 1} of {len(completions)}",
        spans=declares_spans(function),
    )


@lru_cache
def _load(reward: str) -> RewardFunction:
    function, _ = bind(reward, load_function(reward), {})
    if inspect.iscoroutinefunction(function):
        raise ValueError(f"correctness={reward!r} is an async function. Name a function that returns its values.")
    return function
