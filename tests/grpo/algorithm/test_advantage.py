"""Group-relative advantages."""

import numpy as np
import pytest

from grpo.algorithm.advantage import (
    decoupled_advantages,
    difficulty_weighted,
    group_relative_advantages,
    pass_at_k_advantages,
)
from grpo.algorithm.plan import Plan, Shapes, estimate_advantages
from grpo.recipe.algorithm import AlgorithmConfig
from tests.grpo.algorithm import oracle


def test_group_scaling_by_hand() -> None:
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    # mean 0.5, unbiased deviation sqrt(4 * 0.25 / 3) = 0.57735
    expected = 0.5 / (0.5773502691896257 + 1e-4)
    assert group_relative_advantages(rewards, "group").tolist() == [
        [pytest.approx(expected), pytest.approx(-expected), pytest.approx(-expected), pytest.approx(expected)],
        [0.0, 0.0, 0.0, 0.0],
    ]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_have_no_advantage_however_their_mean_is_rounded(scale: str) -> None:
    rewards = np.array([[0.1] * 3, [0.7, 0.7, 0.1]])
    assert rewards[0].mean() != 0.1
    advantages = group_relative_advantages(rewards, scale)
    assert (advantages[0] == 0).all() and (advantages[1] != 0).all()


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


REWARDS = np.array([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("name", "first", "third"),
    [
        ("rloo", [2 / 3, -2 / 3, -2 / 3, 2 / 3], [-1 / 3, -1 / 3, -1 / 3, 1.0]),
        ("maxrl", [1.0, -1.0, -1.0, 1.0], [-1.0, -1.0, -1.0, 3.0]),
        ("reinforce_plus_plus", None, None),
        ("reinforce_plus_plus_baseline", None, None),
    ],
)
def test_other_estimators_match_the_oracle(name: str, first: list[float] | None, third: list[float] | None) -> None:
    got = estimate_advantages(REWARDS, AlgorithmConfig(advantage_estimator=name))
    np.testing.assert_allclose(got, oracle.estimator(REWARDS.tolist(), name), rtol=1e-12, atol=1e-12)
    if first:
        assert got[0].tolist() == pytest.approx(first) and got[2].tolist() == pytest.approx(third)
    if name != "reinforce_plus_plus":  # the batch's mean is no group's: groups of one kind have a gradient there
        assert not got[1].any() and not got[3].any()
        uneven = np.array([[0.1, 0.3, 0.3], [0.7, 0.7, 0.7], [0.2, 0.9, 0.1]])  # whose batch has a mean of 1e-17
        assert not estimate_advantages(uneven, AlgorithmConfig(advantage_estimator=name))[1].any()
    holes = np.where(np.arange(4) == 1, np.nan, REWARDS)
    assert not np.isnan(estimate_advantages(holes, AlgorithmConfig(advantage_estimator=name))).any()
    none = estimate_advantages(np.full((2, 2), np.nan), AlgorithmConfig(advantage_estimator=name))
    assert none.tolist() == [[0.0, 0.0]] * 2


def test_maxrl_refuses_negative_rewards() -> None:
    with pytest.raises(ValueError, match=r"divides by a group's mean reward, and a reward is -0.5\. Use rewards"):
        estimate_advantages(np.array([[1.0, -0.5]]), AlgorithmConfig(advantage_estimator="maxrl"))


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


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_mean_over_all_sets_of_k(k: int) -> None:
    """Also with ties and with rewards that are not 0 and 1."""
    rng = np.random.default_rng(k)
    rewards = np.concatenate([rng.integers(0, 2, (6, 7)), rng.normal(size=(3, 7)).round(1), rng.integers(0, 3, (3, 7))])
    got = pass_at_k_advantages(rewards.astype(float), k)
    np.testing.assert_allclose(got, [oracle.pass_at_k(row, k) for row in rewards.tolist()], rtol=1e-9, atol=1e-9)


def test_pass_at_k_by_the_published_formula() -> None:
    """Eight completions of which two succeed, k = 4: p = 1 - C(6, 4) / C(8, 4)."""
    rewards = np.array([[1.0, 0, 0, 0, 0, 1.0, 0, 0]])
    p = 1 - 15 / 70
    deviation = (p * (1 - p)) ** 0.5 + 1e-4
    got = pass_at_k_advantages(rewards, 4)
    assert got[0, [0, 5]].tolist() == pytest.approx([(1 - p) / deviation] * 2)
    assert got[0, 1] == pytest.approx((1 - p - 10 / 35) / deviation)  # C(5, 3) / C(7, 3)


def test_pass_at_1_is_the_groups_advantage_with_its_biased_deviation() -> None:
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [0.2, 0.1, 0.9, 0.0]])
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    expected = centred / (rewards.std(axis=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(pass_at_k_advantages(rewards, 1), expected, rtol=1e-12)


def test_pass_at_k_is_0_where_every_set_is_worth_the_same() -> None:
    """All equal, every set of 4 with a success, fewer rewards than k: exactly 0, so that they are dropped."""
    nan = np.nan
    rewards = np.array([[0.3] * 6, [1, 1, 1, 0, 0, 0], [nan, nan, 1, 0, 0, 1], [nan] * 6, [nan, 1, 0, 0, 0, 0]])
    got = pass_at_k_advantages(rewards, 4)
    assert not got[:4].any()
    assert got[4, 0] == 0 and got[4, 1] > 0
    np.testing.assert_allclose(got[4, 1:], oracle.pass_at_k([1, 0, 0, 0, 0], 4), atol=1e-9)


def test_difficulty_weights_by_hand() -> None:
    """Pass rates 1/4 and 3/4: w(0.25) = 0.4 + 1.1 / (1 + e^-5), w(0.75) = 0.4 + 1.1 / 2."""
    rewards = np.array([[1.0, 0.0, 0.1, np.nan, 0.0], [1.0, 1.0, 0.0, 1.0, np.nan]])
    advantages = np.array([[2.0, -1.0, -1.0, 0.0, -1.0], [1.0, 1.0, -3.0, 1.0, 0.0]])
    hard, easy = 0.4 + 1.1 / (1 + np.exp(-5)), 0.4 + 1.1 / 2
    expected = [[2 * hard, -easy, -easy, 0, -easy], [easy, easy, -3 * hard, easy, 0]]
    np.testing.assert_allclose(difficulty_weighted(advantages, rewards), expected, rtol=1e-12)


def test_estimator_and_difficulty_weights_reach_the_plan() -> None:
    rewards = np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    nothing = np.full((2, 4), None)
    shapes = Shapes(rewards, rewards[..., None], np.ones((2, 4), dtype=int), np.zeros((2, 4), dtype=bool), nothing)

    def advantages(**settings: object) -> np.ndarray:
        return Plan.of(shapes, AlgorithmConfig(**settings), max_completion_length=4, seed=0).advantages  # type: ignore[arg-type]

    estimated = pass_at_k_advantages(rewards, 1)
    assert advantages(advantage_estimator="pass_at_k", pass_k=1).tolist() == estimated.tolist()
    weighted = advantages(advantage_estimator="pass_at_k", pass_k=1, difficulty_weighting=True)
    assert weighted.tolist() == difficulty_weighted(estimated, rewards).tolist()
    assert weighted[0, 0] / estimated[0, 0] > weighted[1, 0] / estimated[1, 0]
