"""Recipes: reading, error messages, and what a run records."""

import json
from pathlib import Path

import pytest
import yaml

from grpo.recipe.config import GRPORecipe
from grpo.recipe.load import RecipeError, load_recipe, read_yaml
from grpo.recipe.record import RECIPE_HEADER, check_world, write_resolved
from grpo.recipe.registry import STAGES

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


def error_message(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("[1E-8, 3e-4, 1.0e-06, 5e2]", [1e-8, 3e-4, 1e-6, 500.0]),
        ("[yes, no, on, off, y]", ["yes", "no", "on", "off", "y"]),
        ("[true, false, null, ~]", [True, False, None, None]),
        ("[010, 1:30, 0x10]", [10, "1:30", 16]),
        ("'$${x}^{2}$, \\frac{1}{2}'", "$${x}^{2}$, \\frac{1}{2}"),
        ("", None),
    ],
)
def test_yaml_1_2_decides_what_is_a_number_a_boolean_or_a_string(text: str, value: object) -> None:
    assert read_yaml(text) == value


def test_merge_keys_leave_the_merged_mapping_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: {model_name_or_path: ./base}\n"
        "data: &data {task: countdown, max_prompt_length: 32, task_options: &options {numbers: 3}}\n"
        "rollout: {max_completion_length: 64}\n"
        "evaluation:\n  num_problems: 8\n  data:\n    <<: *data\n    max_prompt_length: 24\n"
        "    task_options: {<<: *options, target: 10}\n"
        "rewards: [{function: countdown}]\n"
    )
    recipe = load(path, "evaluation.data.task_options.numbers=4")
    assert recipe.evaluation.data is not None
    assert (recipe.data.task, recipe.data.max_prompt_length) == ("countdown", 32)
    assert (recipe.evaluation.data.task, recipe.evaluation.data.max_prompt_length) == ("countdown", 24)
    assert recipe.data.task_options == {"numbers": 3}
    assert recipe.evaluation.data.task_options == {"numbers": 4, "target": 10}


def test_exponents_without_a_decimal_point_are_numbers(recipe_file) -> None:
    path = recipe_file("trainer: {learning_rate: 3e-6, adam_epsilon: 1E-8}\nalgorithm: {beta: 1e-3}")
    recipe = load(path)
    assert (recipe.trainer.learning_rate, recipe.trainer.adam_epsilon, recipe.algorithm.beta) == (3e-6, 1e-8, 1e-3)


def test_overrides_are_yaml_values_and_can_index_lists(recipe_file) -> None:
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


