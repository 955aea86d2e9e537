"""A whole run on a reward that returns spans."""

from pathlib import Path

import grpo
from tests.grpo.stages.test_trainer import rows, write_recipe


def test_a_run_learns_from_spans_and_logs_them(tiny_llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "halves.py"
    file.write_text(
        "def halves(completions, **kwargs):\n"
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
