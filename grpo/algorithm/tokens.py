"""What an objective reads: the sampled tokens of a micro-batch, flat, and the completion that each belongs to.

Three policies have a log-prob for every token, and they must not be mixed up:

    behaviour   the engine's, which sampled the token; may differ from the trainer's in precision, or be older
    old         the trainer's before the rollout's first update; the same weights as the engine's unless it is behind
    logprobs    the policy's now, with gradient
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0  # beyond it exp overflows or a single token decides the step


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """T sampled tokens: [T] each."""

    logprobs: Tensor  # of the policy, with gradient
    old_logprobs: Tensor
    behaviour_logprobs: Tensor
    advantages: Tensor
    token_weights: Tensor  # see `grpo.algorithm.token_weights`
    sequences: Tensor  # int64, 0 … S - 1; a completion is never split between micro-batches
    ref_logprobs: Tensor | None = None
    entropy: Tensor | None = None  # nats; with gradient if there is a bonus for it
    selected: Tensor | None = None  # bool; what Clip-Cov and KL-Cov hold back, see `grpo.algorithm.covariance`

    def sequence_sum(self, values: Tensor) -> Tensor:
        """The sum over each token's completion: [T]."""
        count = int(self.sequences.max()) + 1 if len(self.sequences) else 0
        return values.new_zeros(count).index_add(0, self.sequences, values)[self.sequences]

    def sequence_mean(self, values: Tensor) -> Tensor:
        """The mean over each token's completion: [T]."""
        return self.sequence_sum(values) / self.sequence_sum(torch.ones_like(values))


def exp_ratio(log_ratio: Tensor) -> Tensor:
    """exp of a log ratio, which is kept within ±MAX_LOG_RATIO."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
