"""Schedules: what is read, what is refused, and the recipe of a step."""

from pathlib import Path

import pytest

from grpo.recipe.config import GRPORecipe
from grpo.recipe.load import RecipeError, load_recipe

BASE = """
model: {model_name_or_path: ./base}
data: {task: countdown, max_prompt_length: 32}
rewards: [{function: countdown}]
trainer: {max_steps: 10, max_tokens_per_micro_batch: 1024}
"""


def load(folder: Path, text: str, *overrides: str) -> GRPORecipe:
    path = folder / "recipe.yaml"
    path.write_text(BASE + text)
    recipe = load_recipe(path, overrides)
    assert isinstance(recipe, GRPORecipe)
    return recipe


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        load(folder, text, *overrides)
    return str(error.value)


def test_numbers_follow_the_step_and_everything_is_sized_by_the_largest(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        "schedules: {rollout.max_completion_length: {0: 64, 4: 128}, algorithm.beta: {0: 0.1, 2: 0, 6: 1e-2}}",
    )
    lengths = [recipe.at(step).rollout.max_completion_length for step in (0, 3, 4, 9)]
    assert lengths == [64, 64, 128, 128]
    assert [recipe.at(step).algorithm.beta for step in (0, 1, 2, 5, 6)] == [0.1, 0.1, 0.0, 0.0, 0.01]
    assert recipe.at(0).rollout_sampling(0).max_completion_length == 64
    assert (recipe.rollout.max_completion_length, recipe.max_model_len) == (128, 160)
    assert recipe.evaluation_sampling().max_completion_length == 128  # the same at every step
    assert recipe.algorithm.beta == 0.1  # so a reference model is loaded


def test_every_number_of_the_loss_can_change(tmp_path: Path) -> None:
    text = "algorithm: {loss_type: sapo}\nschedules: {algorithm.sapo_temperature_neg: {0: 1.0, 4: 2.0}}"
    recipe = load(tmp_path, text)
    assert [recipe.at(step).algorithm.sapo_temperature_neg for step in (0, 4)] == [1.0, 2.0]
    top_p = "algorithm: {sampling_mask: true}\nrollout: {engine: hf}\nschedules: {rollout.top_p: {0: 0.9, 4: 0.95}}"
    assert load(tmp_path, top_p).at(4).rollout_sampling(0).top_p == 0.95
    assert "algorithm.loss_type: only what each rollout reads anew can change" in refusal(
        tmp_path, "schedules: {algorithm.loss_type: {0: 1}}"
    )


def test_a_recorded_recipe_can_be_launched_again_and_null_removes_schedules(tmp_path: Path) -> None:
    text = "schedules: {rollout.temperature: {0: 1.0, 5: 0.8}}"
    recipe = load(tmp_path, text)
    again = GRPORecipe.model_validate_json(recipe.model_dump_json(), strict=True)
    assert again == recipe and again.at(7).rollout.temperature == 0.8
    plain = load(tmp_path, text, "schedules=null")
    assert plain.at(7) == plain and plain.rollout.temperature == 1.0
    changed = load(tmp_path, text, "schedules={rollout.temperature: {0: 1.2, 5: 1.0}}")
    assert changed.at(0).rollout.temperature == 1.2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{rollout.max_completion_lenght: {0: 8}}", "schedules: rollout.max_completion_lenght: only what each rollout"),
        ("{rollout.max_completion_lenght: {0: 8}}", "Did you mean 'rollout.max_completion_length'?"),
        ("{trainer.learning_rate: {0: 1e-6}}", "it cannot change during a run: trainer.lr_scheduler_type is its"),
        ("{algorithm.steps_per_generation: {0: 1}}", "rollouts and their random numbers are counted by it"),
        ("{rollout.temperature: {3: 0.5}}", r"rollout.temperature: steps [3] leave the first rollout without a value"),
        ("{rollout.temperature: {0: 0.5, 10: 1.0}}", "changes at step 10 of a run of trainer.max_steps=10"),
        ("{rollout.temperature: {0: 1.0, 4: 0.0}}", "schedules, from step 4: rollout.temperature: Input should be"),
        ("{rollout.max_completion_length: {0: 8, 2: 16.5}}", "rollout.max_completion_length=16.5: must be an integer"),
        (
            "{rollout.max_completion_length: {0: 8, 2: 2048}}",
            "max_tokens_per_micro_batch=1024: must hold a full",
        ),
        ("{rollout.temperature: {0: hot}}", "schedules.rollout.temperature"),
    ],
)
def test_what_cannot_be_right_is_refused_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(tmp_path, f"rollout: {{num_generations: 4}}\nschedules: {text}")


def test_a_kl_term_may_end(tmp_path: Path) -> None:
    text = "algorithm: {ref_model_sync_steps: 2, use_bias_correction_kl: true}\n"
    recipe = load(tmp_path, text + "schedules: {algorithm.beta: {0: 0.001, 4: 0}}")
    assert (recipe.at(3).algorithm.beta, recipe.at(4).algorithm.beta) == (0.001, 0)


def test_a_value_beside_its_schedule_must_be_the_largest(tmp_path: Path) -> None:
    text = "rollout: {max_completion_length: 64}\nschedules: {rollout.max_completion_length: {0: 64, 4: 128}}"
    assert "rollout.max_completion_length=64 with schedules: rollout.max_completion_length goes up to 128" in refusal(
        tmp_path, text
    )
    assert load(tmp_path, text, "rollout.max_completion_length=128").at(0).rollout.max_completion_length == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "rollout: {dynamic_sampling: true}\nalgorithm: {advantage_estimator: reinforce_plus_plus}",
            "it compares with the batch's mean, so groups of equal rewards teach too",
        ),
        (
            "data: {curriculum: {}, task: countdown}",
            "data: curriculum with task='countdown': this source is endless",
        ),
        (
            "data: {curriculum: {low: 0.9, high: 0.1}, dataset_name: gsm8k}",
            "low=0.9: must not be above high=0.1",
        ),
        (
            "data: {curriculum: {weighting: variance, high: 0.5}, dataset_name: gsm8k}",
            "low and high with weighting='variance'",
        ),
        (
            "data: {curriculum: {replay_below: 0.1}, dataset_name: gsm8k}",
            "replay_below=0.1 with replay_after=0: nothing is drawn again",
        ),
    ],
)
def test_dynamic_sampling_and_curricula_that_mean_nothing_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    base = BASE if "data:" not in text else BASE.replace("data: {task: countdown, max_prompt_length: 32}\n", "")
    path.write_text(base + text)
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert message in str(error.value)
