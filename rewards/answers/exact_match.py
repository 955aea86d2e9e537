"""The answer, character for character, for tasks whose answers have a single spelling."""

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.runner.load import checked_by
from rewards.text import Text, answer_text, completion_text, reference_text


def _check(columns: Mapping[str, Any]) -> str | None:
    return "no reference answer" if reference_text(columns["answer"]) is None else None


@checked_by(_check)
def exact_match(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    answer: Sequence[Any],
    *,
    completion_prefix: str = "",
    **kwargs: Any,
) -> list[float | None]:
    """1.0 if the text of `<answer>` equals the column `answer`, ignoring surrounding white space, else 0.0.

    None without a reference answer: null or empty text. The numbers 3 and 3.0 are the text "3".
    """
    references = [reference_text(reference) for reference in answer]
    return [
        None if reference is None else float(answer_text(completion_text(completion, completion_prefix)) == reference)
        for completion, reference in zip(completions, references, strict=True)
    ]
