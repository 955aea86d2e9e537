"""Rewards without signal, constant, missing, flat: each is made on purpose, and said in words with its number."""

from pathlib import Path
from typing import Any

import pytest

from tests.grpo.report.diagnosis.made import made, only, shown

NOTHING = {"reward_std": 0.0, "frac_reward_zero_std": 1.0}


def test_a_healthy_run_has_no_findings(tmp_path: Path) -> None:
    diagnosis = made(tmp_path, [{"reward": 0.3 + 0.01 * i} for i in range(30)])
    assert diagnosis.findings == [] and not diagnosis.has_alarms
    assert [str(one) for one in diagnosis.looked_at][:3] == [
        "reward 0.32 → 0.57",
        "groups without signal 25.0%",
        "truncated 12.5%",
    ]


def test_all_wrong(tmp_path: Path) -> None:
    rows = [{}] + [NOTHING | {"reward": 0.0, "rewards/accuracy/mean": 0.25, "rewards/accuracy/std": 0.0}] * 12
    assert shown(only(made(tmp_path, rows))) == (
        "alarm",
        "No group has had a reward signal for 10 rollouts: every completion scores 0, so all are wrong or the reward "
        "is a constant; every advantage is zero and the policy does not learn.",
        "reward_std 0; rule: 0 or null for 10 rollouts in a row",
        "steps 2–13",
        "rollout.num_generations=32",
    )


def test_all_right(tmp_path: Path) -> None:
    rows = [NOTHING | {"reward": 1.0, "rewards/accuracy/mean": 1.0, "rewards/accuracy/std": 0.0}] * 10
    finding = only(made(tmp_path, rows))
    assert "every completion scores 1, so all are right or the reward is a constant; " in finding.says
    assert finding.remedy.startswith("Choose harder problems") and finding.changes == {}


def test_each_problem_always_or_never_solved(tmp_path: Path) -> None:
    finding = only(made(tmp_path, [NOTHING] * 10))
    assert "for 10 rollouts: each problem is always or never solved; " in finding.says


def test_no_reward_at_all(tmp_path: Path) -> None:
    nan = float("nan")
    rows = [
        NOTHING | {"reward": nan, "reward_std": None, "rewards/accuracy/mean": nan, "frac_unrewarded_samples": 1.0}
    ] * 10
    findings = made(tmp_path, rows).findings
    assert [one.kind for one in findings] == ["unrewarded", "no_signal", "null_reward"]
    assert findings[0].says.startswith("100.0% of the completions have no reward (NaN): ")
    assert "for 10 rollouts: no completion has a reward; " in findings[1].says
    assert shown(findings[2]) == (
        "alarm",
        "The reward 'accuracy' has been null for 10 rollouts: the function returned no number for any completion.",
        "rewards/accuracy/mean null; rule: null for 10 rollouts in a row",
        "steps 1–10",
        "",
    )


def test_few_groups_with_signal_are_a_note(tmp_path: Path) -> None:
    assert shown(only(made(tmp_path, [{}] * 5 + [{"frac_reward_zero_std": 0.875}] * 10))) == (
        "note",
        "88% of the groups have no reward signal: their completions all score the same, so the policy learns from the "
        "other 12%.",
        "frac_reward_zero_std 0.875; rule: mean of 10 rollouts at least 0.8",
        "steps 5–15",
        "",
    )


FORMAT = [{"function": "accuracy"}, {"function": "format", "weight": 0.1}]


def test_format_never_met(tmp_path: Path) -> None:
    rows = [{"rewards/format/mean": 0.0, "rewards/format/std": 0.0}] * 10
    finding = only(made(tmp_path, rows, rewards=FORMAT))
    assert shown(finding) == (
        "alarm",
        "The reward 'format' has been 0 for every completion of 10 rollouts: it is never earned, so it teaches "
        "nothing.",
        "rewards/format/mean 0; rule: 0 for 10 rollouts in a row",
        "steps 1–10",
        "",
    )
    assert finding.kind == "zero_reward" and finding.subject == "format"


@pytest.mark.parametrize(
    ("function", "levels"),
    [("soft_overlong_punishment", []), ("rewards.style.format:format", ["note"])],
)
def test_zero_is_a_penalty_at_its_best_or_unknown(tmp_path: Path, function: str, levels: list[str]) -> None:
    rewards = [{"function": "accuracy"}, {"function": function, "name": "extra"}]
    rows = [{"rewards/extra/mean": 0.0, "rewards/extra/std": 0.0}] * 10
    assert [one.level for one in made(tmp_path, rows, rewards=rewards).findings] == levels


