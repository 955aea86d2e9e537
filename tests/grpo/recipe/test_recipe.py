"""Recipes: what is read, what is refused and in which words, what is written down."""

import json
from pathlib import Path

import pytest
import yaml

from grpo.recipe.config import GRPORecipe
from grpo.recipe.load import RECIPE_HEADER, RecipeError, check_world, load_recipe, write_resolved

MINIMAL = """
model: {model_name_or_path: ./base}
data: {task: countdown, max_prompt_length: 32}
rollout: {max_completion_length: 64}
rewards: [{function: countdown}]
"""


@pytest.fixture
def recipe_file(tmp_path: Path):
    def write(text: str = "", name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(RECIPE_HEADER + MINIMAL + text)
        return path

    return write


def load(path: Path, *overrides: str) -> GRPORecipe:
    recipe = load_recipe(path, overrides)
    assert isinstance(recipe, GRPORecipe)
    return recipe


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return str(error.value)


def test_exponents_without_a_point_are_numbers(recipe_file) -> None:
    path = recipe_file("trainer: {learning_rate: 3e-6, adam_epsilon: 1E-8}\nalgorithm: {beta: 1e-3}")
    recipe = load(path)
    assert (recipe.trainer.learning_rate, recipe.trainer.adam_epsilon, recipe.algorithm.beta) == (3e-6, 1e-8, 1e-3)


def test_overrides_are_yaml_values_and_reach_into_lists(recipe_file) -> None:
    recipe = load(
        recipe_file(),
        "trainer.learning_rate=1e-4",
        "rollout.num_generations=8",
        "rewards.0.weight=2",
        "report.report_to=[tensorboard]",
        "evaluation.data.task=arithmetic",
        "data.task_options={numbers: 4}",
    )
    assert recipe.trainer.learning_rate == 1e-4
    assert recipe.rollout.num_generations == 8
    assert recipe.rewards[0].weight == 2
    assert recipe.report.report_to == ["tensorboard"]
    assert recipe.evaluation.data is not None and recipe.evaluation.data.task == "arithmetic"
    assert recipe.data.task_options == {"numbers": 4}


def test_extends_merges_sections_and_replaces_lists(recipe_file, tmp_path: Path) -> None:
    recipe_file("trainer: {max_steps: 7, seed: 3}", "folder/base.yaml")
    variant = tmp_path / "variant.yaml"
    variant.write_text("extends: folder/base.yaml\ntrainer: {seed: 4}\nrewards: [{function: format}]\n")
    recipe = load(variant)
    assert (recipe.trainer.max_steps, recipe.trainer.seed) == (7, 4)
    assert [reward.function for reward in recipe.rewards] == ["format"]


def test_dot_paths_start_at_the_file_that_says_them(recipe_file, tmp_path: Path, monkeypatch) -> None:
    recipe_file("", "folder/base.yaml")
    variant = tmp_path / "variant.yaml"
    variant.write_text("extends: ./folder/base.yaml\nrewards: [{function: './mine.py:score'}]\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    recipe = load(variant, "evaluation.data.dataset_name=./held_out.jsonl")
    assert recipe.model.model_name_or_path == str(tmp_path / "folder" / "base")
    assert recipe.rewards[0].function == f"{tmp_path / 'mine.py'}:score"
    assert recipe.evaluation.data is not None
    assert recipe.evaluation.data.dataset_name == str(elsewhere / "held_out.jsonl")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.max_step=5"], ["trainer.max_step", "Did you mean 'max_steps'?"]),
        (["trainer.num_generations=5"], ["trainer.num_generations", "Did you mean rollout.num_generations?"]),
        (["optimizer.lr=1"], ["optimizer", "Known here", "trainer"]),
        (["rewards.0.wieght=2"], ["rewards.0.wieght", "Did you mean 'weight'?"]),
        (["rewards.1.weight=2"], ["'1' is no index of a list of 1"]),
        (["trainer.max_steps"], ["section.key=value"]),
        (["trainer.max_steps=many"], ["trainer.max_steps='many'", "whole number", "default is 100"]),
        (["trainer.max_steps=true"], ["trainer.max_steps=True", "whole number"]),
        (["trainer.learning_rate=0"], ["trainer.learning_rate=0", "greater than 0"]),
        (["trainer.lr_scheduler_type=cosin"], ["lr_scheduler_type='cosin'", "Did you mean 'cosine'?"]),
        (["rollout.num_generations=1"], ["rollout.num_generations=1", "a group of one has none", "default is 16"]),
        (["data.task=null"], ["task=None and dataset_name=None", "exactly one"]),
        (["data.dataset_name=gsm8k"], ["task='countdown' and dataset_name='gsm8k'", "leave out the other"]),
        (["data.template=Question"], ["template='Question'", "Write {prompt}"]),
        (["rewards=[]"], ["rewards=[]", "nothing to learn"]),
        (["rewards=[{function: format}, {function: 'm.n:format'}]"], ["'format' is listed 2 times"]),
        (["rewards.0.weight=0"], ["every weight is 0"]),
        (["rewards.0.requires=format"], ["'countdown' requires 'format'", "no other reward of this recipe (none)"]),
        (["rewards.0.requires=countdown"], ["'countdown' requires 'countdown'"]),
        (
            ["algorithm.multi_objective_aggregation=normalize_then_sum", "algorithm.scale_rewards=none"],
            ["scale_rewards=none", "Leave scale_rewards at group"],
        ),
        (["rollout.max_model_len=95"], ["rollout.max_model_len=95", "96 tokens"]),
        (["evaluation.num_problems=8", "evaluation.max_completion_length=128"], ["max_model_len=96", "160"]),
        (["trainer.max_tokens_per_micro_batch=95"], ["32 + 64 tokens", "at least 96"]),
        (["algorithm.ref_model_sync_steps=10"], ["algorithm.beta=0", "no reference to refresh"]),
        (["algorithm.steps_per_generation=16"], ["trainer.max_steps=100", "multiple", "max_steps=112"]),
        (["evaluation.reward=accuracy"], ["evaluation.reward='accuracy'", "countdown"]),
        (["evaluation.eval_steps=10"], ["evaluation.num_problems=0", "nothing to evaluate"]),
        (["evaluation.temperature=0"], ["num_samples=4", "greedy"]),
        (["stage=grop"], ["'grop' is none of grpo, pretrain", "Did you mean 'grpo'?"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_refusals_say_value_rule_and_remedy(recipe_file, overrides: list[str], words: list[str]) -> None:
    message = refusal(recipe_file(), *overrides)
    for word in words:
        assert word in message


def test_everything_wrong_is_said_at_once(recipe_file) -> None:
    message = refusal(recipe_file(), "model.dtpye=float32", "rollout.num_generations=1", "trainer.seed=-1", "nonsense")
    assert "4 to mend" in message
    for word in ("model.dtpye", "rollout.num_generations=1", "trainer.seed=-1", "'nonsense'"):
        assert word in message


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {model_name_or_path: ./base}\ndata: {task: countdown}\n")
    assert "rewards: is missing" in refusal(path)


def test_missing_files_name_their_neighbours(recipe_file, tmp_path: Path) -> None:
    recipe_file()
    assert "Did you mean 'recipe.yaml'?" in refusal(tmp_path / "recipes.yaml")
    (tmp_path / "variant.yaml").write_text("extends: bse.yaml\n")
    message = refusal(tmp_path / "variant.yaml")
    assert "bse.yaml" in message and "variant.yaml extends" in message


def test_a_key_given_twice_is_refused(recipe_file) -> None:
    assert "'rollout' is given twice" in refusal(recipe_file("rollout: {temperature: 1.0}"))


def test_a_circle_of_extends_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    assert "extends itself" in refusal(tmp_path / "a.yaml")


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: !!python/object/apply:os.getcwd []\n")
    assert "not valid YAML" in refusal(tmp_path / "recipe.yaml")


def test_problems_must_divide_by_processes(recipe_file) -> None:
    recipe = load(recipe_file(), "rollout.problems_per_step=3")
    check_world(recipe, 3)
    with pytest.raises(RecipeError, match=r"problems_per_step=3 with 2 processes.*Set rollout\.problems_per_step=4"):
        check_world(recipe, 2)


def test_the_resolved_recipe_reads_back_as_the_same_recipe(recipe_file, tmp_path: Path) -> None:
    recipe = load(recipe_file(), "trainer.learning_rate=1e-7", "data.template='{prompt} :\n'", "trainer.seed=9")
    write_resolved(recipe, tmp_path / "run")
    written = tmp_path / "run" / "recipe.yaml"
    assert load_recipe(written) == recipe
    assert written.read_text().startswith(RECIPE_HEADER)
    assert yaml.safe_load(written.read_text())["rollout"]["max_completion_length"] == 64

    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["seed"] == 9
    assert environment["num_processes"] == 1
    assert environment["packages"]["torch"].startswith("2.")
    assert "pytest" in environment["command"]
    assert environment["git_revision"] is None or len(environment["git_revision"]) >= 40


def test_every_shipped_recipe_is_valid() -> None:
    recipes = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        assert path.read_text().startswith(RECIPE_HEADER), path
        load_recipe(path)


def test_a_function_may_be_listed_twice_under_two_names(recipe_file) -> None:
    listed = (
        "rewards=[{function: countdown, data_sources: [a]}, {function: countdown, name: strict, data_sources: [b]}]"
    )
    recipe = load_recipe(recipe_file(), [listed])
    assert [(r.name, r.data_sources) for r in recipe.rewards] == [("countdown", ["a"]), ("strict", ["b"])]
