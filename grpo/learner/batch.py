"""From scored groups to micro-batches under a token budget.

    ScoredGroups --assemble--> Samples of a rollout --split--> mini-batches --pack--> MicroBatches of tensors

Samples whose gradient is zero are dropped before any forward; the weights of the others come from the full batch, so
the gradient is the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from grpo.algorithm.advantage import decoupled_advantages, group_relative_advantages
from grpo.algorithm.loss import sequence_weights
from grpo.recipe.config import AlgorithmConfig

if TYPE_CHECKING:
    from rewards.runner.score import ScoredGroup


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion, ready to train on.

    Sample(
        prompt_ids=[1, 7],
        completion_ids=[5, 2],
        sampling_logprobs=[-0.1, -0.3],  # the engine's
        advantage=0.7,
        weight=0.01,                     # of each of its tokens in the loss
        mini_batch=0,                    # which optimizer step of the rollout it belongs to
        old_logprobs=None,               # None: the policy that sampled is the policy that learns
        ref_logprobs=None,               # None: no KL term
    )
    """

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    sampling_logprobs: Sequence[float]
    advantage: float
    weight: float
    mini_batch: int
    old_logprobs: np.ndarray | None = None
    ref_logprobs: np.ndarray | None = None

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward and backward. B rows of L tokens, of which T were sampled by the policy.

    Rows are padded on the right, so causal attention needs no mask: no token sees what comes after it. With
    `packed`, all samples lie in one row, told apart by positions that start again at 0 (variable-length attention).
    """

    input_ids: Tensor  # [B, L]
    position_ids: Tensor  # [B, L]
    valid: Tensor  # [B, L] bool; False on padding
    logit_positions: Tensor  # [T] index into the flattened [B * L]; the position that predicts the token
    targets: Tensor  # [T]
    sampling_logprobs: Tensor  # [T]
    advantages: Tensor  # [T]
    weights: Tensor  # [T]
    old_logprobs: Tensor | None  # [T]
    ref_logprobs: Tensor | None  # [T]

    def to(self, device: torch.device) -> "MicroBatch":
        tensors: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        return replace(self, **{n: t.to(device, non_blocking=True) for n, t in tensors.items() if t is not None})


@dataclass(frozen=True, slots=True)
class Shapes:
    """What every process must know of the whole rollout before it can weight a token. [groups, G] but `values`."""

    rewards: np.ndarray  # NaN where no reward function applied
    values: np.ndarray  # [groups, G, rewards] what entered the sum, before weights; NaN where a function did not apply
    lengths: np.ndarray  # completion tokens
    truncated: np.ndarray  # bool

    @classmethod
    def of(cls, groups: "Sequence[ScoredGroup]") -> "Shapes":
        completions = [group.group.completions for group in groups]
        return cls(
            np.array([group.rewards for group in groups], dtype=np.float64),
            np.array([list(zip(*group.counted.values(), strict=True)) for group in groups], dtype=np.float64),
            np.array([[len(c.token_ids) for c in row] for row in completions], dtype=np.int64),
            np.array([[c.finish_reason == "length" for c in row] for row in completions], dtype=bool),
        )

    @classmethod
    def interleave(cls, parts: Sequence["Shapes"]) -> "Shapes":
        """Merge the parts of P processes into global order: process p holds problems p, p + P, p + 2P, …"""
        stacked = [np.stack([getattr(part, name) for part in parts], axis=1) for name in cls.__slots__]
        return cls(*(array.reshape(-1, *array.shape[2:]) for array in stacked))


@dataclass(frozen=True, slots=True)
class Plan:
    """Advantage, weight and mini-batch of every completion of the rollout, over all processes. [groups, G] each."""

    advantages: np.ndarray
    weights: np.ndarray
    mini_batch: np.ndarray

    def of_process(self, index: int, count: int) -> "Plan":
        return Plan(self.advantages[index::count], self.weights[index::count], self.mini_batch[index::count])


def plan(
    shapes: Shapes,
    algorithm: AlgorithmConfig,
    *,
    max_completion_length: int,
    seed: int,
    reward_weights: Sequence[float] = (),
) -> Plan:
    """Every process computes the same plan from the same shapes; mini-batches are a random split of the rollout.

    reward_weights: of the rewards in shapes.values; only "normalize_then_sum" needs them, the sums have them.
    """
    steps = algorithm.steps_per_generation
    size = shapes.rewards.size
    mini_batch = np.zeros(size, dtype=np.int64)
    if steps > 1:
        mini_batch[np.random.default_rng(seed).permutation(size)] = np.arange(size) * steps // size
    active = ~(shapes.truncated & algorithm.mask_truncated_completions)
    weights = sequence_weights(
        shapes.lengths.ravel(),
        active.ravel(),
        mini_batch,
        loss_type=algorithm.loss_type,
        max_completion_length=max_completion_length,
        steps_per_generation=steps,
    )
    shape = shapes.rewards.shape
    if algorithm.multi_objective_aggregation == "normalize_then_sum":
        advantages = decoupled_advantages(shapes.values, np.array(reward_weights))
    else:
        advantages = group_relative_advantages(shapes.rewards, algorithm.scale_rewards)
    return Plan(advantages, weights.reshape(shape), mini_batch.reshape(shape))


def assemble(groups: "Sequence[ScoredGroup]", local: Plan, *, keep_zero_advantage: bool) -> list[Sample]:
    """The samples of this process that have a gradient, in the order of the groups.

    A sample has none when its weight is zero (masked or empty) or when its advantage is zero and nothing but the
    advantage pulls on it (`keep_zero_advantage` is for beta > 0).
    """
    samples = []
    for scored, *plans in zip(groups, local.advantages, local.weights, local.mini_batch, strict=True):
        for completion, advantage, weight, step in zip(scored.group.completions, *plans, strict=True):
            if weight > 0 and (advantage != 0 or keep_zero_advantage):
                samples.append(
                    Sample(
                        prompt_ids=scored.group.prompt_ids,
                        completion_ids=completion.token_ids,
                        sampling_logprobs=completion.logprobs,
                        advantage=float(advantage),
                        weight=float(weight),
                        mini_batch=int(step),
                    )
                )
    return samples


def pack(samples: Sequence[Sample], *, max_tokens: int, packed: bool = False) -> list[list[int]]:
    """Indices of `samples` grouped into micro-batches of at most `max_tokens` tokens, padding included.

    Longest first, so that rows of a micro-batch are of nearly equal length. A sample longer than the budget gets a
    micro-batch of its own.
    """
    order = sorted(range(len(samples)), key=lambda i: -samples[i].length)
    batches: list[list[int]] = []
    used = 0
    for i in order:
        cost = samples[i].length if packed or not batches else samples[batches[-1][0]].length
        if not batches or used + cost > max_tokens:
            batches.append([])
            used, cost = 0, samples[i].length
        batches[-1].append(i)
        used += cost
    return batches


def collate(samples: Sequence[Sample], *, pad_token_id: int, packed: bool = False) -> MicroBatch:
    """Tensors of one micro-batch. Without samples: one row of padding and T = 0, for a process that has run out."""
    lengths = [s.length for s in samples] or [1]
    width = sum(lengths) if packed else max(lengths)
    rows = 1 if packed else len(lengths)
    starts = np.cumsum([0, *lengths[:-1]]) if packed else np.arange(len(lengths)) * width
    input_ids = np.full(rows * width, pad_token_id, dtype=np.int64)
    position_ids = np.tile(np.arange(width), rows)
    valid = np.zeros(rows * width, dtype=bool)
    for start, sample in zip(starts, samples, strict=False):
        input_ids[start : start + sample.length] = [*sample.prompt_ids, *sample.completion_ids]
        position_ids[start : start + sample.length] = np.arange(sample.length)
        valid[start : start + sample.length] = True

    counts = [len(s.completion_ids) for s in samples]
    first = [start + len(s.prompt_ids) - 1 for start, s in zip(starts, samples, strict=False)]
    positions = np.concatenate([np.arange(0), *(np.arange(f, f + n) for f, n in zip(first, counts, strict=True))])

    def per_token(arrays: list) -> Tensor:
        return torch.from_numpy(np.concatenate([*arrays, np.empty(0)]).astype(np.float32))

    def optional(name: str) -> Tensor | None:
        arrays = [getattr(s, name) for s in samples]
        return None if any(a is None for a in arrays) else per_token(arrays)

    return MicroBatch(
        input_ids=torch.from_numpy(input_ids).view(rows, width),
        position_ids=torch.from_numpy(position_ids).view(rows, width),
        valid=torch.from_numpy(valid).view(rows, width),
        logit_positions=torch.from_numpy(positions),
        targets=torch.from_numpy(np.roll(input_ids, -1)[positions]),
        sampling_logprobs=per_token([s.sampling_logprobs for s in samples]),
        advantages=per_token([np.full(n, s.advantage) for s, n in zip(samples, counts, strict=True)]),
        weights=per_token([np.full(n, s.weight) for s, n in zip(samples, counts, strict=True)]),
        old_logprobs=optional("old_logprobs"),
        ref_logprobs=optional("ref_logprobs"),
    )


def annotate(samples: Sequence[Sample], name: str, arrays: Sequence[np.ndarray]) -> list[Sample]:
    """The samples with `old_logprobs` or `ref_logprobs` filled in."""
    return [replace(sample, **{name: array}) for sample, array in zip(samples, arrays, strict=True)]
