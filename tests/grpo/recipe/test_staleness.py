"""`rollout.max_staleness`: which engines can, and what is corrected."""

from pathlib import Path

import pytest
import yaml

from grpo.recipe.config import GRPORecipe
from grpo.recipe.load import RecipeError, load_recipe
from grpo.recipe.record import write_resolved
from grpo.recipe.stages.opd import OPDRecipe

SERVER = ["rollout.engine=server", "rollout.servers={start: 1}"]


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    recipe = {
        "model": {"model_name_or_path": "base"},
        "data": {"task": "countdown", "max_prompt_length": 32},
        "rollout": {"max_completion_length": 64},
        "rewards": [{"function": "countdown"}],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def correction(path: Path, *overrides: str) -> str | None:
    recipe = load_recipe(path, [*SERVER, *overrides])
    assert isinstance(recipe, GRPORecipe)
    return recipe.algorithm.importance_sampling_correction


def test_lockstep_is_the_default_and_is_not_corrected(recipe_file: Path) -> None:
    assert correction(recipe_file) is None
    assert correction(recipe_file, "rollout.max_staleness=0") is None


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "tis"),
        (["algorithm.epsilon=0.1"], "tis"),
        (["algorithm.importance_sampling_clip_max=3.0"], "tis"),
        (["algorithm.importance_sampling_correction=mis"], "mis"),
        (["algorithm.loss_type=dppo"], None),
    ],
)
def test_stale_samples_are_corrected_by_tis_unless_the_recipe_says_how(
    recipe_file: Path, tmp_path: Path, overrides: list[str], expected: str | None
) -> None:
    assert correction(recipe_file, "rollout.max_staleness=2", *overrides) == expected
    recipe = load_recipe(recipe_file, [*SERVER, "rollout.max_staleness=2", *overrides])
    write_resolved(recipe, tmp_path / "run")
    written = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())
    assert written["algorithm"]["importance_sampling_correction"] == expected
    assert load_recipe(tmp_path / "run/recipe.yaml") == recipe


@pytest.mark.parametrize("engine", ["vllm", "hf"])
def test_an_engine_in_the_trainers_process_cannot_run_ahead(recipe_file: Path, engine: str) -> None:
    with pytest.raises(RecipeError, match=rf"max_staleness=1 with rollout.engine={engine}: an engine in the trainer's"):
        load_recipe(recipe_file, [f"rollout.engine={engine}", "rollout.max_staleness=1"])


def test_distillation_cannot_run_ahead(recipe_file: Path) -> None:
    opd = ["stage=opd", "teachers={t: {model_name_or_path: teacher}}"]
    assert isinstance(load_recipe(recipe_file, [*SERVER, *opd]), OPDRecipe)
    with pytest.raises(RecipeError, match="no correction for stale samples"):
        load_recipe(recipe_file, [*SERVER, *opd, "rollout.max_staleness=1"])
