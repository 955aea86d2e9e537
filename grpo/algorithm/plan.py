"""The plan of a rollout: advantage, token weight and mini-batch of every completion, before any forward.

    Shapes of all processes --Plan.of--> Plan --of_process--> this process's part

Processes exchange shapes (a few kilobytes) and each computes the same plan from them.
"""

import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from grpo.algorithm.advantage import (
    batch_advantages,
    decoupled_advantages,
    difficulty_weighted,
    group_relative_advantages,
    leave_one_out_advantages,
    maximum_likelihood_advantages,
    pass_at_k_advantages,
)
from grpo.algorithm.loss import Objective
from grpo.algorithm.token_weights import Lengths
from grpo.recipe.algorithm import AlgorithmConfig
from grpo.recipe.registry import LOSSES

if TYPE_CHECKING:
    from rewards.runner.score import ScoredGroup


def objective(algorithm: AlgorithmConfig) -> Objective:
    """The objective that `algorithm.loss_type` names."""
    return pkgutil.resolve_name(LOSSES[algorithm.loss_type])


def estimate_advantages(rewards: np.ndarray, algorithm: AlgorithmConfig) -> np.ndarray:
    """[groups, G], by the estimator that `algorithm.advantage_estimator` names."""
    match algorithm.advantage_estimator:
        case "group":
            return group_relative_advantages(rewards, algorithm.scale_rewards)
        case "rloo":
            return leave_one_out_advantages(rewards)
        case "maxrl":
            return maximum_likelihood_advantages(rewards)
        case "pass_at_k":
            return pass_at_k_advantages(rewards, algorithm.pass_k)
        case "reinforce_plus_plus" | "reinforce_plus_plus_baseline" as name:
            return batch_advantages(rewards, baseline=name.endswith("baseline"))


@dataclass(frozen=True, slots=True)
class Shapes:
    """What every process must know about the whole rollout. [groups, G] each; `values` has one more axis."""

    rewards: np.ndarray  # NaN where no reward function applied
    values: np.ndarray  # [groups, G, rewards] the summands before reward weights; NaN where a function did not apply
    lengths: np.ndarray  # tokens that the policy sampled
    truncated: np.ndarray  # bool

    @classmethod
    def of(cls, groups: "Sequence[ScoredGroup]") -> "Shapes":
        completions = [group.group.completions for group in groups]
        return cls(
            np.array([group.rewards for group in groups], dtype=np.float64),
            np.array([list(zip(*group.counted.values(), strict=True)) for group in groups], dtype=np.float64),
            np.array([[c.num_sampled for c in row] for row in completions], dtype=np.int64),
            np.array([[c.finish_reason == "length" for c in row] for row in completions], dtype=bool),
        )

    @classmethod
    def interleave(cls, parts: Sequence["Shapes"]) -> "Shapes":
        """Merge the parts of P processes into global order: process p holds problems p, p + P, p + 2P, …"""
        stacked = [np.stack([getattr(part, name) for part in parts], axis=1) for name in cls.__slots__]
        return cls(*(array.reshape(array.shape[0] * array.shape[1], *array.shape[2:]) for array in stacked))


@dataclass(frozen=True, slots=True)
class Plan:
    """Every completion of the rollout, over all processes: three arrays [groups, G]."""

    advantages: np.ndarray
    token_weights: np.ndarray
    mini_batch: np.ndarray

    @classmethod
    def of(
        cls,
        shapes: Shapes,
        algorithm: AlgorithmConfig,
        *,
        max_completion_length: int,
        seed: int,
        reward_weights: Sequence[float] = (),
    ) -> "Plan":
        """Every process computes the same plan from the same shapes; mini-batches are a random split of the rollout.

        reward_weights: one per reward in shapes.values; needed for "normalize_then_sum" only, the sums include them.
        """
        steps = algorithm.steps_per_generation
        size = shapes.rewards.size
        mini_batch = np.zeros(size, dtype=np.int64)
        if steps > 1:
            mini_batch[np.random.default_rng(seed).permutation(size)] = np.arange(size) * steps // size
        lengths = Lengths(
            tokens=shapes.lengths.ravel(),
            active=~(shapes.truncated & algorithm.mask_truncated_completions).ravel(),
            mini_batch=mini_batch,
            max_completion_length=max_completion_length,
            steps_per_generation=steps,
        )
        if algorithm.multi_objective_aggregation == "normalize_then_sum":
            advantages = decoupled_advantages(shapes.values, np.array(reward_weights))
        else:
            advantages = estimate_advantages(shapes.rewards, algorithm)
        if algorithm.difficulty_weighting:
            advantages = difficulty_weighted(advantages, shapes.rewards)
        if not np.isfinite(advantages).all():
            largest = np.nanmax(np.abs(shapes.rewards))
            raise ValueError(
                f"the advantages of {(~np.isfinite(advantages)).sum()} completions are not finite: the rewards reach "
                f"{largest:.3g}, and their squares overflow. Scale the reward down."
            )
        shape = shapes.rewards.shape
        token_weights = objective(algorithm).token_weights(lengths)
        return cls(advantages, token_weights.reshape(shape), mini_batch.reshape(shape))

    def of_process(self, index: int, count: int) -> "Plan":
        return Plan(self.advantages[index::count], self.token_weights[index::count], self.mini_batch[index::count])
