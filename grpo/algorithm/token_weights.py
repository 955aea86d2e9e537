"""How much each completion token counts in the loss: one function per normalisation.

Weights come from the lengths of the whole rollout, over all processes, and are known before the first forward. So the
loss is a plain weighted sum that does not depend on how a batch is split into micro-batches or over processes.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Lengths:
    """The lengths of a rollout's S completions, over all processes.

    Lengths(
        tokens=[3, 5, 2, 0],                # sampled tokens
        active=[True, False, True, True],   # False: masked (truncated); still counts as a sequence, as in TRL
        mini_batch=[0, 0, 1, 1],            # the optimizer step of the rollout it belongs to
        max_completion_length=8,
        steps_per_generation=2,
    )
    """

    tokens: np.ndarray  # [S]
    active: np.ndarray  # [S] bool
    mini_batch: np.ndarray  # [S]
    max_completion_length: int
    steps_per_generation: int

    @property
    def active_tokens(self) -> np.ndarray:  # [S]
        return self.tokens * self.active

    @property
    def num_sequences(self) -> np.ndarray:  # [S]
        """Sequences in each sequence's own mini-batch."""
        return np.bincount(self.mini_batch)[self.mini_batch]


def sequence_mean(lengths: Lengths) -> np.ndarray:
    """1 / (N |o|): the mean over sequences of their token means (GRPO, 2402.03300 Eq. 3). [S]"""
    return 1.0 / (lengths.num_sequences * np.maximum(lengths.tokens, 1))


def sequence_sum(lengths: Lengths) -> np.ndarray:
    """1 / N: the mean over sequences of their token sums (LUSPO, 2602.05261). [S]"""
    return 1.0 / lengths.num_sequences


def constant_length(lengths: Lengths) -> np.ndarray:
    """1 / (N max_completion_length): removes GRPO's length bias (Dr. GRPO, 2503.20783). [S]"""
    return 1.0 / (lengths.num_sequences * lengths.max_completion_length)


def mini_batch_token_mean(lengths: Lengths) -> np.ndarray:
    """1 / T, with T the active tokens of the mini-batch: the mean over its tokens (TRL's "bnpo"). [S]"""
    tokens = np.bincount(lengths.mini_batch, weights=lengths.active_tokens)
    return 1.0 / np.maximum(tokens, 1)[lengths.mini_batch]


def rollout_token_mean(lengths: Lengths) -> np.ndarray:
    """steps_per_generation / T, with T the rollout's active tokens (DAPO, 2503.14476 Eq. 8; TRL's normaliser). [S]"""
    total = max(lengths.active_tokens.sum(), 1)
    return np.full(len(lengths.tokens), lengths.steps_per_generation / total)
