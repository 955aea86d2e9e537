"""Unknown keys: where a key belongs, and what names of TRL and transformers are called here."""

from pathlib import Path

import pytest

from grpo.recipe.explain import BROUGHT
from grpo.recipe.load import RecipeError, load_recipe

MINIMAL = {
    "model": {"model_name_or_path": "base"},
    "data": {"task": "countdown"},
    "rewards": [{"function": "countdown"}],
}


def said(*overrides: str) -> str:
    with pytest.raises(RecipeError) as refused:
        load_recipe(None, overrides, sections=MINIMAL)
    return str(refused.value)


@pytest.mark.parametrize("section", ["trainer", "algorithm", "rollout"])
def test_a_name_of_trl_s_is_told_its_name_here(section: str) -> None:
    assert f"{section}.num_iterations: unknown key. Here it is algorithm.steps_per_generation" in said(
        f"{section}.num_iterations=2"
    )
    assert f"{section}.lr: unknown key. Here it is trainer.learning_rate." in said(f"{section}.lr=1e-6")


@pytest.mark.parametrize("name", BROUGHT)
def test_every_such_name_is_told(name: str) -> None:
    assert f"trainer.{name}: unknown key. Here it is {BROUGHT[name]}." in said(f"trainer.{name}=1")


def test_a_key_of_another_section_is_found_before_one_that_is_only_near() -> None:
    assert "trainer.beta: unknown key. Did you mean algorithm.beta?" in said("trainer.beta=0.1")
    assert "Did you mean rollout.temperature?" in said("algorithm.temperature=1")


def test_a_stage_without_that_key_is_not_sent_to_it() -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(None, ["trainer.use_vllm=true"], sections={"stage": "sft"})
    assert "rollout" not in str(refused.value)


def test_an_option_after_the_recipe_is_told_its_place() -> None:
    assert "--num_processes=2: stands after the recipe. Options go before it" in said("--num_processes=2")
    assert "--num_processes: stands after the recipe." in said("--num_processes")


def test_an_override_of_a_stage_that_there_is_not_names_the_nearest(tmp_path: Path) -> None:
    stages = {"sft": {"stage": "sft", "data": {"sources": [{"dataset_name": "rows.jsonl"}]}}}
    pipeline = {"stage": "pipeline", "base": "base", "stages": stages, "output": str(tmp_path)}
    with pytest.raises(RecipeError, match=r"there is no stage 'sftt'. Did you mean 'sft'\?"):
        load_recipe(None, ["stages.sftt.trainer.max_steps=3"], sections=pipeline)
    load_recipe(None, ["stages.sft.trainer.max_steps=3", "stages.grpo={stage: grpo}"], sections=pipeline)
