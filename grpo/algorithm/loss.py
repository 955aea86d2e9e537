"""Policy-gradient objectives: pure functions of flat per-token tensors.

An objective is a surrogate (what a token contributes) under token weights (how much it counts). To add one, define an
`Objective` here and name it in `LOSSES` of grpo/recipe/registry.py.

Left out: sequence-level ratios (GSPO), CISPO, entropy bonus, corrections for a sampler that disagrees with the trainer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from grpo.algorithm.token_weights import (
    Lengths,
    constant_length,
    mini_batch_token_mean,
    rollout_token_mean,
    sequence_mean,
)
from grpo.report.metrics import Mean, Metrics


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A scalar to call backward on, and detached metrics."""

    loss: Tensor
    metrics: Metrics


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    token_weights: Tensor,
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
        old_logprobs: [T] of the policy before the rollout's first update; `logprobs.detach()` when there was none.
        advantages: [T]. token_weights: [T], see `grpo.algorithm.token_weights`.
        ref_logprobs: [T] of the reference model; needed when beta > 0.
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
    return LossOutput((per_token * token_weights).sum(), metrics)


@dataclass(frozen=True, slots=True)
class Objective:
    """What `algorithm.loss_type` names."""

    weigh: Callable[[Lengths], np.ndarray]
    surrogate: Callable[..., LossOutput] = clipped_surrogate

    def token_weights(self, lengths: Lengths) -> np.ndarray:
        """Weight of every token of each sequence: [S] float64, 0 for masked and for empty sequences."""
        return np.where(lengths.active_tokens > 0, self.weigh(lengths), 0.0)


grpo = Objective(sequence_mean)
dr_grpo = Objective(constant_length)
bnpo = Objective(mini_batch_token_mean)
dapo = Objective(rollout_token_mean)
