"""What the worker processes of `gym` run: one of reasoning_gym's scorers on one answer."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

Item = tuple[str, str, dict[str, Any]]  # task, answer, entry


def scorer(package: str) -> Callable[[Item], float]:
    """The function of one item: the score, 0.0 to 1.0; 0.0 if the task's scorer fails to read the answer.

    It imports reasoning_gym, which takes seconds: here that counts for no answer's time limit.
    """
    find = import_module(package).get_score_answer_fn

    def score(item: Item) -> float:
        task, answer, entry = item
        try:
            return float(find(task)(answer=answer, entry=entry))
        except Exception:  # many scorers parse without a guard: int("2 * 3"), json.loads
            return 0.0

    return score
