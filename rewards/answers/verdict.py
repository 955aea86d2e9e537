"""A verifier's verdict on one completion."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["right", "wrong", "unverifiable"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict("unverifiable", "a chain of different values", "41=42")

    outcome: "unverifiable" means that no rule can read the answer or compute it in time. It is rewarded like a wrong
        one but counted separately, because a verifier that often gives up teaches the wrong thing.
    reason: why the answer is not right; "" if it is.
    answer: as found in the completion; None if it has none.
    """

    outcome: Outcome
    reason: str
    answer: str | None

    def __str__(self) -> str:
        """unverifiable: a chain of different values"""
        return f"{self.outcome}: {self.reason}" if self.reason else self.outcome

    @property
    def reward(self) -> float:
        """1.0 for right, else 0.0."""
        return float(self.outcome == "right")