def test_dot_paths_are_relative_to_the_file_they_appear_in(recipe_file, tmp_path: Path, monkeypatch) -> None:
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
    sections = {"model": {"model_name_or_path": "../base"}, "evaluation": {"tasks": ["./mine.yaml"]}}
    recipe = load_recipe(variant, sections=sections)
    assert isinstance(recipe, GRPORecipe)
    assert recipe.model.model_name_or_path == str(tmp_path / "base")
    assert recipe.evaluation.tasks == [str(elsewhere / "mine.yaml")]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.max_step=5"], ["trainer.max_step", "Did you mean 'max_steps'?"]),
        (
            ["evaluation.top_p=0", "rollout.gpu_memory_utilization=0", "trainer.adam_beta1=1.0"],
            ["evaluation.top_p=0", "gpu_memory_utilization=0: must be greater than 0", "adam_beta1=1.0: must be less"],
        ),
        (["trainer.num_generations=5"], ["trainer.num_generations", "Did you mean rollout.num_generations?"]),
        (["optimizer.lr=1"], ["optimizer: unknown key. Known keys: stage, model", "trainer"]),
        (["rewards.0.wieght=2"], ["rewards.0.wieght", "Did you mean 'weight'?"]),
        (
            ["stage=held_out", "sets={a: {rewards: [{function: format, wieght: 1}]}}"],
            ["sets.a.rewards.0.wieght: unknown key. Did you mean 'weight'?"],
        ),
        (["rewards.1.weight=2"], ["index 1 is out of range for a list of 1 item. Use 0."]),
        (
            ["report.report_to=[wandb, trackio, tensorboard]", "report.report_to.9=x"],
            ["index 9 is out of range for a list of 3 items. Use 0 to 2."],
        ),
        (["rewards.first.weight=2"], ["'first' is not a list index. Use 0."]),
        (["report.report_to=[]", "report.report_to.0=wandb"], ["the list is empty. Set the whole list."]),
        (["data.task.name=x"], ["'countdown' is a single value, without keys. Remove .name."]),
        (["data.template={prompt"], ["the value is not valid YAML. Quote it."]),
        (["trainer.gradient_checkpointing=yes"], ["gradient_checkpointing='yes': must be true or false"]),
        (["trainer.activation_offloading=true"], ["Set trainer.gradient_checkpointing=true too."]),
        (["trainer.output_dir=7"], ["trainer.output_dir=7: must be a string; quote it"]),
        (["trainer.max_steps"], ["section.key=value"]),
        (["trainer.max_steps=many"], ["trainer.max_steps='many'", "must be an integer", "default is 100"]),
        (["trainer.max_steps=true"], ["trainer.max_steps=True", "must be an integer"]),
        (["trainer.learning_rate=0"], ["trainer.learning_rate=0", "greater than 0"]),
        (["trainer.lr_scheduler_type=cosin"], ["lr_scheduler_type='cosin'", "Did you mean 'cosine'?"]),
        (
            ["rollout.num_generations=1"],
            ["rollout.num_generations=1", "(advantages compare the completions of a group)", "default is 16"],
        ),
        (["data.task=null"], ["task=None and dataset_name=None", "exactly one"]),
        (["data.dataset_name=gsm8k"], ["task='countdown' and dataset_name='gsm8k'", "remove the other"]),
        (["data.template=Question"], ["template='Question'", "Add {prompt}"]),
        (["rewards=[]"], ["rewards=[]", "nothing to learn"]),
        (["rewards=[{function: format}, {function: 'm.n:format'}]"], ["'format' is listed 2 times"]),
        (["rewards.0.weight=0"], ["all weights are 0"]),
        (["rewards.0.requires=format"], ["'countdown' requires 'format'", "not another reward of this recipe (none)"]),
        (["rewards.0.requires=countdown"], ["'countdown' requires 'countdown'"]),
        (
            ["algorithm.multi_objective_aggregation=normalize_then_sum", "algorithm.scale_rewards=none"],
            ["scale_rewards=none", "Set algorithm.scale_rewards=group"],
        ),
        (["rollout.max_model_len=95"], ["rollout.max_model_len=95", "96 tokens"]),
        (["evaluation={num_problems: 8, max_completion_length: 128}", "rollout.max_model_len=96"], ["160 tokens"]),
        (["trainer.max_tokens_per_micro_batch=95"], ["32 + 64 tokens", "at least 96"]),
        (["algorithm.ref_model_sync_steps=10"], ["algorithm.beta=0", "no reference model"]),
        (["algorithm.steps_per_generation=16"], ["trainer.max_steps=100", "multiple", "max_steps=112"]),
        (["algorithm.loss_type=gpso"], ["'gpso' is not one of grpo", "Did you mean 'gspo'?"]),
        (["algorithm.importance_sampling_correction=ties"], ["'ties' is not one of tis", "Did you mean 'tis'?"]),
        (["algorithm.delta=1.1"], ["delta=1.1: must be above the clip, which ends at 1.2. Set a larger one"]),
        (["algorithm.delta=3", "algorithm.loss_type=sapo"], ["delta=3.0 with loss_type='sapo': only grpo, dr_grpo"]),
        (
            ["algorithm.epsilon=0.1", "algorithm.loss_type=sapo"],
            ["epsilon=0.1 with loss_type='sapo': only grpo, dr_grpo"],
        ),
        (["algorithm.cov_ratio=0.1"], ["cov_ratio=0.1 with loss_type='grpo': only clip_cov, kl_cov use it. Remove it"]),
        (["algorithm.loss_type=kl_cov"], ["steps_per_generation=1: its penalty is |log ratio|", "or use clip_cov"]),
        (
            ["algorithm.loss_type=clip_cov", "algorithm.clip_cov_min=6"],
            ["clip_cov_min=6.0: must be below clip_cov_max=5.0. Exchange them."],
        ),
        (["algorithm.entropy_coef_max=0.1"], ["entropy_coef_max=0.1 without entropy_target: the coefficient is fixed"]),
        (
            ["algorithm.entropy_target=0.3", "algorithm.entropy_coef=2"],
            ["entropy_coef=2.0: must not be above entropy_coef_max=1.0"],
        ),
        (["algorithm.pass_k=2"], ["pass_k=2 with advantage_estimator='group': only the estimator 'pass_at_k' uses it"]),
        (
            ["algorithm.advantage_estimator=pass_at_k", "algorithm.pass_k=16"],
            ["pass_k=16 with rollout.num_generations=16", "nothing to compare"],
        ),
        (["algorithm.vespo_k_pos=1"], ["vespo_k_pos=1.0 with loss_type='grpo': only vespo uses it. Remove it"]),
        (["algorithm.dppo_delta=0.1"], ["dppo_delta=0.1 with loss_type='grpo': only dppo uses it. Remove it"]),
        (["algorithm.loss_type=cispo"], ["epsilon_high=None with loss_type='cispo'", "Set algorithm.epsilon_high=5.0"]),
        (
            ["algorithm.loss_type=dppo", "algorithm.importance_sampling_correction=tis"],
            ["importance_sampling_correction='tis' with loss_type='dppo'", "to the engine already"],
        ),
        (["algorithm.importance_sampling_clip_max=3"], ["there is none. Set algorithm.importance_sampling_correction"]),
        (
            ["algorithm.importance_sampling_correction=tis", "algorithm.importance_sampling_clip_min=3"],
            ["clip_min=3.0: must be below 1, the ratio where sampler and trainer agree. Lower it."],
        ),
        (
            ["algorithm.importance_sampling_correction=geometric", "algorithm.importance_sampling_clip_max=0.98"],
            ["clip_max=0.98: must be above 1, the ratio where sampler and trainer agree. Raise it."],
        ),
        (
            ["algorithm.loss_type=gspo", "algorithm.steps_per_generation=4"],
            ["epsilon=0.2 with loss_type='gspo': it clips a completion's mean ratio", "epsilon=3e-4 and epsilon_high"],
        ),
        (
            ["algorithm.loss_type=cispo", "algorithm.epsilon=0.1", "algorithm.epsilon_high=5"],
            ["epsilon=0.1 with loss_type='cispo': only grpo"],
        ),
        (
            ["algorithm.advantage_estimator=maxrl", "rewards=[{function: soft_overlong_punishment}]"],
            ["'soft_overlong_punishment' with advantage_estimator='maxrl'", "mean reward, which this one can make neg"],
        ),
        (["algorithm.use_bias_correction_kl=true"], ["with algorithm.beta=0: there is no KL term to correct"]),
        (
            ["algorithm.advantage_estimator=rloo", "algorithm.scale_rewards=none"],
            ["scale_rewards='none' with advantage_estimator='rloo': only the estimator 'group' uses it."],
        ),
        (["evaluation.reward=accuracy"], ["evaluation.reward='accuracy'", "countdown"]),
        (["evaluation.eval_steps=10"], ["evaluation.num_problems=0", "nothing to evaluate."]),
        (
            ["data={dataset_name: m.jsonl}", "evaluation={num_problems: 9, data: {dataset_name: m.jsonl}}"],
            ["evaluation.data: dataset_name='m.jsonl' with dataset_split='train' is what data trains on", "Divide it"],
        ),
        (["evaluation.data_dir=here"], ["evaluation.data_dir='here' without evaluation.tasks"]),
        (["evaluation.temperature=0"], ["num_samples=4", "greedy"]),
        (["stage=grop"], [f"stage='grop': must be one of {', '.join(STAGES)}. Did you mean 'grpo'?"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_errors_state_value_rule_and_remedy(recipe_file, overrides: list[str], words: list[str]) -> None:
    message = error_message(recipe_file(), *overrides)
    for word in words:
        assert word in message


def test_all_errors_are_reported_at_once(recipe_file) -> None:
    message = error_message(
        recipe_file(), "model.dtpye=float32", "rollout.num_generations=1", "trainer.seed=-1", "nonsense"
    )
    assert message.splitlines()[0].endswith("recipe.yaml: 4 errors")
    for word in ("model.dtpye", "rollout.num_generations=1", "trainer.seed=-1", "'nonsense'"):
        assert word in message


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {model_name_or_path: ./base}\ndata: {task: countdown}\n")
    assert "rewards: is required (without a reward there is nothing to learn). Add it." in error_message(path)


def test_errors_about_missing_files_suggest_existing_ones(recipe_file, tmp_path: Path) -> None:
    recipe_file()
    assert "Did you mean 'recipe.yaml'?" in error_message(tmp_path / "recipes.yaml")
    (tmp_path / "variant.yaml").write_text("extends: bse.yaml\n")
    message = error_message(tmp_path / "variant.yaml")
    assert f"bse.yaml (extended by {tmp_path / 'variant.yaml'}) does not exist." in message


def test_duplicate_keys_are_errors_with_file_and_line(recipe_file) -> None:
    path = recipe_file("rollout: {temperature: 1.0}")
    assert error_message(path) == f'{path} is not valid YAML: line 7: found duplicate key "rollout"'
    path.write_text("model: {model_name_or_path: ./base}\ndata: [\n")
    assert error_message(path).startswith(f"{path} is not valid YAML: line 3: ")


def test_a_template_with_double_braces_is_a_yaml_error(recipe_file) -> None:
    assert "is not valid YAML: line 7: found unhashable key" in error_message(recipe_file("x: {{prompt}}"))


def test_a_schedule_s_steps_are_replaced_as_a_whole(recipe_file, tmp_path: Path) -> None:
    base = recipe_file("schedules: {rollout.temperature: {0: 1.0, 40: 0.7}}\n")
    (tmp_path / "short.yaml").write_text(
        f"extends: {base}\ntrainer: {{max_steps: 20}}\nschedules: {{rollout.temperature: {{0: 1.0, 10: 0.8}}}}"
    )
    assert load(tmp_path / "short.yaml").schedules == {"rollout.temperature": {0: 1.0, 10: 0.8}}
    given = {"schedules": {"rollout.temperature": {0: 1.0, 20: 0.6}}}  # from Python, where steps are numbers
    assert load_recipe(base, sections=given).schedules == {"rollout.temperature": {0: 1.0, 20: 0.6}}


def test_a_coefficient_follows_a_schedule_or_a_target(recipe_file) -> None:
    both = recipe_file("algorithm: {entropy_target: 0.2}\nschedules: {algorithm.entropy_coef: {0: 0.01, 5: 0.0}}\n")
    assert (
        "schedules.algorithm.entropy_coef with algorithm.entropy_target=0.2: the coefficient follows"
        in error_message(both)
    )


def test_a_recipe_extends_one_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: [b.yaml, c.yaml]\n")
    assert error_message(tmp_path / "a.yaml") == (
        f"{tmp_path}/a.yaml: extends=['b.yaml', 'c.yaml']: must be the path of one file. To build on several, let each "
        "extend the next."
    )


def test_a_cycle_of_extends_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    assert error_message(a) == f"{a} extends itself: {a} -> {b} -> {a}. Remove one of these `extends`."


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: !!python/object/apply:os.getcwd []\n")
    assert "not valid YAML" in error_message(tmp_path / "recipe.yaml")


def test_each_rollout_has_its_own_seed_and_every_evaluation_the_same(recipe_file) -> None:
    recipe = load(recipe_file(), "trainer.seed=2", "evaluation.num_samples=3", "evaluation.top_p=0.9")
    first, second = recipe.rollout_sampling(0), recipe.rollout_sampling(1)
    assert (first.seed, second.seed) == (2_000_006, 2_000_007)
    assert (first.num_generations, first.max_completion_length, first.temperature, first.top_p) == (16, 64, 1.0, 1.0)
    evaluation = recipe.evaluation_sampling()
    assert (evaluation.seed, evaluation.num_generations, evaluation.max_completion_length) == (2, 3, 64)
    assert evaluation.top_p == 0.9


def test_every_process_must_get_the_same_number_of_problems(recipe_file) -> None:
    recipe = load(recipe_file(), "rollout.problems_per_step=3")
    check_world(recipe, 3)
    with pytest.raises(RecipeError, match=r"problems_per_step=3 with 2 processes.*Set rollout\.problems_per_step=4"):
        check_world(recipe, 2)


def test_the_resolved_recipe_reads_back_as_the_same_recipe(recipe_file, tmp_path: Path) -> None:
    recipe = load(
        recipe_file(),
        "trainer.learning_rate=1e-7",
        "data.template='{prompt} :\n'",
        "trainer.seed=9",
        "data.columns={a: '1e-6', b: 'yes', c: '0o10', d: '1:30'}",  # numbers and booleans to YAML 1.1 or 1.2
    )
    write_resolved(recipe, tmp_path / "run")
    written = tmp_path / "run" / "recipe.yaml"
    assert load_recipe(written) == recipe
    assert written.read_text().startswith(RECIPE_HEADER)
    as_yaml_1_1 = yaml.safe_load(written.read_text())
    assert as_yaml_1_1["rollout"]["max_completion_length"] == 64
    assert as_yaml_1_1["trainer"]["learning_rate"] == 1e-7
    assert as_yaml_1_1["data"]["columns"] == {"a": "1e-6", "b": "yes", "c": "0o10", "d": "1:30"}

    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["seed"] == 9
    assert environment["num_processes"] == 1
    assert environment["packages"]["torch"].startswith("2.")
    assert "python" in environment["command"]
    assert environment["git_revision"] is None or len(environment["git_revision"]) >= 40


def test_every_stage_resolves_to_a_recipe_class_and_a_function() -> None:
    for name, stage in STAGES.items():
        assert name in str(stage.recipe_class().model_fields["stage"].annotation)
        assert callable(stage.function())


def test_every_shipped_recipe_is_valid() -> None:
    recipes = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        assert path.read_text().startswith(RECIPE_HEADER), path
        load_recipe(path)


def test_a_reward_function_can_be_listed_twice_under_different_names(recipe_file) -> None:
    listed = (
        "rewards=[{function: countdown, data_sources: [a]}, {function: countdown, name: strict, data_sources: [b]}]"
    )
    recipe = load_recipe(recipe_file(), [listed])
    assert [(r.name, r.data_sources) for r in recipe.rewards] == [("countdown", ["a"]), ("strict", ["b"])]
