"""Group-relative advantages (GRPO, 2402.03300 section 4.1.2), their variants, and other estimators without a critic."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from rewards.runner.values import Steps

ROUNDING = 1e-9  # what is 0 but for rounding is 0: such samples are dropped before any forward
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
    # The mean of equal rewards may be off in its last bit, as that of 0.1, 0.1, 0.1. They have no advantage.
    rounding = ROUNDING * np.where(np.isfinite(means), np.abs(means), 0.0)
    centred = np.where(np.abs(centred) <= rounding, 0.0, centred)
    if scale_rewards == "group":
        centred /= np.sqrt((centred**2).sum(axis=1, keepdims=True) / np.maximum(counts - 1, 1)) + EPSILON
    elif scale_rewards == "batch":
        all_rewards = rewards[present]
        centred /= (all_rewards.std(ddof=1) if all_rewards.size > 1 else 0.0) + EPSILON
    return centred


def step_advantages(
    steps: Sequence[Sequence[Steps]], scale_rewards: Literal["group", "batch", "none"]
) -> list[list[Steps]]:
    """GRPO with process supervision (2402.03300 section 4.1.3): the normalised rewards of the steps that end at a token
    or after it are its advantage.

        z_ij = (r_ij - mean) / (std + 1e-4)        A_it = sum of z_ij over the steps j with end_ij >= t

    with mean and std of all steps of the group, as in `group_relative_advantages`. With one step each, which ends with
    the completion, that is the reward's own advantage.

    Args:
        steps: [groups][G] lists of (end, reward), in order; empty: no reward applied.

    Returns:
        [groups][G] lists of (end, A of the tokens after the step before and up to this end).
    """
    flat = [[reward for one in group for _, reward in one] for group in steps]
    rewards = np.full((len(flat), max(map(len, flat))), np.nan)
    for row, group in zip(rewards, flat, strict=True):
        row[: len(group)] = group
    result = []
    for row, group in zip(group_relative_advantages(rewards, scale_rewards), steps, strict=True):
        parts = np.split(row, np.cumsum([len(one) for one in group]))
        sums = [part[::-1].cumsum()[::-1] for part in parts[:-1]]
        kept = [np.where(np.abs(part) > ROUNDING, part, 0.0).tolist() for part in sums]
        ends = [[end for end, _ in one] for one in group]
        result.append([list(zip(*pair, strict=True)) for pair in zip(ends, kept, strict=True)])
    return result


def leave_one_out_advantages(rewards: np.ndarray) -> np.ndarray:
    """RLOO (2402.14740 eq. 7): A_ij = r_ij - mean of the group's other rewards. [groups, G] as above."""
    present = ~np.isnan(rewards)
    counts = present.sum(axis=1, keepdims=True)
    return group_relative_advantages(rewards, "none") * counts / np.maximum(counts - 1, 1)


def batch_advantages(rewards: np.ndarray, *, baseline: bool) -> np.ndarray:
    """REINFORCE++ (2501.03262): A_ij = (r_ij - mean) / (std + 1e-4), with mean and std of the whole batch.

    baseline: first subtract each group's mean (REINFORCE++-baseline). The paper's KL penalty inside the reward is left
    out: `beta` adds one to the loss.
    """
    present = ~np.isnan(rewards)
    values = group_relative_advantages(rewards, "none") if baseline else rewards
    kept = values[present]
    if kept.size < 2:
        return np.zeros_like(rewards)
    advantages = (values - kept.mean()) / (kept.std(ddof=1) + EPSILON)
    return np.where(present & (np.abs(advantages) > ROUNDING), advantages, 0.0)


def maximum_likelihood_advantages(rewards: np.ndarray) -> np.ndarray:
    """MaxRL (2602.02710): A_ij = (r_ij - mean_i) / mean_i, so that with rewards 0 and 1 the gradient is that of the log
    of the pass rate: rarely solved problems weigh more. 0 in groups without a success.

    Raises:
        ValueError: a reward is negative.
    """
    lowest = np.nanmin(rewards, initial=0.0)
    if lowest < 0:
        raise ValueError(
            f"advantage_estimator='maxrl' divides by a group's mean reward, and a reward is {lowest:g}. Use rewards "
            "that are never negative, or advantage_estimator='group'."
        )
    present = ~np.isnan(rewards)
    means = np.where(present, rewards, 0.0).sum(axis=1, keepdims=True) / np.maximum(
        present.sum(axis=1, keepdims=True), 1
    )
    return group_relative_advantages(rewards, "none") / np.where(means > 0, means, 1.0)


