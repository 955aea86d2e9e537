"""`grpo eval` from its command line to results."""

import json
from pathlib import Path

import pytest
import yaml

from grpo.evaluation.cli import eval_command, load_eval_recipe, regrade_command
from grpo.recipe.load import RecipeError


def test_overrides_may_follow_options_that_follow_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join(f'{{"prompt": "q{i}", "solution": "{i}"}}\n' for i in range(5)))
    task = {"dataset_name": str(tmp_path / "t.jsonl"), "reference": r"\boxed{{solution}}"}
    sections = {"stage": "eval", "tasks": ["t"], "define_tasks": {"t": task}, "engine": {"name": "reference"}}
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(sections | {"model": {"model_name_or_path": "reference"}}))
    eval_command([f"{tmp_path}/eval.yaml", "--limit", "3", f"output={tmp_path}/run", "--seed", "7", "limit=2"])
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["tasks"]["t"]["metrics"]["num_problems"] == 2
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["sampling"]["seed"] == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling=greedy", "sampling='greedy': must be a mapping of keys."),
        ("protocol=[a]", "protocol=['a']: unknown, must be one of deepseek-r1, greedy"),
    ],
)
def test_a_value_of_another_kind_is_refused_in_a_sentence(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_eval_recipe(None, [override], {"model.model_name_or_path": "m", "tasks": "gsm8k"})
    assert message in str(refused.value)


def test_an_option_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--option a=\[b: not valid YAML \(line 1: .*\). Quote the value."):
        regrade_command([str(tmp_path), "--option", "a=[b"])


def test_a_recipe_of_another_stage_is_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "zero.yaml").write_text("model: {model_name_or_path: m}\ndata: {task: countdown}\n")
    with pytest.raises(ValueError, match="is a recipe of stage grpo, and evaluations take one with `stage: eval`"):
        load_eval_recipe(str(tmp_path / "zero.yaml"), [], {"model.model_name_or_path": "m"})


@pytest.mark.parametrize(
    ("options", "missing"),
    [({}, "--model and --tasks"), ({"tasks": "gsm8k"}, "--model"), ({"model.model_name_or_path": "m"}, "--tasks")],
)
def test_what_an_evaluation_without_a_recipe_lacks_is_named(options: dict[str, str], missing: str) -> None:
    with pytest.raises(ValueError, match=f"nothing to evaluate without {missing}\\."):
        load_eval_recipe(None, ["limit=2"], options)
    load_eval_recipe(None, ["model={model_name_or_path: m}", "tasks=[gsm8k]"], {})


def test_an_unknown_engine_is_told_all_engines() -> None:
    options = {"model.model_name_or_path": "m", "tasks": "gsm8k", "engine.name": "sglang"}
    with pytest.raises(RecipeError, match=r"unknown engine 'sglang'\. Engines: vllm, hf, server, reference\."):
        load_eval_recipe(None, [], options)
