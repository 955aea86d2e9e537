"""Group-relative advantages."""

import numpy as np
import pytest

from grpo.algorithm.advantage import decoupled_advantages, group_relative_advantages
from tests.grpo.algorithm import oracle


def test_group_scaling_by_hand() -> None:
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    # mean 0.5, unbiased deviation sqrt(4 * 0.25 / 3) = 0.57735
    expected = 0.5 / (0.5773502691896257 + 1e-4)
    assert group_relative_advantages(rewards, "group").tolist() == [
        [pytest.approx(expected), pytest.approx(-expected), pytest.approx(-expected), pytest.approx(expected)],
        [0.0, 0.0, 0.0, 0.0],
    ]


def test_none_only_centres() -> None:
    assert group_relative_advantages(np.array([[2.0, 0.0]]), "none").tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_matches_oracle_with_samples_that_no_reward_applies_to(scale: str) -> None:
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(6, 8))
    rewards[rng.random(rewards.shape) < 0.2] = np.nan
    rewards[3] = np.nan
    got = group_relative_advantages(rewards, scale)  # type: ignore[arg-type]
    np.testing.assert_allclose(got, oracle.advantages(rewards.tolist(), scale), rtol=1e-12, atol=1e-12)
    assert not got[3].any()


def test_rewards_are_normalised_one_by_one_and_then_the_batch() -> None:
    """Each spreads by 1 within its group, so that one of 10 weighs like one of 1; the sums 1 and -1 fill the batch."""
    values = np.array([[[1.0, 0.0], [0.0, 10.0]], [[1.0, 10.0], [0.0, 0.0]]])
    unit = 0.5 / (0.5**0.5 + 1e-4)  # (1 - 0.5) / std of {0, 1}
    tens = 5 / (50**0.5 + 1e-4)
    sums = [unit - tens, tens - unit, unit + tens, -unit - tens]
    std = (sum(s * s for s in sums) / 3) ** 0.5
    expected = [s / (std + 1e-4) for s in sums]
    got = decoupled_advantages(values, np.array([1.0, 1.0]))
    np.testing.assert_allclose(got.ravel(), expected, rtol=1e-12, atol=1e-12)


def test_decoupled_advantages_match_the_oracle_where_rewards_do_not_apply() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 8, 3)) * [1.0, 100.0, 0.01]
    values[rng.random(values.shape) < 0.3] = np.nan
    values[3] = np.nan
    values[4, 1:, 0] = np.nan
    weights = [1.0, 0.5, -2.0]
    got = decoupled_advantages(values, np.array(weights))
    np.testing.assert_allclose(got, oracle.decoupled(values.tolist(), weights), rtol=1e-12, atol=1e-12)
    assert not got[3].any()


def test_groups_without_spread_have_no_decoupled_advantage_at_all() -> None:
    """Exactly 0, so that they are dropped before any forward."""
    values = np.random.default_rng(2).normal(size=(5, 4, 2))
    values[1] = 0.3
    assert decoupled_advantages(values, np.array([1.0, 0.7]))[1].tolist() == [0.0] * 4
    assert decoupled_advantages(np.full((2, 2, 1), 0.1), np.array([1.0])).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert decoupled_advantages(np.full((2, 2, 1), np.nan), np.array([1.0])).tolist() == [[0.0, 0.0], [0.0, 0.0]]
