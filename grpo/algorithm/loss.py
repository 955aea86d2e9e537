"""Policy-gradient objectives: pure functions of flat per-token tensors.

Every `loss_type` is the same clipped surrogate under different token weights, so the loss is one weighted sum.
Weights are known before the first forward and sum over the whole batch of an optimizer step: the loss does not depend
on how the batch is split into micro-batches or over processes.

Left out: sequence-level ratios (GSPO), CISPO, entropy bonus, corrections for a mismatching sampler.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from grpo.report.metrics import Mean, Metrics

LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo"]


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A scalar to call backward on, and detached metrics."""

    loss: Tensor
    metrics: Metrics


def sequence_weights(
    lengths: np.ndarray,
    active: np.ndarray,
    mini_batch: np.ndarray,
    *,
    loss_type: LossType,
    max_completion_length: int,
    steps_per_generation: int,
) -> np.ndarray:
    """Weight of every token of each sequence, from the lengths of the whole rollout.

    With N sequences in the sequence's own mini-batch, |o| its length, T the active tokens of its mini-batch:

    - grpo     1 / (N |o|)                mean over sequences of token means (2402.03300, Eq. 3)
    - dr_grpo  1 / (N max_completion_length)       no length bias (2503.20783)
    - bnpo     1 / T                      mean over the mini-batch's tokens
    - dapo     steps_per_generation / T of the whole rollout (2503.14476, Eq. 8; normalised as TRL does)

    Args:
        lengths: [S] completion tokens of every sequence of the rollout, over all processes.
        active: [S] bool; False where the sequence is masked (truncated). It still counts in N, as in TRL.
        mini_batch: [S] which optimizer step the sequence belongs to.

    Returns:
        [S] float64; 0 for masked and for empty sequences.
    """
    tokens = lengths * active
    num_sequences = np.bincount(mini_batch)[mini_batch]
    if loss_type == "grpo":
        weights = 1.0 / (num_sequences * np.maximum(lengths, 1))
    elif loss_type == "dr_grpo":
        weights = 1.0 / (num_sequences * max_completion_length)
    elif loss_type == "bnpo":
        weights = 1.0 / np.maximum(np.bincount(mini_batch, weights=tokens), 1)[mini_batch]
    else:
        weights = np.full(len(lengths), steps_per_generation / max(tokens.sum(), 1))
    return np.where(tokens > 0, weights, 0.0)


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    epsilon: float,
    epsilon_high: float,
    beta: float = 0.0,
    ref_logprobs: Tensor | None = None,
) -> LossOutput:
    """Clipped surrogate with a k3 KL penalty in the loss (2402.03300 Eq. 3-4, 2501.12948 Eq. 1-2).

    L = - sum_t w_t [ min(r_t A_t, clip(r_t, 1 - epsilon, 1 + epsilon_high) A_t) - beta KL_t ],
    r_t = exp(logprobs - old_logprobs), KL_t = exp(d) - d - 1 with d = ref_logprobs - logprobs.

    Args:
        logprobs: [T] of the policy, with gradient. All tensors are flat over completion tokens.
        old_logprobs: [T] of the policy that sampled; `logprobs.detach()` when it is the same policy.
        advantages: [T]. weights: [T], see `sequence_weights`.
        ref_logprobs: [T] of the reference; needed when beta > 0.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = torch.clamp(ratio, 1 - epsilon, 1 + epsilon_high)
    per_token = -torch.minimum(ratio * advantages, clipped * advantages)

    tokens = logprobs.numel()
    with torch.no_grad():
        low = ((ratio < 1 - epsilon) & (advantages < 0)).sum()
        high = ((ratio > 1 + epsilon_high) & (advantages > 0)).sum()
    metrics = {
        "clip_ratio/low_mean": Mean(low.item(), tokens),
        "clip_ratio/high_mean": Mean(high.item(), tokens),
        "clip_ratio/region_mean": Mean((low + high).item(), tokens),
    }
    if ref_logprobs is not None and beta > 0:
        difference = ref_logprobs - logprobs
        kl = torch.exp(difference) - difference - 1
        per_token = per_token + beta * kl
        metrics["kl"] = Mean(kl.detach().sum().item(), tokens)
    return LossOutput((per_token * weights).sum(), metrics)
