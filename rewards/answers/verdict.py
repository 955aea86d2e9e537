"""What a verifier says of one completion."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["right", "wrong", "unverifiable"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict("unverifiable", "a chain of different values", "41=42")

    outcome: "unverifiable" is an answer that no rule can read or compute in time. It earns what a wrong one earns, and
        is counted apart, because a verifier that gives up often teaches the wrong thing.
    reason: why it is not right; "" where it is.
    answer: as found in the completion; None: there is none.
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
