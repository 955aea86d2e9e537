"""A reward for random completions: about half of them are right."""

from typing import Any


def even(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [float(sum(completion.encode()) % 2 == 0) for completion in completions]
