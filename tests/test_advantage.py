"""Group-relative advantages."""

import numpy as np
import oracle
import pytest

from grpo.advantage import group_relative_advantages


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
