"""A step's metrics: literal values, reductions over steps and processes, and TRL's meaning under TRL's names."""

import json
from pathlib import Path
from typing import Any

import pytest

import grpo
from grpo.learner.policy import Policy
from grpo.report.metrics import Mean, Sum, merge, per_step, values


def test_loss_is_a_sum_within_a_step_and_a_mean_over_steps() -> None:
    first, second = merge([{"loss": Sum(0.5)}, {"loss": Sum(0.25)}]), {"loss": Sum(-0.25)}
    assert values(merge([per_step(first, 2), per_step(second, 2)])) == {"loss": 0.25}
    assert per_step({"entropy": Mean(3.0, 2.0)}, 4) == {"entropy": Mean(3.0, 2.0)}


def run_recipe(model: Path, folder: Path, **sections: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a two-step run on the reference engine, with a random reward per completion."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model: {{model_name_or_path: {model}}}\n"
        "data: {task: countdown, template: '{prompt} :', max_prompt_length: 40}\n"
        "rollout: {engine: hf, problems_per_step: 2, num_generations: 4, max_completion_length: 8}\n"
        "rewards: [{function: random}]\n"
        f"trainer: {{output_dir: {folder / 'run'}, max_steps: 2, learning_rate: 0.001}}\n"
        "evaluation: {}\n"
    )
    grpo.train(str(recipe), **sections)
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
