"""What a user can mend ends a stage with a sentence, whichever stage it is."""

from pathlib import Path
from typing import Any

import pytest

from grpo.recipe.errors import RefusedError, RunError
from grpo.recipe.load import load_recipe
from grpo.stages.parts import refusals
from grpo.stages.run import run
from rewards.programs.sandbox import isolation

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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"isolation": "landlock"}, "level 'landlock' needs what it needs"),
        ({"allow_unsandboxed": "no"}, "reward 'code': allow_unsandboxed='no' must be true or false"),
        ({"isolation": "bwarp"}, "reward 'code': isolation='bwarp' must be one of bubblewrap"),
    ],
)
def test_programs_without_a_sandbox_are_refused(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "missing", lambda level: None if level == "none" else "what it needs")
    rewards = [{"function": "code", "options": options}]
    model, trainer = {"model_name_or_path": "none"}, {"output_dir": str(tmp_path / "run")}
    sections = {"stage": "grpo", "model": model, "data": COUNTDOWN, "rewards": rewards, "trainer": trainer}
    with pytest.raises(RefusedError, match=message):
        run(load_recipe(None, sections=sections))


def test_a_librarys_word_on_what_it_lacks_is_a_refusal_and_a_module_that_a_user_lacks_is_not() -> None:
    with pytest.raises(RefusedError, match="flash_attn seems to be not installed"), refusals():
        raise ImportError("FlashAttention2 has been toggled on, but flash_attn seems to be not installed.")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"), refusals():
        __import__("no_such_dependency")
