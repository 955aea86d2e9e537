"""Corrections for a sampler that is not the trainer's policy: importance weights pi_old / mu, bounded.

mu is the engine, which sampled; pi_old is the trainer's policy with the same weights, or newer ones if the engine is
behind. A correction is a level, a rule for weights outside the bounds, and the bounds:

    level      token: r_t       sequence: prod_t r_t       geometric: (prod_t r_t)^(1/|o|)
    truncate   weights are clipped to the bounds           (TIS; TRL: *_truncate)
    mask       outside of the bounds a weight is 0         (2510.18855 IcePop; TRL: *_mask)
    keep       inside the bounds 1, outside 0              (geometric masks of verl and SkyRL)

Weights have no gradient.
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from grpo.algorithm.tokens import Tokens, exp_ratio
from grpo.recipe.algorithm import AlgorithmConfig
from grpo.recipe.registry import CORRECTIONS
from grpo.report.metrics import EffectiveSampleSize, Max, Mean, Metric, Min

LEVELS: dict[str, Callable[[Tokens, Tensor], Tensor]] = {
    "token": lambda _tokens, log_ratio: log_ratio,
    "sequence": Tokens.sequence_sum,
    "geometric": Tokens.sequence_mean,
}


@dataclass(frozen=True, slots=True)
class Correction:
    """Correction("token", "truncate", 0.0, 2.0)"""

    level: Literal["token", "sequence", "geometric"]
    rule: Literal["truncate", "mask", "keep"]
    clip_min: float
    clip_max: float

    @torch.no_grad()
    def weights(self, tokens: Tokens) -> tuple[Tensor, dict[str, Metric]]:
        """The importance weight of every token, [T], and metrics of the weights and of what the bounds changed."""
        ratio = exp_ratio(LEVELS[self.level](tokens, tokens.old_logprobs - tokens.behaviour_logprobs))
        outside = (ratio < self.clip_min) | (ratio > self.clip_max)
        if self.rule == "truncate":
            weights = ratio.clamp(self.clip_min, self.clip_max)
        else:
            weights = (ratio if self.rule == "mask" else torch.ones_like(ratio)).masked_fill(outside, 0.0)
        if not len(ratio):
            return weights, {}
        count, values = len(ratio), weights.double()
        name = "sampling/importance_sampling_ratio"
        return weights, {
            f"{name}/min": Min(ratio.min().item()),
            f"{name}/mean": Mean(ratio.double().sum().item(), count),
            f"{name}/max": Max(ratio.max().item()),
            f"{name}/clipped_share": Mean(outside.sum().item(), count),
            f"{name}/effective_sample_size": EffectiveSampleSize(values.sum().item(), (values**2).sum().item(), count),
        }


# To add one, name it in CORRECTIONS of grpo/recipe/registry.py.
tis = Correction("token", "truncate", 0.0, 2.0)
sequence_tis = Correction("sequence", "truncate", 0.0, 4.0)
token_mis = Correction("token", "mask", 0.0, 2.0)
mis = Correction("sequence", "mask", 0.0, 3.0)  # TRL's default
icepop = Correction("token", "mask", 0.5, 5.0)
geometric = Correction("geometric", "keep", 0.99, 1.01)


def correction_of(settings: AlgorithmConfig) -> Correction | None:
    """The one that a recipe names, with the recipe's bounds where it sets them."""
    if settings.importance_sampling_correction is None:
        return None
    preset: Correction = pkgutil.resolve_name(CORRECTIONS[settings.importance_sampling_correction])
    low, high = settings.importance_sampling_clip_min, settings.importance_sampling_clip_max
    return replace(
        preset, clip_min=preset.clip_min if low is None else low, clip_max=preset.clip_max if high is None else high
    )


def off_policy_mask(tokens: Tokens, threshold: float) -> Tensor:
    """DeepSeek-V3.2's off-policy sequence mask (2512.02556 eq. 9): [T], 0.0 or 1.0, no gradient.

    A completion with a negative advantage is left out when mean_t log(mu_t / pi_t) exceeds the threshold: pushing away
    what the policy would hardly sample any more only destabilises it.
    """
    drift = tokens.sequence_mean(tokens.behaviour_logprobs - tokens.logprobs.detach())
    return ((tokens.advantages >= 0) | (drift <= threshold)).to(tokens.logprobs.dtype)
