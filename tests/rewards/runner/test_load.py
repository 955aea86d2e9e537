"""Loading reward functions by name, and the errors for wrong names."""

from functools import partial

import pytest

import rewards
from grpo.evaluation.config import TaskConfig
from grpo.recipe.load import RecipeError, load_recipe, load_section
from rewards.runner.load import load_function
from rewards.runner.score import Rewards, RewardSpec


def check(*specs, base_dir=None):
    Rewards([RewardSpec(**spec) for spec in specs], num_workers=0, base_dir=base_dir).close()


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("accuracy", rewards.accuracy),
        ("code", rewards.code),
        ("countdown", rewards.countdown),
        ("exact_match", rewards.exact_match),
        ("format", rewards.format),
        ("random", rewards.random_reward),
        ("reasoning_gym", rewards.reasoning_gym),
        ("rewards.style.format:format", rewards.format),
    ],
)
def test_functions_load_by_name(name, function):
    assert load_function(name) is function


def test_a_relative_file_starts_at_the_base_dir_and_is_loaded_once(tmp_path):
    (tmp_path / "mine").mkdir()
    source = "from dataclasses import dataclass\n\n@dataclass\nclass Rate:\n    r: float\n\n"
    source += "def half(prompts, completions, **kwargs):\n    return [Rate(0.5).r] * len(completions)\n"
    (tmp_path / "mine" / "my_rewards.py").write_text(source)
    half = load_function("mine/my_rewards.py:half", tmp_path)
    assert half(prompts=["q"], completions=["a"]) == [0.5]
    assert load_function(f"{tmp_path}/mine/my_rewards.py:half") is half


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("acuracy", "no built-in reward is called 'acuracy'. Did you mean 'accuracy'?"),
        ("zzz", "Built in: accuracy, "),
        ("rewards.style.format:fromat", "rewards.style.format does not define 'fromat'. Did you mean 'format'?"),
        ("no_such_package.x:f", "reward: module 'no_such_package.x' cannot be imported"),
        ("rewards.no_such:f", "reward: module 'rewards.no_such' cannot be imported"),
        (
            "no_such_file.py:f",
            "no_such_file.py does not exist. Correct the path. Relative paths start in the recipe folder",
        ),
        ("operator:add", "reward 'operator:add' takes neither completions nor **kwargs"),
        ("sys:path", "reward 'sys:path' is not a function but ["),
    ],
)
def test_the_error_for_a_wrong_name_says_what_is_wrong(spec, message, tmp_path):
    with pytest.raises(ValueError) as error:
        check({"function": spec}, base_dir=tmp_path)
    assert message in str(error.value)


def test_a_path_with_a_dot_starts_at_the_recipe_and_any_other_at_the_working_directory(tmp_path, monkeypatch):
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "mine.py").write_text("def half(prompts, completions, **kwargs):\n    return [0.5] * len(completions)\n")
    (folder / "r.yaml").write_text(
        "model: {model_name_or_path: m}\ndata: {task: countdown}\n"
        "rewards: [{function: './mine.py:half'}, {function: 'mine.py:half', name: other}]\n"
    )
    (folder / "task.yaml").write_text("dataset_name: x\ncolumns: {prompt: q}\nreward: ../recipes/mine.py:half\n")
    monkeypatch.chdir(tmp_path)
    ours, other = load_recipe(folder / "r.yaml").rewards  # type: ignore[attr-defined]
    assert (ours.name, ours.function, other.function) == ("half", f"{folder}/mine.py:half", "mine.py:half")
    assert load_function(ours.function)(prompts=["q"], completions=["a"]) == [0.5]
    assert load_section(folder / "task.yaml", TaskConfig).reward == f"{folder}/mine.py:half"
    with pytest.raises(ValueError) as error:
        load_function(other.function)
    assert str(error.value) == (
        f"reward: file {tmp_path}/mine.py does not exist. Correct the path. Relative paths start in the working "
        "directory; in a recipe, ./ and ../ mean its folder."
    )


@pytest.mark.parametrize("weight", [".inf", ".nan", "1e30"])
def test_a_weight_must_be_a_number_that_can_be_squared(tmp_path, weight):
    (tmp_path / "r.yaml").write_text(
        "model: {model_name_or_path: m}\ndata: {task: countdown}\n"
        f"rewards: [{{function: countdown, weight: {weight}}}]\n"
    )
    with pytest.raises(RecipeError, match=r"rewards\.0\.weight"):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("where", ["broken.py", "broken"])
