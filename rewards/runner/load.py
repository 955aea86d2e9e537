"""Find the reward function that a recipe names."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rollout.support.loading import load_object
from rollout.support.names import nearest

RewardFunction = Callable[..., Any]  # f(prompts, completions, completion_ids=…, **columns) -> list[float | None]
PASSED = ("prompts", "completions", "completion_ids", "trainer_state", "log_metric", "log_extra")  # besides the columns

# Name in a recipe -> function. A new built-in needs one small file and one line here.
BUILTINS = {
    "accuracy": "rewards.answers.accuracy:accuracy",
    "code": "rewards.programs.code:code",
    "cosine_scaled": "rewards.style.length:cosine_scaled",
    "countdown": "rewards.answers.countdown:countdown",
    "exact_match": "rewards.answers.exact_match:exact_match",
    "format": "rewards.style.format:format",
    "judge": "rewards.models.judge:judge",
    "language": "rewards.style.language:language",
    "multiple_choice": "rewards.answers.multiple_choice:multiple_choice",
    "random": "rewards.random_reward:random_reward",
    "reasoning_gym": "rewards.answers.gym:reasoning_gym",
    "relative_length": "rewards.style.length:relative_length",
    "reward_model": "rewards.models.reward_model:reward_model",
    "repetition_penalty": "rewards.style.repetition:repetition_penalty",
    "soft_overlong_punishment": "rewards.style.length:soft_overlong_punishment",
}


def load_function(spec: str, base_dir: Path | None = None) -> RewardFunction:
    """The function that `spec` names: a built-in, `package.module:function` or `path/to/file.py:function`.

    Relative paths start at base_dir (default: the working directory). The function may be a factory; `bind` turns it
    into a reward function.

    Raises:
        ValueError: no such function, or it does not accept a dataset's columns.
    """
    if ":" in spec:
        location = spec
    elif spec in BUILTINS:
        location = BUILTINS[spec]
    else:
        raise ValueError(
            f"no built-in reward is called {spec!r}.{nearest(spec, BUILTINS)} Built in: {', '.join(BUILTINS)}. "
            "For your own, give package.module:function or path/to/file.py:function."
        )
    function = load_object(location, kind="reward", base_dir=base_dir)
    if not callable(function):
        raise ValueError(f"reward {spec!r} is not a function but {function!r}. Name a function.")
    if not _is_factory(function):
        check_signature(spec, function)
    return function


def bind(spec: str, function: RewardFunction, options: Mapping[str, Any]) -> tuple[RewardFunction, dict[str, Any]]:
    """The reward function and the options to pass on every call.

    A function that takes neither completions nor **kwargs is a factory: it is called once with the options and returns
    the reward function, like trl.rewards:get_soft_overlong_punishment.
    """
    if not _is_factory(function):
        check_options(spec, function, options)
        return function, dict(options)
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:
        raise ValueError(
            f"reward {spec!r} takes neither completions nor **kwargs, so it must build a reward function from its "
            f"options, but options={dict(options)} do not fit: {error}. Correct the options, or add **kwargs."
        ) from error
    made = function(**options)
    check_signature(spec, made)
    return made, {}


def checked_by(check: Callable[[Mapping[str, Any]], str | None]) -> Callable[[RewardFunction], RewardFunction]:
    """Decorator for a reward function: `check(columns)` returns why a problem's answers cannot be graded, or None.

    It receives the row's columns and the reward's options. Every row of a dataset is checked before training.
    Equivalent to setting the attribute `function.check_columns`.
    """

    def mark(function: RewardFunction) -> RewardFunction:
        vars(function)["check_columns"] = check
        return function

    return mark


def required_columns(function: RewardFunction, options: Mapping[str, Any]) -> list[str]:
    """The columns a reward function needs: its parameters without a default that nothing else fills."""
    return [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in (*PASSED, *options)
    ]


def check_signature(name: str, function: RewardFunction) -> None:
    """Raise ValueError unless the function takes **kwargs: as in TRL, it receives every column of the dataset."""
    parameters = inspect.signature(function).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        raise ValueError(
            f"reward {name!r} has no **kwargs, but reward functions receive prompts, completions, completion_ids and "
            "every column of the dataset. Add **kwargs to its parameters."
        )


def check_options(spec: str, function: RewardFunction, options: Mapping[str, Any]) -> None:
    """Raise ValueError for a built-in's unknown option, which its **kwargs would swallow, or an invalid choice."""
    if spec not in BUILTINS:
        return
    known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    types = get_type_hints(function)
    for option, value in options.items():
        if option not in known:
            has = f"Options: {', '.join(known)}." if known else "It has no options."
            raise ValueError(f"reward {spec!r} has no option {option!r}.{nearest(option, known)} {has}")
        choices = get_args(types[option]) if get_origin(types[option]) is Literal else ()
        if choices and value not in choices:
            raise ValueError(
                f"reward {spec!r}: {option}={value!r} is not one of {', '.join(choices)}.{nearest(str(value), choices)}"
            )


def _is_factory(function: RewardFunction) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return not any(p.kind is p.VAR_KEYWORD or p.name in PASSED for p in parameters)
