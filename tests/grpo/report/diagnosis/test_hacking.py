"""The watch for reward hacking, on rows made to show it, and its way to terminal and page."""

import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate import Accelerator
from rich.console import Console

from grpo.recipe.config import DataConfig, GRPORecipe, ModelConfig, RewardConfig
from grpo.report.diagnosis.watch import Watch
from grpo.report.report import Report

REWARDS = [
    {"name": "countdown", "function": "countdown"},
    {"name": "format", "function": "format"},
    {"name": "helpful", "function": "judge"},
]


def watch() -> Watch:
    return Watch({"rewards": REWARDS})


def training(helpful: float | None, rule: float = 0.8, length: float = 100.0) -> dict[str, Any]:
    return {
        "rewards/helpful/mean": helpful,
        "rewards/helpful/std": 1.0,
        "rewards/countdown/mean": rule,
        "rewards/format/mean": 1.0,
        "completions/mean_length": length,
    }


def warned(rows: list[dict[str, Any]]) -> list[tuple[int, str]]:
    run = watch()
    numbered = [row | {"step": number} for number, row in enumerate(rows, start=1)]
    found = [(row["step"], finding) for row in numbered for finding in run.update(row)]
    return [(step, finding.says) for step, finding in found if finding.kind == "reward_hacking"]


def test_preference_up_and_a_rule_down_is_an_alarm_once() -> None:
    [(number, text)] = warned([training(0.0)] * 5 + [training(1.0, rule=0.6)] * 20)
    assert number == 10  # the fifth row after the baseline
    assert text.startswith(
        "The preference reward 'helpful' rose from 0 to 1, and rewards/countdown/mean fell from 0.8 to 0.6: "
    )


def test_preference_up_and_length_up_is_an_alarm() -> None:
    [(_, text)] = warned([training(0.0)] * 5 + [training(1.0, length=151.0)] * 5)
    assert "completions/mean_length grew from 100 to 151 tokens" in text


@pytest.mark.parametrize(
    "later",
    [
        training(1.0),  # only the preference rises
        training(0.2, rule=0.0, length=1000.0),  # it hardly rises
        training(1.0, rule=0.71, length=149.0),  # the others hardly move
        training(None, rule=0.0),  # it does not apply
    ],
)
def test_what_is_not_hacking_is_no_alarm(later: dict[str, Any]) -> None:
    assert warned([training(0.0)] * 5 + [later] * 20) == []


def test_a_reward_that_joins_late_has_its_baseline_then() -> None:
    before = [training(None, rule=0.95, length=20.0)] * 30
    assert warned([*before, *[training(0.0, rule=0.8)] * 5, *[training(1.0, rule=0.8)] * 10]) == []


def test_held_out_evaluations_are_compared_with_the_first() -> None:
    first = {
        "eval/countdown/pass@1": 0.8,
        "eval/countdown/mean_length": 90.0,
        "eval/general/mean_length": 20.0,
        "eval/general/rewards/helpful/mean": -1.0,
        "eval/general/rewards/format/mean": 1.0,
    }
    run = watch()
    assert run.update_evaluation(first) == []
    better = {**first, "eval/general/rewards/helpful/mean": 0.5, "eval/countdown/mean_length": 900.0}
    assert run.update_evaluation(better) == []  # the reasoning may grow
    hacked = {
        **better,
        "eval/countdown/pass@1": 0.6,
        "eval/general/mean_length": 40.0,
        "eval/general/rewards/format/mean": 0.7,
    }
    assert [one.says.split(", and ")[1].split(":")[0] for one in run.update_evaluation(hacked)] == [
        "eval/countdown/pass@1 fell from 0.8 to 0.6",
        "eval/general/rewards/format/mean fell from 1 to 0.7",
        "eval/general/mean_length grew from 20 to 40 tokens",
    ]
    assert run.update_evaluation(hacked) == []


def test_the_alarm_is_on_terminal_and_page_also_after_a_resume(tmp_path: Path) -> None:
    model = RewardConfig(function="reward_model", name="helpful", options={"model_name_or_path": "m"})
    recipe = GRPORecipe(
        model=ModelConfig(model_name_or_path="base"),
        data=DataConfig(task="countdown"),
        rewards=[RewardConfig(function="countdown"), model],
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    first = {"eval/pass@1": 0.8, "eval/rewards/helpful/mean": 0.0}
    hacked = {"eval/pass@1": 0.5, "eval/rewards/helpful/mean": 2.0}
    printed = io.StringIO()
    run = Report(tmp_path, recipe, accelerator=Accelerator(cpu=True), console=Console(file=printed, width=400))
    run.log_evaluation(0, first)
    run.log(1, training(0.0))
    run.log_evaluation(1, hacked)
    run.close()
    said = "The preference reward 'helpful' rose from 0 to 2, and eval/pass@1 fell from 0.8 to 0.5"
    assert f"warning: step 1: {said}" in printed.getvalue()
    page = next(tmp_path.glob("*.html")).read_text()
    assert '<details class="alarm"><summary>The preference reward' in page
    again = io.StringIO()
    run = Report(tmp_path, recipe, accelerator=Accelerator(cpu=True), resume_step=1, console=Console(file=again))
    run.log_evaluation(2, hacked)
    run.close()
    assert "hacking" not in again.getvalue()  # given before