def test_zero_behind_a_gate_names_the_gate(tmp_path: Path) -> None:
    rewards = [{"function": "accuracy"}, {"function": "format", "requires": "accuracy"}]
    finding = only(made(tmp_path, [{"rewards/format/mean": 0.0}] * 10, rewards=rewards))
    assert finding.remedy.endswith(
        "It counts only where 'accuracy' scores above 0.5: check rewards/format/gated_ratio."
    )


def test_a_source_that_joins_late_is_not_null(tmp_path: Path) -> None:
    rewards = [{"function": "accuracy"}, {"function": "format", "data_sources": ["general"]}]
    assert made(tmp_path, [{"rewards/format/mean": None}] * 12, rewards=rewards).findings == []


def test_some_completions_without_reward(tmp_path: Path) -> None:
    finding = only(made(tmp_path, [{}, {"frac_unrewarded_samples": 0.125}]))
    assert shown(finding)[1:4] == (
        "12.5% of the completions have no reward (NaN): no reward function applied to them, so they are not trained "
        "on.",
        "frac_unrewarded_samples 0.125; rule: above 0",
        "step 2",
    )


def wavy(start: float, end: float, rows: int = 30, **others: Any) -> list[dict[str, Any]]:
    """A reward from start to end with a noise of ±0.02."""
    return [
        {"reward": start + (end - start) * i / (rows - 1) + (0.02 if i % 2 else -0.02), **others} for i in range(rows)
    ]


def test_flat_reward_although_the_weights_move(tmp_path: Path) -> None:
    assert shown(only(made(tmp_path, wavy(0.3, 0.3)))) == (
        "alarm",
        "The reward is flat although groups have signal: from 0.3 in the first third of the run to 0.3 in the last, "
        "with a noise of ±0.019.",
        "reward, last third minus first 0; rule: not above 2 standard errors over at least 20 rollouts",
        "steps 1–30",
        "rollout.num_generations=32",
    )


def test_learning_rate_too_small_against_the_noise(tmp_path: Path) -> None:
    rows = wavy(0.3, 0.3, weight_change=1e-6, learning_rate=1e-7)
    finding = only(made(tmp_path, rows, trainer={"learning_rate": 1e-7}))
    assert shown(finding) == (
        "alarm",
        "The reward is flat (from 0.3 in the first third of the run to 0.3 in the last, with a noise of ±0.019), and "
        "all steps together moved the weights by at most 3.0e-05 of their size: the learning rate is too small, or the "
        "run too short, to rise above the noise.",
        "weight_change, summed over steps 3e-05; rule: below 0.001 while the reward is flat",
        "steps 1–30",
        "trainer.learning_rate=1e-05",
    )
    assert finding.kind == "learning_rate_too_small"


def test_falling_reward(tmp_path: Path) -> None:
    finding = only(made(tmp_path, wavy(0.6, 0.3)))
    assert shown(finding)[1:] == (
        "The reward has fallen, from 0.553 in the first third of the run to 0.347 in the last, with a noise of ±0.031.",
        "reward, last third minus first -0.207; rule: not above 2 standard errors over at least 20 rollouts",
        "steps 1–30",
        "trainer.learning_rate=0.0001",
    )


@pytest.mark.parametrize(
    ("rows", "sections"),
    [
        (wavy(0.3, 0.4), {}),  # it rises
        (wavy(0.3, 0.3, rows=19), {}),  # too short to tell
        (wavy(1.0, 1.0, frac_reward_zero_std=0.6), {}),  # solved: most groups are all right
        (
            wavy(1.0, 0.2),  # another source has joined
            {
                "data": {
                    "task": None,
                    "mixture": [
                        {"name": "a", "task": "countdown"},
                        {"name": "b", "task": "countdown", "from_step": 10},
                    ],
                }
            },
        ),
    ],
)
def test_what_is_not_flat(tmp_path: Path, rows: list[dict[str, Any]], sections: dict[str, Any]) -> None:
    assert made(tmp_path, rows, **sections).findings == []


def test_equal_rewards_in_a_group_teach_where_the_batch_is_compared(tmp_path: Path) -> None:
    rows = [{"reward_std": 0.0, "frac_reward_zero_std": 1.0}] * 12
    assert [one.kind for one in made(tmp_path / "group", rows).findings] == ["no_signal"]
    batch = {"advantage_estimator": "reinforce_plus_plus"}
    assert made(tmp_path / "batch", rows, algorithm=batch).findings == []
