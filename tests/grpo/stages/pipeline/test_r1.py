"""recipes/r1.yaml, whole: every stage runs on what the stages before it wrote, here with a handful of samples each."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from datasets import load_dataset

from grpo.evaluation.config import EvalModelConfig
from grpo.evaluation.engines import fingerprint
from grpo.recipe.load import load_recipe

RECIPES = Path(__file__).parents[4] / "recipes"
SMALL = Path(__file__).with_name("r1_small.yaml")


@pytest.mark.slow
def test_every_stage_of_r1_builds_on_those_before_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpo", "train", str(SMALL), f"output={tmp_path}", "evaluation.sets={}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]

    kept = load_dataset(str(tmp_path / "reasoning_data"), split="train")
    assert len(kept) > 0
    assert set(kept["rewards/countdown"]) == {1.0} and set(kept["rewards/language"]) == {1.0}
    assert set(load_dataset(str(tmp_path / "pairs"), split="train").column_names) >= {"prompt", "chosen", "rejected"}
    assert load_recipe(tmp_path / "recipe.yaml").output_dir == tmp_path, "the whole recipe can be launched again"
    # The second SFT starts from the base again, not from the last checkpoint; so does the student from its own base.
    sft, distill = (yaml.safe_load((tmp_path / name / "recipe.yaml").read_text()) for name in ("sft", "distill"))
    assert sft["model"]["model_name_or_path"] == str(RECIPES / "v3_base")
    assert distill["model"]["model_name_or_path"] == str(tmp_path / "student_base")
    rows = [json.loads(line) for line in (tmp_path / "rl_all" / "metrics.jsonl").read_text().splitlines()]
    has_preference = [row["rewards/reward_model/mean"] is not None for row in rows if "reward" in row]
    assert has_preference == [False, True], "general data and the preference reward join in the last step"
    last = {"rl_all": "rl_all/checkpoint-2", "opd": "opd/checkpoint-2", "distill": "distill", "sft": "sft"}
    weights = {fingerprint(EvalModelConfig(model_name_or_path=str(tmp_path / folder))) for folder in last.values()}
    assert len(weights) == 4 and None not in weights
