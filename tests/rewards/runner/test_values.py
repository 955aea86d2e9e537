"""What a reward function may return."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from rewards.runner.score import RewardError
from tests.rewards.runner.test_score import group, score_all


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "reward 'mine' returned 1 values for 2 completions"),
        (None, "reward 'mine' returned None for 2 completions"),
        (1.0, "reward 'mine' returned 1.0 for 2 completions"),
        (
            [1.0, math.inf],
            "reward 'mine' returned inf (float) for completion 2 of 2 for problem 'p/0', which begins 'b'. "
            "A reward must be a number between -1e+18 and 1e+18, or None if it does not apply.",
        ),
        ([0.0, -1e308], "reward 'mine' returned -1e+308 (float) for completion 2 of 2"),  # its square overflows
        ([10**400, 0.0], "reward 'mine' returned an integer of more than 300 digits (int) for completion 1 of 2"),
        (np.array([0.0, -np.inf]), "reward 'mine' returned -inf (float) for completion 2 of 2"),
        (torch.zeros(3), "reward 'mine' returned 3 values for 2 completions"),
        (torch.zeros(2, 1), "reward 'mine' returned [0.0] (list) for completion 1 of 2"),
        (torch.tensor(0.5), "reward 'mine' returned 0.5 for 2 completions"),
        ([0.0, "1"], "reward 'mine' returned '1' (str) for completion 2 of 2"),
        ([[0.0], 1], "reward 'mine' returned [0.0] (list) for completion 1 of 2"),
    ],
)
def test_anything_but_one_finite_number_per_completion_stops_the_run(returned, message):
    with pytest.raises(RewardError) as error:
        score_all([{"function": lambda **kwargs: returned, "name": "mine"}], [group(["a", "b"])])
    assert message in str(error.value)


@pytest.mark.parametrize(
    "returned",
    [
        torch.tensor([0.5, math.nan]),
        torch.tensor([0.5, math.nan], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor(0.5), torch.tensor(math.nan)],
        np.array([0.5, np.nan], dtype=np.float32),
        [np.float16(0.5), np.float64("nan")],
        (value for value in (0.5, None)),
        [Fraction(1, 2), math.nan],
    ],
)
def test_tensors_arrays_and_their_scalars_are_values_and_nan_is_none(returned):
    (scored,) = score_all([{"function": lambda **kwargs: returned, "name": "mine"}], [group(["a", "b"])])
    assert scored.breakdown == {"mine": [0.5, None]}
    assert scored.rewards[0] == 0.5 and math.isnan(scored.rewards[1])


def test_booleans_and_integers_of_numpy_are_values():
    (scored,) = score_all([{"function": lambda **kwargs: [np.True_, np.int64(3)], "name": "mine"}], [group("ab")])
    assert scored.breakdown == {"mine": [1.0, 3.0]}
