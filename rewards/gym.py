"""reasoning_gym's own scorers, by the task that made the problem."""

from collections.abc import Sequence
from typing import Any

from rewards.text import Text, answer_text, completion_text


def reasoning_gym(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    answer: Sequence[Any],
    metadata: Sequence[dict[str, Any]],
    **kwargs: Any,
) -> list[float | None]:
    """What the task's scorer gives to the text of `<answer>`: 0.0 to 1.0, often with partial credit; 0.0 without one.

    `answer` and `metadata` are the columns of a reasoning_gym entry; metadata["source_dataset"] names the task.
    Needs the package reasoning-gym (2505.24760).
    """
    from reasoning_gym import get_score_answer_fn  # pyright: ignore[reportMissingImports]  # an extra

    rewards: list[float | None] = []
    for prompt, completion, gold, about in zip(prompts, completions, answer, metadata, strict=True):
        text = answer_text(completion_text(completion))
        entry = {"question": prompt, "answer": gold, "metadata": about}
        score = get_score_answer_fn(about["source_dataset"])
        rewards.append(0.0 if text is None else float(score(answer=text, entry=entry)))
    return rewards
