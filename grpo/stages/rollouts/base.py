"""What the loop needs of its rollouts."""

from typing import Protocol

from grpo.report.metrics import Metric
from rewards.runner.score import ScoredGroup


class Rollouts(Protocol):
    """Where a trainer's groups come from. All processes call the same methods together."""

    def next(self, step: int) -> list[ScoredGroup]:
        """This process's share of the groups to train on after `step` optimizer steps, whose weights are published.

        Raises:
            EngineLostError: the engine is gone.
        """
        ...

    def trained(self) -> dict[str, Metric]:
        """The groups of the last `next` have been trained on; returns metrics of how they came."""
        ...

    def close(self) -> None:
        """End what is being generated."""
        ...
