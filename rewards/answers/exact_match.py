"""The answer, character for character, for tasks whose answers have a single spelling."""

from collections.abc import Sequence
from typing import Any

from rewards.text import Text, answer_text, completion_text


def exact_match(
    prompts: Sequence[Text], completions: Sequence[Text], answer: Sequence[Any], **kwargs: Any
) -> list[float | None]:
    """1.0 if the text of `<answer>` equals the column `answer`, ignoring surrounding white space, else 0.0."""
    return [
        float(answer_text(completion_text(completion)) == str(reference).strip())
        for completion, reference in zip(completions, answer, strict=True)
    ]
