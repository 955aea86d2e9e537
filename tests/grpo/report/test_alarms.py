"""Each warning comes at the first row that justifies it, once, and not earlier."""

from typing import Any

import pytest
from grpo.report.alarms import Alarms

HEALTHY = {
    "reward": 0.5,
    "reward_std": 0.25,
    "completions/clipped_ratio": 0.5,
    "completions/mean_length": 100.0,
    "entropy": 1.0,
    "learning_rate": 1e-6,
    "sampling/sampling_logp_difference/mean": 0.01,
    "frac_unrewarded_samples": 0.0,
}


def alarmed(series: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """(row number from 1, message's beginning) of every warning over healthy rows changed by `series`."""
    alarms = Alarms(max_logp_difference=0.5)
    return [
        (number, message)
        for number, row in enumerate(series, start=1)
        for message in alarms.update({**HEALTHY, "step": number, **row})
    ]


def test_healthy_rows_give_no_warning() -> None:
    assert alarmed([{}] * 50) == []


@pytest.mark.parametrize(
    ("series", "row", "message"),
    [
        ([{}] + [{"reward_std": 0.0}] * 12, 11, "no group has had a reward signal for 10 rollouts: "),
        ([{"reward_std": None}] * 12, 10, "no group has had a reward signal for 10 rollouts: "),
        ([{"completions/clipped_ratio": 1.0}] * 12, 10, "every completion has been truncated for 10 rollouts: "),
        ([{}] * 5 + [{"entropy": 0.11}, {"entropy": 0.09}] * 2, 7, "entropy has collapsed, from 1 to 0.09: "),
        (
            [{}] * 5 + [{"completions/mean_length": n} for n in (21, 19, 18)],
            7,
            "completion length has collapsed, from 1",
        ),
        ([{"learning_rate": 0.0}] * 3, 2, "the learning rate is zero, "),
        ([{"sampling/sampling_logp_difference/mean": n} for n in (0.25, 0.26)], 2, "mean |log p_trainer - log p_eng"),
        ([{}, {"frac_unrewarded_samples": 0.125}] * 2, 2, "12.5% of the completions have no reward (NaN): "),
    ],
)
def test_warning_comes_once_at_the_first_row_that_justifies_it(
    series: list[dict[str, Any]], row: int, message: str
) -> None:
    ((number, text),) = alarmed(series)
    assert (number, text[: len(message)]) == (row, message)


def test_interrupted_series_give_no_warning() -> None:
    assert alarmed(([{"reward_std": 0.0}] * 9 + [{}]) * 3) == []
    assert alarmed(([{"completions/clipped_ratio": 1.0}] * 9 + [{}]) * 3) == []
    assert alarmed([{"learning_rate": 0.0}, {}, {"learning_rate": 0.0}]) == []  # a warm-up's first step
    assert alarmed([{"entropy": 1.0}] * 3 + [{"entropy": None}] * 3 + [{"entropy": 0.05}] * 2) == []  # no baseline yet


def test_nan_rewards_are_named() -> None:
    assert [text[:40] for _, text in alarmed([{"reward": float("nan"), "frac_unrewarded_samples": 1.0}])] == [
        "100.0% of the completions have no reward"
    ]


def test_mismatch_beyond_the_bound_is_left_to_the_error() -> None:
    assert alarmed([{"sampling/sampling_logp_difference/mean": 0.6}]) == []


def test_replayed_rows_restore_the_state() -> None:
    replayed, rows = Alarms(0.5), [{**HEALTHY, "reward_std": 0.0}] * 9
    for row in rows:
        assert replayed.update(row) == []
    assert len(replayed.update(rows[0])) == 1 and replayed.update(rows[0]) == []
