"""Group-relative advantages (GRPO, 2402.03300 section 4.1.2) and their variants."""

from typing import Literal

import numpy as np

EPSILON = 1e-4  # as TRL: keeps a group of nearly equal rewards from exploding


def group_relative_advantages(rewards: np.ndarray, scale_rewards: Literal["group", "batch", "none"]) -> np.ndarray:
    """A_ij = (r_ij - mean_i) / (std + 1e-4), with unbiased standard deviations.

    Args:
        rewards: [groups, G]; NaN where no reward function applied. Such samples count in no mean or deviation and
            get advantage 0.
        scale_rewards: the deviation: of the `group` (GRPO), of the `batch` (2508.08221), or `none`
            (Dr. GRPO, 2503.20783: a group's difficulty does not weight its gradient).

    Returns:
        [groups, G], float64, no NaN.
    """
    present = ~np.isnan(rewards)
    counts = present.sum(axis=1, keepdims=True)
    means = np.where(present, rewards, 0.0).sum(axis=1, keepdims=True) / np.maximum(counts, 1)
    centred = np.where(present, rewards - means, 0.0)
    if scale_rewards == "group":
        centred /= np.sqrt((centred**2).sum(axis=1, keepdims=True) / np.maximum(counts - 1, 1)) + EPSILON
    elif scale_rewards == "batch":
        all_rewards = rewards[present]
        centred /= (all_rewards.std(ddof=1) if all_rewards.size > 1 else 0.0) + EPSILON
    return centred
