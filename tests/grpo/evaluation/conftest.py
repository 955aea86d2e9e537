"""A small task with its data, and recipes that evaluate a tiny model on it."""

import json
from pathlib import Path
from typing import Any

import pytest

from grpo.evaluation.config import EvalRecipe
from grpo.recipe.load import load_recipe
from grpo.report.records import read_rows

SUMS = [{"question": f"{i}+{i}=?", "gold": str(2 * i), "size": "small" if i < 3 else "large"} for i in range(5)]


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    """A user's own task: its .yaml file, with the data next to it."""
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SUMS))
    (tmp_path / "sums.yaml").write_text(
        "dataset_name: ./sums.jsonl\ncolumns: {prompt: question, solution: gold}\ngroups: [size]\n"
        'instruction: "Give a number."\n'
    )
    return tmp_path / "sums.yaml"


def recipe(model: Path, sums: Path, **sections: Any) -> EvalRecipe:
    sampling = {"num_samples": 2, "max_completion_length": 4, "temperature": 1.0, "top_p": 1.0}
    values = {
        "stage": "eval",
        "model": {"model_name_or_path": str(model)},
        "tasks": [str(sums)],
        "template": "{prompt}",
        "engine": {"name": "hf", "max_num_seqs": 3},
        "output": str(sums.parent / "run"),
        **sections,
        "sampling": {**sampling, **sections.get("sampling", {})},
    }
    made = load_recipe(None, sections=values)
    assert isinstance(made, EvalRecipe)
    return made


def samples(folder: Path) -> list[dict[str, Any]]:
    return list(read_rows(folder / "samples.jsonl"))