def test_an_error_inside_a_reward_file_is_shown_with_the_files_own_frames(where, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken.py").write_text("def read():\n    import no_such_dependency\n\nread()\n")
    with pytest.raises(ValueError) as error:
        load_function(f"{where}:f", tmp_path)
    file = tmp_path / "broken.py"
    assert str(error.value) == (
        f"reward: {file if where == 'broken.py' else where} cannot be loaded: it raises ModuleNotFoundError. Correct "
        f"it.\nTraceback (most recent call last):\n"
        f'  File "{file}", line 4, in <module>\n    read()\n'
        f'  File "{file}", line 2, in read\n    import no_such_dependency\n'
        "ModuleNotFoundError: No module named 'no_such_dependency'"
    )


def test_a_reward_file_that_ends_the_program_is_named(tmp_path):
    (tmp_path / "ends.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(ValueError, match=r"ends\.py cannot be loaded: it raises SystemExit"):
        load_function("ends.py:f", tmp_path)


def test_a_function_with_verls_signature_is_told_what_a_reward_is(tmp_path):
    (tmp_path / "verl.py").write_text("def compute_score(data_source, solution_str, ground_truth):\n    return 1.0\n")
    with pytest.raises(ValueError, match=r"A reward is f\(prompts, completions, \*\*kwargs\) and returns one"):
        check({"function": "verl.py:compute_score"}, base_dir=tmp_path)


def test_a_file_that_is_not_python_is_named_with_its_line(tmp_path):
    (tmp_path / "my.py").write_text("def f(completions)\n")
    with pytest.raises(ValueError, match=r"reward: .*my.py:1: expected ':'. Correct the file."):
        load_function("my.py:f", tmp_path)


def test_a_function_without_kwargs_is_rejected_before_the_run():
    with pytest.raises(ValueError, match=r"reward 'narrow' has no \*\*kwargs.*Add \*\*kwargs"):
        check({"function": lambda prompts, completions: [0.0], "name": "narrow"})


def test_an_unknown_option_of_a_builtin_is_rejected():
    with pytest.raises(ValueError, match=r"reward 'format' has no option 'prefilled'.*Options: think_prefilled"):
        check({"function": "format", "options": {"prefilled": True}})
    with pytest.raises(ValueError, match=r"reward 'countdown' has no option 'target'. It has no options"):
        check({"function": "countdown", "options": {"target": 3}})


def test_a_duplicate_name_is_rejected():
    with pytest.raises(ValueError, match="reward 'random' is listed more than once"):
        check({"function": "random"}, {"function": "random", "options": {"p": 0.1}})


def test_rewards_are_named_after_their_functions():
    named = [
        RewardSpec(function="random"),
        RewardSpec(function="rewards.style.format:format"),
        RewardSpec(function=rewards.countdown),
        RewardSpec(function=partial(rewards.exact_match), name="exact"),
    ]
    assert Rewards(named, num_workers=0).names == ["random", "format", "countdown", "exact"]


def test_a_file_that_hangs_when_imported_is_named_after_the_time_limit(tmp_path):
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\ndef f(completions, **kwargs): return []\n")
    spec = RewardSpec(function=f"{tmp_path}/slow.py:f")
    with pytest.raises(ValueError, match=r"slow.py:f was not loaded within .* 0.2 s.*raise trainer.reward_timeout"):
        Rewards([spec], num_workers=1, timeout=0.2)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("code", {"allow_unsandboxed": "no"}, "reward 'code': allow_unsandboxed='no' must be true or false. YAML 1.2"),
        ("code", {"isolation": "bwarp"}, "isolation='bwarp' must be one of bubblewrap, namespaces, landlock, none or"),
        ("code", {"time_limit": "5"}, "time_limit='5' must be a number. Write it without quotes."),
        ("rewards.programs.code:code", {"memory_mb": 0.5}, "memory_mb=0.5 must be an integer."),
        ("format", {"think_prefilled": "no"}, "think_prefilled='no' must be true or false."),
        ("cosine_scaled", {"max_len": "1000"}, "max_len='1000' must be an integer."),
        ("cosine_scaled", {"max_len": 9, "min_value_wrong": "-1"}, "min_value_wrong='-1' must be a number."),
        ("judge", {"model": "m", "timeout": "120"}, "timeout='120' must be a number."),
        ("accuracy", {"answer_in": "boxes"}, "answer_in='boxes' must be one of "),
    ],
)
def test_an_option_of_another_type_is_rejected(function, options, message):
    with pytest.raises(ValueError) as error:
        check({"function": function, "options": options})
    assert message in str(error.value)


def test_a_misspelt_option_of_ones_own_function_is_rejected_and_one_of_its_kwargs_is_not():
    def short(prompts, completions, *, limit=400, **kw):
        return [0.0] * len(completions)

    with pytest.raises(ValueError, match=r"reward 'short' has no option 'limt'. Did you mean 'limit'\?"):
        check({"function": short, "options": {"limt": 3}})
    check({"function": short, "options": {"language": "en"}})
