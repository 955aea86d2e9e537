"""Rollouts in lockstep: the engine rests while the policy is updated."""

from grpo.report.metrics import Metric
from grpo.stages.build import Parts
from grpo.stages.collect import collect
from rewards.runner.score import ScoredGroup


class Lockstep:
    """`Rollouts` that are sampled when the trainer asks for them, with its newest weights."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._metrics: dict[str, Metric] = {}

    def next(self, step: int) -> list[ScoredGroup]:
        """The next problems, sampled and scored. See `Rollouts.next`."""
        rollout = collect(self._parts, step)
        self._metrics = rollout.metrics
        return rollout.groups

    def trained(self) -> dict[str, Metric]:
        """How the rollout was collected; where more groups were sampled than trained on, metrics are those of all."""
        return self._metrics

    def close(self) -> None:
        """Nothing runs between two rollouts."""