def pass_at_k_advantages(rewards: np.ndarray, k: int) -> np.ndarray:
    """Pass@k training (2508.10751), in closed form: k completions are one attempt, worth its largest reward.

        A_ij = (E[max | j is in it] - E[max]) / (std[max] + 1e-4)      over all sets of k completions of the group

    With rewards 0 and 1 and f failures among n, as published: E[max] = p = 1 - C(f, k) / C(n, k) with the deviation
    sqrt(p (1 - p)), and E[max | j] = 1 for a success, 1 - C(f - 1, k - 1) / C(n - 1, k - 1) for a failure. k = 1 is
    "group" with the biased deviation. Groups with at most k rewards have one set, and advantage 0.
    """
    advantages = np.zeros_like(rewards)
    for row, result in zip(rewards, advantages, strict=True):
        order = np.argsort(row, kind="stable")[: np.count_nonzero(~np.isnan(row))]  # NaN comes last
        values, n = row[order], len(order)
        if n <= k:
            continue
        sets, sets_with = math.comb(n, k), math.comb(n - 1, k - 1)
        as_largest = np.array([math.comb(rank, k - 1) for rank in range(n)], dtype=np.float64)  # sets that it tops
        below = np.array([0, *(math.comb(rank - 1, k - 2) if k > 1 else 0 for rank in range(1, n))])  # with one more in
        mean = values @ as_largest / sets
        deviation = np.sqrt((values - mean) ** 2 @ as_largest / sets)
        topped_by_others = np.cumsum((values * below)[::-1])[::-1] - values * below
        result[order] = ((values * as_largest + topped_by_others) / sets_with - mean) / (deviation + EPSILON)
    return np.where(np.abs(advantages) > ROUNDING, advantages, 0.0)


def difficulty_weighted(advantages: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """GRPO-LEAD (2504.09696): A w(p) where A > 0 and A w(1 - p) where A < 0, with the group's pass rate p and

        w(p) = 0.4 + (1.5 - 0.4) / (1 + exp(10 (p - 0.75)))

    so that solving what is rarely solved counts most, and so does failing what is mostly solved. A completion passes
    with a reward above 0.5. [groups, G] each.
    """
    present = ~np.isnan(rewards)
    rates = (present & (rewards > 0.5)).sum(axis=1, keepdims=True) / np.maximum(present.sum(axis=1, keepdims=True), 1)

    def weight(rate: np.ndarray) -> np.ndarray:
        return 0.4 + (1.5 - 0.4) / (1 + np.exp(10 * (rate - 0.75)))

    return advantages * np.where(advantages > 0, weight(rates), weight(1 - rates))


def decoupled_advantages(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """GDPO (2601.05242): each reward is normalised in its group, then they are summed, then the batch is normalised.

        z_ijk = (v_ijk - mean_ik) / (std_ik + 1e-4)        s_ij = sum_k w_k z_ijk
        A_ij = (s_ij - mean) / (std + 1e-4)                mean and std of the batch; standard deviations unbiased

    so that rewards of different size weigh as `weights` says, and different combinations of rewards with the same sum
    stay apart. TRL's `multi_objective_aggregation="normalize_then_sum"`.

    Args:
        values: [groups, G, rewards]; NaN where a function did not apply. A function that applies to one completion of
            a group has no deviation there and does not enter their sums.
        weights: [rewards].

    Returns:
        [groups, G], float64, no NaN; 0 for samples that no function applied to.
    """
    present = ~np.isnan(values)
    counts = present.sum(axis=1, keepdims=True)
    means = np.where(present, values, 0.0).sum(axis=1, keepdims=True) / np.maximum(counts, 1)
    centred = np.where(present, values - means, 0.0)
    deviations = np.sqrt((centred**2).sum(axis=1, keepdims=True) / np.maximum(counts - 1, 1))
    sums = np.where(counts > 1, centred / (deviations + EPSILON), 0.0) @ weights
    scored = present.any(axis=2)
    kept = sums[scored]
    if kept.size < 2:
        return np.zeros_like(sums)
    advantages = (sums - kept.mean()) / (kept.std(ddof=1) + EPSILON)
    return np.where(scored & (np.abs(advantages) > ROUNDING), advantages, 0.0)
