"""Policy-gradient objectives: pure functions of flat per-token tensors.

    L = sum_t w_t [ m_t c_t surrogate(r_t, A_t) + beta KL_t - entropy_coef H_t ]

    w  token weights     how much a token counts: the normalisation over the rollout
    r  ratio             of the policy to the old one: per token, or one per completion
    c  correction        for a sampler that is not the old policy, `grpo.algorithm.correction`
    m  off-policy mask   of DeepSeek-V3.2

An `Objective` names the first two and the surrogate. To add one, define it here and name it in `LOSSES` of
grpo/recipe/registry.py. docs/algorithms.md has the table of all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from grpo.algorithm import surrogate as surrogates
from grpo.algorithm.correction import correction_of, off_policy_mask
from grpo.algorithm.token_weights import (
    Lengths,
    constant_length,
    mini_batch_token_mean,
    rollout_token_mean,
    sequence_mean,
    sequence_sum,
)
from grpo.algorithm.tokens import Tokens, exp_ratio
from grpo.recipe.algorithm import AlgorithmConfig
from grpo.report.metrics import Mean, Metric, Metrics


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A scalar to call backward on, and detached metrics."""

    loss: Tensor
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Objective:
    """What `algorithm.loss_type` names."""

    weigh: Callable[[Lengths], np.ndarray]
    surrogate: Callable[[Tensor, Tokens, AlgorithmConfig], surrogates.PerToken] = surrogates.clipped
    level: Literal["token", "sequence", "sequence_token"] = "token"
    to_behaviour: bool = False  # the ratio is to the engine, which sampled, and not to the old policy

    def token_weights(self, lengths: Lengths) -> np.ndarray:
        """Weight of every token of each sequence: [S] float64, 0 for masked and for empty sequences."""
        return np.where(lengths.active_tokens > 0, self.weigh(lengths), 0.0)

    def loss(self, tokens: Tokens, settings: AlgorithmConfig) -> LossOutput:
        """The loss of a micro-batch: a summand of its mini-batch's."""
        base = tokens.behaviour_logprobs if self.to_behaviour else tokens.old_logprobs
        ratio = importance_ratio(tokens, base, settings.importance_sampling_level or self.level)
        per_token, metrics = self.surrogate(ratio, tokens, settings)
        if settings.off_policy_mask_threshold is not None:
            kept = off_policy_mask(tokens, settings.off_policy_mask_threshold)
            per_token = per_token * kept
            metrics["off_policy_mask/kept_share"] = Mean(kept.sum().item(), len(kept))
        if (correction := correction_of(settings)) is not None:
            weights, measured = correction.weights(tokens)
            per_token, metrics = per_token * weights, metrics | measured
        if tokens.ref_logprobs is not None and settings.beta > 0:
            penalty, measured = kl_penalty(tokens, ratio if settings.use_bias_correction_kl else None)
            per_token, metrics = per_token + settings.beta * penalty, metrics | measured
        if settings.entropy_coef:
            assert tokens.entropy is not None
            per_token = per_token - settings.entropy_coef * tokens.entropy
        return LossOutput((per_token * tokens.token_weights).sum(), metrics)


def importance_ratio(tokens: Tokens, base: Tensor, level: str) -> Tensor:
    """pi / base with gradient, [T].

    token: r_t. sequence: (prod_t r_t)^(1/|o|) for every token of the completion (GSPO, 2507.18071 eq. 7).
    sequence_token: that value, with the gradient of r_t alone (GSPO-token, eq. 14).
    """
    log_ratio = tokens.logprobs - base
    if level == "sequence":
        log_ratio = tokens.sequence_mean(log_ratio)
    elif level == "sequence_token":
        log_ratio = tokens.sequence_mean(log_ratio).detach() + tokens.logprobs - tokens.logprobs.detach()
    return exp_ratio(log_ratio)


def kl_penalty(tokens: Tokens, ratio: Tensor | None) -> tuple[Tensor, dict[str, Metric]]:
    """k3 = exp(d) - d - 1 with d = log pi_ref - log pi, an estimate of KL(pi || pi_ref) (2402.03300 eq. 4): [T].

    ratio: pi / pi_old. Times it, the gradient is unbiased when the tokens were sampled from the old policy
    (2512.02556 eq. 7).
    """
    assert tokens.ref_logprobs is not None
    difference = tokens.ref_logprobs - tokens.logprobs
    kl = exp_ratio(difference) - difference - 1
    if ratio is not None:
        kl = kl * ratio
    return kl, {"kl": Mean(kl.detach().sum().item(), len(kl))}


grpo = Objective(sequence_mean)
dr_grpo = Objective(constant_length)
bnpo = Objective(mini_batch_token_mean)
dapo = Objective(rollout_token_mean)
gspo = Objective(sequence_mean, level="sequence")
gspo_token = Objective(sequence_mean, level="sequence_token")
luspo = Objective(sequence_sum, level="sequence")
cispo = Objective(rollout_token_mean, surrogates.cispo)
sapo = Objective(sequence_mean, surrogates.sapo)
clip_cov = Objective(rollout_token_mean, surrogates.clip_cov)
kl_cov = Objective(rollout_token_mean, surrogates.kl_cov)
vespo = Objective(rollout_token_mean, surrogates.vespo, to_behaviour=True)
dppo = Objective(rollout_token_mean, surrogates.dppo, to_behaviour=True)
