"""What a user can mend ends a stage with a sentence, whichever stage it is."""

from pathlib import Path
from typing import Any

import pytest

from grpo.recipe.errors import RunError
from grpo.recipe.load import load_recipe
from grpo.stages.run import run

COUNTDOWN: dict[str, Any] = {"task": "countdown", "template": "{prompt} :"}
REWARDS = [{"function": "countdown"}]
SECTIONS: dict[str, dict[str, Any]] = {
    "grpo": {"data": COUNTDOWN, "rewards": REWARDS},
    "rejection": {"data": COUNTDOWN, "rewards": REWARDS},
    "pairs": {"data": COUNTDOWN, "judge": "judge.py:judge", "pairs": {"num_problems": 2}},
    "reward_model": {"data": {"dataset_name": "pairs.jsonl"}},
    "sft": {"data": {"sources": [{"dataset_name": "rows.jsonl"}]}},
    "held_out": {"sets": {"all": {"data": COUNTDOWN, "rewards": REWARDS}}},
    "eval": {"tasks": ["countdown"]},
}


@pytest.mark.parametrize("stage", SECTIONS)
def test_a_folder_without_a_model_is_refused_by_every_stage(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    sections = {"stage": stage, "model": {"model_name_or_path": str(tmp_path / "empty")}, **SECTIONS[stage]}
    with pytest.raises(RunError, match=str(tmp_path / "empty")):
        run(load_recipe(None, sections=sections))
