"""What is said about a run's problems before its first step."""

import json
import re
from pathlib import Path

import pytest

import grpo
from grpo.recipe.errors import RefusedError
from grpo.recipe.load import load_recipe
from grpo.stages.run import run
from tests.grpo.stages.test_run_folder import base

__all__ = ["base"]  # the fixture

EVEN = """
from rewards.runner.load import checked_by

@checked_by(lambda columns: "odd" if columns["target"] % 2 else None)
def even(completions, target, **kwargs):
    return [float(len(text)) for text in completions]
"""


def test_skipped_and_ungradable_problems_of_an_endless_task_are_told(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held-out prompts have 21, 19, 21, 20, … tokens; the first training problem's target is even."""
    (tmp_path / "even.py").write_text(EVEN)
    rewards = [{"function": f"{tmp_path}/even.py:even"}]
    evaluation = {"num_problems": 2}
    grpo.train(base, data={"max_prompt_length": 20}, rewards=rewards, evaluation=evaluation, trainer={"max_steps": 1})
    said = capsys.readouterr().err
    assert "held-out problems: 2 rows were skipped (2 too long).\n" in said
    found = re.search(r"reward 'even' cannot grade (\d+) of 1000 problems:\n  (\d+): odd \(", said)
    assert found and found[1] == found[2] and 450 < int(found[1]) < 550


def test_held_out_problems_that_are_trained_on_are_counted_and_refused_if_there_are_no_others(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{i}"}) + "\n" for i in range(10)))

    def train(split: str, held_out: str) -> None:
        data = {"task": None, "dataset_name": str(path), "template": "{prompt}", "max_prompt_length": 40}
        evaluation = {"num_problems": 4, "data": {**data, "dataset_split": held_out}}
        grpo.train(base, data={**data, "dataset_split": split}, evaluation=evaluation, trainer={"max_steps": 1})

    train("train[:8]", "train[6:]")
    assert "held-out problems: 2 of 4 are training problems as well (the same prompts). Divide" in (
        capsys.readouterr().err
    )
    with pytest.raises(RefusedError, match="evaluation: all 4 held-out problems are training problems as well"):
        train("train", "train[6:]")
    train("train[:6]", "train[6:]")
    assert "training problems as well" not in capsys.readouterr().err


def test_problems_of_a_held_out_set_are_checked_as_those_of_a_run(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in ("1 + 1", "2 + 2", "3 + 3" * 20)))

    def evaluate(reward: str) -> Path:
        sections = {
            "stage": "held_out",
            "model": {"model_name_or_path": str(tiny_llama)},
            "rollout": {"engine": "hf", "num_samples": 1, "max_completion_length": 4},
            "sets": {
                "sums": {
                    "data": {"dataset_name": str(path), "max_prompt_length": 20},
                    "rewards": [{"function": reward}],
                }
            },
            "output": str(tmp_path / "run"),
        }
        return run(load_recipe(None, sections=sections))

    with pytest.raises(RefusedError, match="solution"):
        evaluate("accuracy")
    assert json.loads((evaluate("format") / "results.json").read_text())["sums"]["pass@1"] == 0.0
    skipped = "held-out problems of sums: 1 rows were skipped (1 too long)"
    assert f"{skipped}; the source has only 2 of sets.sums.num_problems=256.\n" in capsys.readouterr().err
