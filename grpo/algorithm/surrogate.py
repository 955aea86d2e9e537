"""Surrogates: what one token contributes to the loss, before token weights. All tensors are [T].

Each takes the ratio with gradient (of tokens, or one per completion), the tokens and the recipe's settings, and returns
the loss of every token with its metrics. With ratio 1, as in the first update of a rollout, all have the
gradient of REINFORCE, -A d log pi.
"""

import math

import torch
from torch import Tensor

from grpo.algorithm.tokens import MAX_LOG_RATIO, Tokens
from grpo.recipe.algorithm import AlgorithmConfig
from grpo.report.metrics import Mean, Metric

ROUNDING = 1e-5  # of log-probs in float32, whose packing differs from one forward to the next
PerToken = tuple[Tensor, dict[str, Metric]]


def clipped(ratio: Tensor, tokens: Tokens, settings: AlgorithmConfig) -> PerToken:
    """-min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A) (1707.06347 eq. 7; 2402.03300 eq. 3).

    `delta` bounds r from above where A < 0 too (2505.07291): with a negative advantage the loss is at most delta |A|,
    which is dual-clip PPO with c = delta (1912.09729 eq. 5).
    """
    low, high = 1 - settings.epsilon, 1 + settings.clip_high
    bounded = ratio if settings.delta is None else ratio.clamp(max=settings.delta)
    loss = -torch.minimum(bounded * tokens.advantages, ratio.clamp(low, high) * tokens.advantages)
    too_low = (ratio < low) & (tokens.advantages < 0)
    too_high = (ratio > high) & (tokens.advantages > 0)
    return loss, _clip_metrics(too_low, too_high)


def cispo(ratio: Tensor, tokens: Tokens, settings: AlgorithmConfig) -> PerToken:
    """-sg[min(r, epsilon_high)] A log pi (CISPO, 2506.13585 eq. 4-5): no token loses its gradient."""
    loss = -ratio.clamp(max=settings.clip_high).detach() * tokens.advantages * tokens.logprobs
    above = ratio > settings.clip_high
    return loss, _clip_metrics(torch.zeros_like(above), above)


def sapo(ratio: Tensor, tokens: Tokens, settings: AlgorithmConfig) -> PerToken:
    """-4 / tau sigmoid(tau (r - 1)) A, tau by the sign of A (SAPO, 2511.20347): a clip that sets in gradually."""
    rising, falling = (ratio.new_tensor(tau) for tau in (settings.sapo_temperature_pos, settings.sapo_temperature_neg))
    tau = torch.where(tokens.advantages > 0, rising, falling)
    return -4 / tau * torch.sigmoid(tau * (ratio - 1)) * tokens.advantages, {}


def dppo(ratio: Tensor, tokens: Tokens, settings: AlgorithmConfig) -> PerToken:
    """-keep A r + c (log r)^2, r = pi / mu (DPPO's total-variation mask with Kimi-K2.5's penalty,
    as in prime-rl of August 2026).

    A token is left out when its probability has already moved by more than `dppo_delta` in the direction that its
    advantage asks for: pi - mu > delta with A > 0, or pi - mu < -delta with A < 0. c is `dppo_log_ratio_coef`.
    """
    moved = tokens.logprobs.detach().exp() - tokens.behaviour_logprobs.exp()
    too_high = (moved > settings.dppo_delta) & (tokens.advantages > 0)
    too_low = (moved < -settings.dppo_delta) & (tokens.advantages < 0)
    keep = (~(too_high | too_low)).to(ratio.dtype)
    penalty = settings.dppo_log_ratio_coef * ratio.log() ** 2
    return penalty - keep * tokens.advantages * ratio, _clip_metrics(too_low, too_high)


def vespo(_ratio: Tensor, tokens: Tokens, settings: AlgorithmConfig) -> PerToken:
    """-phi(w) A log pi with w = prod_t pi / mu of the completion, phi(w) = w^k exp(lambda (1 - w)) (VESPO, 2602.10693).

    k and lambda go by the sign of A, as in TRL. phi is 1 at w = 1 and 0 far from it; it has no gradient.
    """
    log_ratio = (tokens.logprobs.detach() - tokens.behaviour_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    log_w = tokens.sequence_sum(log_ratio).clamp(math.log(1e-8), MAX_LOG_RATIO)
    above = (settings.vespo_k_pos * log_w + settings.vespo_lambda_pos * (1 - log_w.exp())).exp()
    below = (settings.vespo_k_neg * log_w + settings.vespo_lambda_neg * (1 - log_w.exp())).exp()
    phi = torch.where(tokens.advantages >= 0, above, below)
    return -phi * tokens.advantages * tokens.logprobs, {"vespo/phi": Mean(phi.sum().item(), len(phi))}


def clip_cov(ratio: Tensor, tokens: Tokens, settings: AlgorithmConfig) -> PerToken:
    """`clipped`, where the selected tokens have no gradient (Clip-Cov, 2505.22617)."""
    assert tokens.selected is not None
    loss, metrics = clipped(ratio, tokens, settings)
    return loss * ~tokens.selected, metrics | _selection_metrics(tokens.selected)


def kl_cov(ratio: Tensor, tokens: Tokens, settings: AlgorithmConfig) -> PerToken:
    """-r A, plus `kl_cov_coef` |log r| on the selected tokens (KL-Cov, 2505.22617): there is no clip.

    Before a rollout's first update log r is 0 but for rounding, whose sign would be a gradient as large as any other's.
    """
    assert tokens.selected is not None
    distance = ratio.log().abs()
    penalty = settings.kl_cov_coef * distance * (tokens.selected & (distance > ROUNDING))
    return penalty - ratio * tokens.advantages, _selection_metrics(tokens.selected)


def _selection_metrics(selected: Tensor) -> dict[str, Metric]:
    return {"covariance/selected_share": Mean(selected.sum().item(), len(selected))}


def _clip_metrics(low: Tensor, high: Tensor) -> dict[str, Metric]:
    """Shares of tokens that the clip stops."""
    count, lows, highs = len(low), low.sum().item(), high.sum().item()
    return {
        "clip_ratio/low_mean": Mean(lows, count),
        "clip_ratio/high_mean": Mean(highs, count),
        "clip_ratio/region_mean": Mean(lows + highs, count),
    }
