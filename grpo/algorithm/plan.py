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
    step_advantages,
)
from grpo.algorithm.loss import Objective
from grpo.algorithm.token_weights import Lengths
from grpo.recipe.algorithm import AlgorithmConfig
from grpo.recipe.registry import LOSSES
from rewards.runner.values import LAST, Steps

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
    steps: np.ndarray  # of objects: lists of (token that a step ends at, reward); None in groups without spans

    @classmethod
    def of(cls, groups: "Sequence[ScoredGroup]") -> "Shapes":
        completions = [group.group.completions for group in groups]
        return cls(
            np.array([group.rewards for group in groups], dtype=np.float64),
            np.array([list(zip(*group.counted.values(), strict=True)) for group in groups], dtype=np.float64),
            np.array([[c.num_sampled for c in row] for row in completions], dtype=np.int64),
            np.array([[c.finish_reason == "length" for c in row] for row in completions], dtype=bool),
            _objects([group.steps or [None] * len(group.rewards) for group in groups]),
        )

    @classmethod
    def interleave(cls, parts: Sequence["Shapes"]) -> "Shapes":
        """Merge the parts of P processes into global order: process p holds problems p, p + P, p + 2P, …"""
        stacked = [np.stack([getattr(part, name) for part in parts], axis=1) for name in cls.__slots__]
        return cls(*(array.reshape(array.shape[0] * array.shape[1], *array.shape[2:]) for array in stacked))


@dataclass(frozen=True, slots=True)
class Plan:
    """Every completion of the rollout, over all processes: arrays [groups, G]."""

    advantages: np.ndarray  # of the first token, where those of a completion's tokens differ
    token_weights: np.ndarray
    mini_batch: np.ndarray
    steps: np.ndarray | None = None  # of objects, if any reward returned spans: (last token, advantage) of each step

    @property
    def has_advantage(self) -> np.ndarray:
        """Whether any token of the completion has one: [groups, G]."""
        if self.steps is None:
            return self.advantages != 0
        return np.array([[any(a for _, a in steps) for steps in row] for row in self.steps], dtype=bool)

    def of_tokens(self, place: tuple[int, int], length: int) -> float | np.ndarray:
        """The advantage of all tokens of one completion, or one of each: [length]."""
        if self.steps is None:
            return float(self.advantages[place])
        ends, advantages = zip(*self.steps[place], (LAST, 0.0), strict=True)  # after the last step there is none
        return np.array(advantages)[np.searchsorted(ends, np.arange(length))]

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
        of_steps = None
        if any(own is not None for own in shapes.steps.flat):
            of_steps = _step_advantages(shapes, algorithm)
            advantages = np.array([[own[0][1] if own else 0.0 for own in row] for row in of_steps], dtype=np.float64)
        elif algorithm.multi_objective_aggregation == "normalize_then_sum":
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
        return cls(advantages, token_weights.reshape(shape), mini_batch.reshape(shape), of_steps)

    def of_process(self, index: int, count: int) -> "Plan":
        parts = (self.advantages, self.token_weights, self.mini_batch, self.steps)
        return Plan(*(None if part is None else part[index::count] for part in parts))  # type: ignore[arg-type]


def check_steps(algorithm: AlgorithmConfig, reward: str) -> None:
    """Raise ValueError if the algorithm needs one advantage per completion, which `reward`, with its spans, has not."""
    level = algorithm.importance_sampling_level or objective(algorithm).level
    aggregation = algorithm.multi_objective_aggregation
    reasons = {
        f"advantage_estimator={algorithm.advantage_estimator!r}": algorithm.advantage_estimator != "group",
        f"multi_objective_aggregation={aggregation!r}": aggregation != "sum_then_normalize",
        "difficulty_weighting": algorithm.difficulty_weighting,
        f"loss_type={algorithm.loss_type!r}, with the ratio of a completion,": level == "sequence",
        "loss_type='vespo'": algorithm.loss_type == "vespo",
        "off_policy_mask_threshold": algorithm.off_policy_mask_threshold is not None,
    }
    if reason := next((name for name, holds in reasons.items() if holds), None):
        raise ValueError(
            f"reward {reward!r} returns spans, so tokens of one completion have different advantages, and "
            f"algorithm.{reason} needs one of the whole completion. Return numbers, or remove it."
        )


def _step_advantages(shapes: Shapes, algorithm: AlgorithmConfig) -> np.ndarray:
    """(last token, advantage) of each step: [groups, G] of lists. A reward without spans is a step at the end."""

    def whole(own: Steps | None, reward: float) -> Steps:
        return own if own is not None else [] if np.isnan(reward) else [(LAST, reward)]

    pairs = zip(shapes.steps, shapes.rewards, strict=True)
    every = [[whole(own, reward) for own, reward in zip(*pair, strict=True)] for pair in pairs]
    return _objects(step_advantages(every, algorithm.scale_rewards))


def _objects(rows: Sequence[Sequence[object]]) -> np.ndarray:
    """Lists as elements: [groups, G] of objects."""
    made = np.empty((len(rows), len(rows[0]) if rows else 0), dtype=object)
    for row, values in zip(made, rows, strict=True):
        for index, value in enumerate(values):
            row[index] = value
    return made
