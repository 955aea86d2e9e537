"""The answer, letter for letter: for tasks with one way to write it."""

from collections.abc import Sequence
from typing import Any

from rewards.text import Text, answer_text, completion_text


def exact_match(
    prompts: Sequence[Text], completions: Sequence[Text], answer: Sequence[Any], **kwargs: Any
) -> list[float | None]:
    """1.0 if the text of `<answer>` is the column `answer`, white space around both aside, else 0.0."""
    return [
        float(answer_text(completion_text(completion)) == str(gold).strip())
        for completion, gold in zip(completions, answer, strict=True)
    ]
