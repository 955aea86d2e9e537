"""`grpo eval` from its command line to results."""

import json
from pathlib import Path

import yaml

from grpo.evaluation.cli import eval_command


def test_overrides_may_follow_options_that_follow_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join(f'{{"prompt": "q{i}", "solution": "{i}"}}\n' for i in range(5)))
    task = {"dataset_name": str(tmp_path / "t.jsonl"), "reference": r"\boxed{{solution}}"}
    sections = {"stage": "eval", "tasks": ["t"], "define_tasks": {"t": task}, "engine": {"name": "reference"}}
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(sections | {"model": {"model_name_or_path": "reference"}}))
    eval_command([f"{tmp_path}/eval.yaml", "--limit", "3", f"output={tmp_path}/run", "--seed", "7", "limit=2"])
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["tasks"]["t"]["metrics"]["num_problems"] == 2
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["sampling"]["seed"] == 7
