"""A whole run on a reward that returns spans."""

from pathlib import Path

import pytest

import grpo
from rewards.runner.load import returns_spans
from tests.grpo.stages.test_trainer import rows, write_recipe


def test_a_run_learns_from_spans_and_logs_them(tiny_llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "halves.py"
    file.write_text(
        "from rewards.runner.load import returns_spans\n@returns_spans\ndef halves(completions, **kwargs):\n"
        "    return [[(0, i + 1, float(ord(c) % 3)) for i, c in enumerate(text)] for text in completions]\n"
    )
    recipe = write_recipe(
        tmp_path,
        tiny_llama,
        rollout={"engine": "hf", "problems_per_step": 2, "num_generations": 2, "max_completion_length": 6},
        trainer={"output_dir": str(tmp_path / "run"), "max_steps": 1, "num_reward_workers": 1},
        evaluation={"num_problems": 0},
    )
    grpo.train(recipe, rewards=[{"function": f"{file}:halves"}, {"function": "random", "weight": 0.5}])
    (step,) = [row for row in rows(tmp_path / "run") if "reward" in row]
    assert step["grad_norm"] > 0 and step["frac_trained_samples"] == 1
    for row in rows(tmp_path / "run", "samples.jsonl"):
        for completion in row["completions"]:
            spans = completion["spans"]["halves"]
            assert [end for _, end, _ in spans] == list(range(1, len(completion["text"]) + 1))
            assert completion["rewards"]["halves"] == sum(value for *_, value in spans)


@returns_spans
def never_called(completions, **_):
    raise AssertionError


@pytest.mark.parametrize(
    ("algorithm", "reason"),
    [
        ({"advantage_estimator": "rloo"}, "advantage_estimator='rloo'"),
        ({"loss_type": "gspo"}, "loss_type='gspo', with the ratio of a completion,"),
    ],
)
def test_an_algorithm_that_cannot_take_spans_is_refused_at_start(
    tiny_llama: Path, tmp_path: Path, algorithm: dict[str, str], reason: str
) -> None:
    recipe = write_recipe(
        tmp_path,
        tiny_llama,
        rollout={"engine": "hf", "problems_per_step": 2, "num_generations": 2, "max_completion_length": 6},
        trainer={"output_dir": str(tmp_path / "run"), "max_steps": 1},
        algorithm=algorithm,
        evaluation={"num_problems": 0},
    )
    with pytest.raises(ValueError) as refused:
        grpo.train(recipe, reward_functions=[never_called])
    assert str(refused.value) == (
        "reward 'never_called' returns spans, so tokens of one completion have different advantages, and "
        f"algorithm.{reason} needs one of the whole completion. Return numbers, or remove it."
    )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
