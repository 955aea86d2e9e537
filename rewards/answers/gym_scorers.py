"""The function run by the worker processes of `gym`: one of reasoning_gym's scorers on one answer."""

from typing import Any

import reasoning_gym  # pyright: ignore[reportMissingImports]  # an extra


def score(item: tuple[str, str, dict[str, Any]]) -> float:
    """The score of (task, answer, entry): 0.0 to 1.0; 0.0 if the task's scorer fails to read the answer."""
    task, answer, entry = item
    scorer: Any = reasoning_gym.get_score_answer_fn(task)
    try:
        return float(scorer(answer=answer, entry=entry))
    except Exception:  # many scorers parse without a guard: int("2 * 3"), json.loads
        return 0.0
