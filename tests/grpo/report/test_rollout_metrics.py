"""A step's metrics: literal values, reductions over steps and processes, and TRL's meaning under TRL's names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import grpo
from grpo.learner.mismatch import MismatchError
from grpo.learner.policy import Policy
from grpo.report.metrics import Deviation, ExpertLoad, LogHistogram, Mean, Sum, merge, per_step, values
from grpo.report.records import deterministic
from grpo.report.rollout_metrics import Totals, rollout_metrics
from rewards.runner.score import ScoredGroup
from rollout.types import Completion, Group, Problem

NONE = float("nan")  # a completion to which no reward function applied


def scored(problem_id: str, rewards: list[float], *, prompt: int = 3, lengths: tuple[int, ...] = (2, 4)) -> ScoredGroup:
    completions = [
        Completion(token_ids=[7] * length, logprobs=[-0.1] * length, text="x", finish_reason="length", policy_version=0)
        for length in lengths
    ]
    problem = Problem(id=problem_id, prompt="1+1=?", columns={})
    group = Group(problem=problem, prompt_ids=[1] * prompt, completions=completions)
    return ScoredGroup(
        group=group, rewards=rewards, breakdown={"accuracy": [None if np.isnan(r) else r for r in rewards]}
    )


def test_groups_without_rewards_are_left_out_of_the_reward_metrics() -> None:
    groups = [scored("a", [0.0, 1.0]), scored("b", [NONE, NONE]), scored("c", [0.5, 0.5]), scored("d", [1.0, NONE])]
    metrics = values(rollout_metrics(groups))
    assert metrics["reward"] == pytest.approx(3.0 / 5)
    assert metrics["reward_std"] == pytest.approx((0.5**0.5 + 0.0) / 2)
    assert metrics["frac_reward_zero_std"] == 0.25
    assert metrics["frac_unrewarded_samples"] == 3 / 8
    assert metrics["rewards/accuracy/mean"] == pytest.approx(3.0 / 5)


def test_metrics_of_nothing_are_none() -> None:
    assert values(
        {
            "mean": Mean.of([]),
            "deviation": Deviation.of([]),
            "single": Deviation.of([2.0]),
            "merged": Deviation.of([]) + Deviation.of([]),
            "quantile": LogHistogram.of([]),
            "load": ExpertLoad(np.zeros((1, 4))),
        }
    ) == dict.fromkeys(("mean", "deviation", "single", "merged", "quantile", "load"))
    metrics = values(rollout_metrics([scored("a", [NONE, NONE])]))
    assert (metrics["reward"], metrics["reward_std"], metrics["rewards/accuracy/std"]) == (None, None, None)


def test_deviation_is_the_sample_deviation_however_values_are_split() -> None:
    assert Deviation.of([1.0, 2.0, 4.0]).value == pytest.approx((14 / 3 / 2) ** 0.5)
    assert (Deviation.of([1.0]) + Deviation.of([]) + Deviation.of([2.0, 4.0])).value == pytest.approx((7 / 3) ** 0.5)
    assert (Deviation.of([0.1] * 3) + Deviation.of([0.1] * 5)).value == pytest.approx(0.0, abs=1e-12)
    far = [1e8 + 1, 1e8 + 2, 1e8 + 4]
    assert (Deviation.of(far[:1]) + Deviation.of(far[1:])).value == pytest.approx((7 / 3) ** 0.5)


def test_reward_std_of_one_function_is_trls_nanstd_over_the_batch() -> None:
    nanstd = pytest.importorskip("trl.trainer.utils").nanstd
    batch = [[0.0, 1.0], [NONE, NONE], [0.25, 1.0], [1.0, NONE]]
    parts = [rollout_metrics([scored(str(i), row)]) for i, row in enumerate(batch)]  # as if on four processes
    expected = nanstd(torch.tensor(batch, dtype=torch.float64).flatten()).item()
    assert expected == pytest.approx(0.48733971724, rel=1e-9)  # of 0, 1, 0.25, 1, 1
    assert values(merge(parts))["rewards/accuracy/std"] == pytest.approx(expected, rel=1e-12)


def test_num_tokens_counts_prompts_and_completions_over_the_run() -> None:
    groups = [scored("a", [0.0, 1.0], prompt=3, lengths=(2, 4)), scored("b", [0.0, 1.0], prompt=5, lengths=(1, 1))]
    tokens = values(rollout_metrics(groups))["num_tokens"]
    assert tokens == 2 * 3 + 2 + 4 + 2 * 5 + 1 + 1  # TRL counts the prompt once per completion
    totals = Totals()
    assert [totals.count(24.0), totals.count(10.0)] == [24.0, 34.0]
    resumed = Totals()
    resumed.load_state_dict(totals.state_dict())
    assert resumed.count(6.0) == 40.0


def test_tokens_from_a_tool_count_as_in_trl() -> None:
    completion = Completion(
        token_ids=[7] * 4,
        logprobs=[-0.1] * 4,
        text="x",
        finish_reason="stop",
        policy_version=0,
        mask=[True, False, False, True],
    )
    group = Group(problem=Problem(id="a", prompt="", columns={}), prompt_ids=[1], completions=[completion, completion])
    metrics = values(rollout_metrics([ScoredGroup(group=group, rewards=[0.0, 1.0], breakdown={})]))
    assert (metrics["completions/mean_length"], metrics["num_tokens"]) == (2.0, 6.0)


def test_loss_is_a_sum_within_a_step_and_a_mean_over_steps() -> None:
    first, second = merge([{"loss": Sum(0.5)}, {"loss": Sum(0.25)}]), {"loss": Sum(-0.25)}
    assert values(merge([per_step(first, 2), per_step(second, 2)])) == {"loss": 0.25}
    assert per_step({"entropy": Mean(3.0, 2.0)}, 4) == {"entropy": Mean(3.0, 2.0)}


def run_recipe(model: Path, folder: Path, **sections: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a two-step run on the reference engine, with a random reward per completion."""
    folder.mkdir(exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model: {{model_name_or_path: {model}}}\n"
        "data: {task: countdown, template: '{prompt} :', max_prompt_length: 40}\n"
        "rollout: {engine: hf, problems_per_step: 2, num_generations: 4, max_completion_length: 8}\n"
        "rewards: [{function: random}]\n"
        f"trainer: {{output_dir: {folder / 'run'}, max_steps: 2, learning_rate: 0.001}}\n"
        "evaluation: {}\n"
    )
    grpo.train(str(recipe), None, **sections)
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def test_reported_loss_is_the_mean_over_the_optimizer_steps(
    tiny_v3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[Any] = []
    update = Policy.update

    def recorded(self: Policy, *arguments: Any) -> Any:
        metrics = update(self, *arguments)
        losses.append(metrics["loss"].value)
        return metrics

    monkeypatch.setattr(Policy, "update", recorded)
    rows = run_recipe(tiny_v3, tmp_path, algorithm={"steps_per_generation": 4}, trainer={"max_steps": 4})
    assert len(losses) == 4 and len(rows) == 1
    assert rows[0]["loss"] == pytest.approx(sum(losses) / 4, rel=1e-12)
    assert rows[0]["loss"] != 0.0


def test_rows_and_num_tokens_continue_after_a_resume(tiny_v3: Path, tmp_path: Path) -> None:
    first, second = run_recipe(tiny_v3, tmp_path)
    run_recipe(tiny_v3, tmp_path / "half", trainer={"max_steps": 1})
    _, resumed = run_recipe(tiny_v3, tmp_path / "half", trainer={"resume_from_checkpoint": True})
    assert first["num_tokens"] > 8 * 8 and second["num_tokens"] > first["num_tokens"] + 8 * 8
    assert deterministic(resumed) == deterministic(second)
    assert first["frac_trained_samples"] == 1.0  # every random reward differs from its group's mean


def test_run_stopped_by_an_error_names_it_on_its_page(
    tiny_v3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: Any, **_options: Any) -> None:
        raise MismatchError("step 1: mean |log p_trainer - log p_engine| is 0.7")

    monkeypatch.setattr("grpo.stages.grpo.check_mismatch", refuse)
    with pytest.raises(MismatchError):
        run_recipe(tiny_v3, tmp_path)
    page = (tmp_path / "run" / "index.html").read_text()
    assert "<b>Stopped after step 1.</b> MismatchError: step 1: mean |log p_trainer - log p_engine| is" in page
    assert "last finite value, step 1" in page
