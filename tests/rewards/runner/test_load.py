"""From a recipe's string to a function, and what a user is told where that fails."""

from functools import partial

import pytest

import rewards
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


def test_a_file_is_found_from_the_base_dir_and_loaded_once(tmp_path):
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
        ("rewards.style.format:fromat", "rewards.style.format has no function 'fromat'. Did you mean 'format'?"),
        ("no_such_package.x:f", "reward module 'no_such_package.x' cannot be imported"),
        ("rewards.no_such:f", "reward module 'rewards.no_such' cannot be imported"),
        ("no_such_file.py:f", "no_such_file.py does not exist"),
        ("operator:add", "reward 'operator:add' has no **kwargs and takes no completions"),
    ],
)
def test_a_wrong_name_is_explained(spec, message, tmp_path):
    with pytest.raises(ValueError) as error:
        check({"function": spec}, base_dir=tmp_path)
    assert message in str(error.value)


def test_an_error_inside_a_reward_file_is_shown_as_it_is(tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        load_function("broken.py:f", tmp_path)


def test_a_function_without_kwargs_is_refused_before_the_run():
    with pytest.raises(ValueError, match=r"reward 'narrow' has no \*\*kwargs.*Add \*\*kwargs"):
        check({"function": lambda prompts, completions: [0.0], "name": "narrow"})


def test_an_option_that_a_builtin_does_not_know_is_refused():
    with pytest.raises(ValueError, match=r"reward 'format' has no option 'prefilled'.*Options: think_prefilled"):
        check({"function": "format", "options": {"prefilled": True}})
    with pytest.raises(ValueError, match=r"reward 'countdown' has no option 'target'. It has no options"):
        check({"function": "countdown", "options": {"target": 3}})


def test_the_same_name_twice_is_refused():
    with pytest.raises(ValueError, match="reward 'random' is listed more than once"):
        check({"function": "random"}, {"function": "random", "options": {"p": 0.1}})


def test_names_are_those_of_the_functions():
    named = [
        RewardSpec(function="random"),
        RewardSpec(function="rewards.style.format:format"),
        RewardSpec(function=rewards.countdown),
        RewardSpec(function=partial(rewards.exact_match), name="exact"),
    ]
    assert Rewards(named, num_workers=0).names == ["random", "format", "countdown", "exact"]
