"""What rules look at: the latest rows, each metric's values so far, held-out evaluations and the recipe.

A step costs the same however long the run is: rules read the first and last few values of a metric, never all.
"""

import math
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from grpo.recipe.config import default_logp_bound
from grpo.report.records import Row

WINDOW = 10  # rows that a lasting condition must hold for
FEW = 5  # values in a mean at either end of a run
PREFERENCES = ("reward_model", "judge")  # rewards that are opinions; all others are rules
PENALTIES = ("repetition_penalty", "soft_overlong_punishment")  # rewards of at most 0

Numbers = Mapping[str, float]  # a row's finite numbers


class History:
    """A run's rows so far. `recipe` is the resolved recipe as plain values; {} if unknown."""

    def __init__(self, recipe: Mapping[str, Any]) -> None:
        self.recipe = recipe
        self.step = 0
        self.steps: list[int] = []  # of training rows
        self.recent: deque[Row] = deque(maxlen=WINDOW)  # training rows as written
        self.values: defaultdict[str, list[float]] = defaultdict(list)  # finite values, training
        self.evaluations: list[Numbers] = []
        self._preferences = [f"rewards/{name}/mean" for name in self.names(preferences=True)]
        self._ends: dict[str, tuple[list[Numbers], deque[Numbers]]] = {
            key: ([], deque(maxlen=FEW)) for key in self._preferences
        }

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a training row."""
        self.step = row.get("step", self.step + 1)
        self.steps.append(self.step)
        self.recent.append({key: None if _is_nan(value) else value for key, value in row.items()})
        numbers = _finite(row)
        for key, value in numbers.items():
            self.values[key].append(value)
        for first, last in (self._ends[key] for key in self._preferences if key in numbers):
            (first if len(first) < FEW else last).append(numbers)

    def add_evaluation(self, row: Mapping[str, Any]) -> None:
        self.step = row.get("step", self.step)
        self.evaluations.append({**_finite(row), "step": self.step})

    # -- training rows

    def now(self, key: str) -> float | None:
        """The latest row's value; None if it is missing or not finite."""
        return self.recent[-1].get(key) if self.recent else None

    def first(self, key: str, count: int = FEW) -> float | None:
        """The mean of the first `count` values; None if there are fewer."""
        return _mean(self.values[key][:count]) if len(self.values[key]) >= count else None

    def last(self, key: str, count: int = FEW) -> float | None:
        """The mean of the last `count` values; None if there are fewer."""
        return _mean(self.values[key][-count:]) if len(self.values[key]) >= count else None

    def change(self, key: str) -> tuple[float, float] | None:
        """Means of the first and of the last FEW values; None while they overlap, or if the last row has none."""
        before, now = self.first(key), self.last(key)
        if before is None or now is None or len(self.values[key]) < 2 * FEW or self.now(key) is None:
            return None
        return before, now

    def fall(self, key: str, ratio: float) -> tuple[float, float] | None:
        """The mean of the first FEW values and the latest one, if that comes after them and is below `ratio` of it."""
        before, now = self.first(key), self.now(key)
        if before is None or now is None or len(self.values[key]) == FEW or not now < ratio * before:
            return None
        return before, now

    def ends(self, preference: str) -> tuple[Sequence[Numbers], Sequence[Numbers]] | None:
        """The first and last FEW rows that have this preference reward's mean; None while they overlap."""
        first, last = self._ends[preference]
        return (first, last) if len(last) == FEW else None

    def lasts(self, holds: Callable[[Row], bool], rows: int = WINDOW) -> bool:
        """Whether each of the last `rows` rows meets a condition."""
        latest = list(self.recent)[-rows:]
        return len(latest) == rows and all(map(holds, latest))

    def since(self, rows: int) -> int:
        """The step of the row that begins the last `rows` rows."""
        return self.steps[-min(rows, len(self.steps))]

    # -- the recipe

    def setting(self, key: str) -> Any:
        """A recipe's value: setting("trainer.learning_rate"); None if the recipe has no such key."""
        value: Any = self.recipe
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    @property
    def rewards(self) -> Sequence[Mapping[str, Any]]:
        return self.recipe.get("rewards") or []

    def names(self, *, preferences: bool) -> list[str]:
        """Names of the rewards that are preferences, or of all others."""
        return [one["name"] for one in self.rewards if (one["function"] in PREFERENCES) == preferences]

    @property
    def max_logp_difference(self) -> float:
        """The bound at which the run stops."""
        bound = self.setting("algorithm.max_logp_difference")
        correction = self.setting("algorithm.importance_sampling_correction")
        is_corrected = correction is not None or self.setting("algorithm.loss_type") in ("vespo", "dppo")
        return bound or default_logp_bound(self.setting("model.dtype") or "float32", is_corrected=is_corrected)

    @property
    def problems_change(self) -> bool:
        """Whether others are asked later in the run: a mean reward then changes its meaning."""
        late = any(source.get("from_step") for source in self.setting("data.mixture") or [])
        return late or self.setting("data.curriculum") is not None

    @property
    def compares_within_groups(self) -> bool:
        """Whether a group whose completions score the same teaches nothing. Not so where rewards are compared over the
        batch, and where groups with equal sums of rewards may differ in the rewards themselves."""
        return (
            self.setting("algorithm.advantage_estimator") != "reinforce_plus_plus"
            and self.setting("algorithm.multi_objective_aggregation") != "normalize_then_sum"
        )

    @property
    def learns_rewards(self) -> bool:
        """Whether rewards are what it learns from: on-policy distillation only measures them."""
        return self.recipe.get("stage", "grpo") != "opd"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _is_nan(value: Any) -> bool:
    """Whether the reporter writes null for it."""
    return isinstance(value, float) and not math.isfinite(value)


def _finite(row: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in row.items() if isinstance(value, int | float) and math.isfinite(value)}
