"""The entropy bonus's coefficient follows the entropy."""

import pytest

from grpo.algorithm.entropy import EntropyBonus
from grpo.recipe.algorithm import AlgorithmConfig

SETTINGS = AlgorithmConfig(entropy_coef=0.01, entropy_target=0.5, entropy_coef_delta=0.005, entropy_coef_max=0.02)
# entropy of an update -> the controlled coefficient after it, and what the next update applies (0 above the target)
BY_HAND = [
    (0.9, 0.005, 0.0),
    (0.8, 0.0, 0.0),
    (0.7, 0.0, 0.0),  # never below 0
    (0.5, 0.005, 0.005),  # the target itself counts as below
    (0.4, 0.010, 0.010),
    (0.3, 0.015, 0.015),
    (0.3, 0.020, 0.020),
    (0.3, 0.020, 0.020),  # the maximum
    (0.6, 0.015, 0.0),
    (0.2, 0.020, 0.020),
]


def test_the_coefficient_moves_by_a_step_and_applies_below_the_target_only() -> None:
    bonus = EntropyBonus(SETTINGS)
    assert bonus.coef == 0.0  # nothing has been measured
    for entropy, controlled, applied in BY_HAND:
        bonus.observe(entropy)
        assert (bonus.controlled, bonus.coef) == (pytest.approx(controlled), pytest.approx(applied))
    bonus.observe(None)  # an update without tokens
    assert bonus.coef == pytest.approx(0.02)


def test_without_a_target_the_coefficient_is_the_recipes_whatever_is_measured_or_restored() -> None:
    bonus = EntropyBonus(AlgorithmConfig(entropy_coef=0.3))
    bonus.observe(0.0)
    bonus.load_state_dict({"controlled": 0.1, "entropy": 0.2})
    assert bonus.coef == 0.3


def test_a_restored_controller_goes_on_as_the_one_that_was_saved() -> None:
    whole, resumed = EntropyBonus(SETTINGS), EntropyBonus(SETTINGS)
    for entropy, *_ in BY_HAND[:6]:
        whole.observe(entropy)
    resumed.load_state_dict(whole.state_dict())
    assert resumed.coef == whole.coef
    for entropy, *_ in BY_HAND[6:]:
        whole.observe(entropy)
        resumed.observe(entropy)
        assert resumed.coef == whole.coef
