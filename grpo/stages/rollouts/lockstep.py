"""Rollouts in lockstep: the engine rests while the policy is updated."""

from grpo.report.metrics import Metric
from grpo.stages.build import Parts
from grpo.stages.collect import collect
from rewards.runner.score import ScoredGroup


class Lockstep:
    """`Rollouts` that are sampled when the trainer asks for them, with its newest weights."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def next(self, step: int) -> list[ScoredGroup]:
        """The next problems, sampled and scored. See `Rollouts.next`."""
        parts, recipe = self._parts, self._parts.recipe
        return collect(
            parts.problems,
            parts.engine,
            parts.rewards,
            recipe.rollout_sampling(step // recipe.policy_gradient.steps_per_generation),
            count=recipe.problems_per_rollout,
            phase=parts.report.phase,
        )

    def trained(self) -> dict[str, Metric]:
        """Nothing to remember."""
        return {}

    def close(self) -> None:
        """Nothing runs between two rollouts."""
