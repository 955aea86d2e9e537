"""A reward for random completions: about half of them are right."""

from typing import Any


def even(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [float(sum(completion.encode()) % 2 == 0) for completion in completions]


def right(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Everything but what says that it is wrong."""
    return [float("wrong" not in completion) for completion in completions]
