"""Find the reward function that a recipe names."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from rollout.support.kinds import misfit
from rollout.support.loading import load_object
from rollout.support.names import nearest

RewardFunction = Callable[..., Any]  # f(prompts, completions, completion_ids=…, **columns) -> list[float | None]
# Arguments of every call besides the columns and options.
PASSED = ("prompts", "completions", "completion_ids", "trainer_state", "log_metric", "log_extra")
# Passed only to functions that name them. all_columns: every column, including those with an option's name.
# completion_prefix: text of the prompt that already belongs to the answer, such as "<think>\n".
ON_REQUEST = ("all_columns", "completion_prefix")

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
            f"reward {spec!r} takes neither completions nor **kwargs. A reward is f(prompts, completions, **kwargs) "
            "and returns one number per completion: change its parameters. If it is meant to build such a function "
            f"from its options, correct these: options={dict(options)} do not fit ({error})."
        ) from error
    made = function(**options)
    check_signature(spec, made)
    return made, {}


def checked_by(check: Callable[..., str | None]) -> Callable[[RewardFunction], RewardFunction]:
    """Decorator for a reward function: `check(columns)` returns why a problem's answers cannot be graded, or None.

    With a second parameter it also receives the reward's options: `check(columns, options)`. Every row of a dataset is
    checked before training. Equivalent to setting the attribute `function.check_columns`.
    """

    def mark(function: RewardFunction) -> RewardFunction:
        vars(function)["check_columns"] = check
        return function

    return mark


def returns_spans(function: RewardFunction) -> RewardFunction:
    """Decorator for a reward function that rewards spans of a completion: it may return lists of (start, end, value).

    A run whose algorithm cannot take them is refused at start. Equivalent to `function.returns_spans = True`.
    """
    vars(function)["returns_spans"] = True
    return function


def declares_spans(function: RewardFunction) -> bool:
    """Whether the function is marked by `returns_spans`."""
    return getattr(function, "returns_spans", False)


def run_check(function: RewardFunction, columns: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    """Why the function cannot grade a problem with these columns; None if it can or has no check."""
    check = getattr(function, "check_columns", None)
    if check is None:
        return None
    return check(columns, options) if len(inspect.signature(check).parameters) > 1 else check(columns)


def required_columns(function: RewardFunction, options: Mapping[str, Any]) -> list[str]:
    """The columns a reward function needs: its parameters without a default that nothing else fills."""
    return [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in (*PASSED, *ON_REQUEST, *options)
    ]


def option_names(function: RewardFunction, options: Mapping[str, Any]) -> frozenset[str]:
    """Parameters that no column fills: keyword-only ones with a default or a value in `options`."""
    return frozenset(
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
        and (parameter.default is not parameter.empty or parameter.name in options)
        and parameter.name not in (*PASSED, *ON_REQUEST)
    )


def arguments_of(
    function: RewardFunction, options: Mapping[str, Any], columns: Mapping[str, Any], passed: Mapping[str, Any]
) -> dict[str, Any]:
    """The keyword arguments of a call: options from the recipe, columns from the dataset, never one for the other.

    Args:
        columns: by name, a value per completion.
        passed: values for names in PASSED and ON_REQUEST.
    """
    hidden = option_names(function, options)
    named = inspect.signature(function).parameters
    return {
        **{name: values for name, values in columns.items() if name not in hidden},
        **options,
        **{name: value for name, value in passed.items() if name not in ON_REQUEST or name in named},
    }


def check_signature(name: str, function: RewardFunction) -> None:
    """Raise ValueError unless the function takes **kwargs: as in TRL, it receives every column of the dataset."""
    parameters = inspect.signature(function).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        raise ValueError(
            f"reward {name!r} has no **kwargs, but reward functions receive prompts, completions, completion_ids and "
            "every column of the dataset. Add **kwargs to its parameters."
        )


def check_options(spec: str, function: RewardFunction, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that the function cannot take as meant; its **kwargs would swallow it.

    That is one with the name of what the trainer passes itself, and a built-in's unknown or missing one or one of
    another type. Other functions may read any option from their **kwargs, so only one that nearly has a parameter's
    name is refused.
    """
    if reserved := [option for option in options if option in (*PASSED, *ON_REQUEST)]:
        raise ValueError(
            f"reward {spec!r}: the option {reserved[0]!r} has the name of an argument of every call. Rename it."
        )
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in (*PASSED, *ON_REQUEST)]
    if spec not in (*BUILTINS, *BUILTINS.values()):
        named = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        for option in options:
            if option not in named and (meant := nearest(option, named)):
                raise ValueError(f"reward {spec!r} has no option {option!r}.{meant} Correct or rename it.")
        return
    # A column with a default value, such as target_language="en", may be set once for all rows.
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY or not (p.default is p.empty or p.default is None)]
    needed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if missing := [name for name in needed if name not in options]:
        raise ValueError(
            f"reward {spec!r} needs the option {missing[0]!r}. Set it in the recipe: options: {{{missing[0]}: …}}."
        )
    types = get_type_hints(function)
    for option, value in options.items():
        if option not in known:
            has = f"Options: {', '.join(known)}." if known else "It has no options."
            raise ValueError(f"reward {spec!r} has no option {option!r}.{nearest(option, known)} {has}")
        if rule := misfit(value, types.get(option, Any)):
            raise ValueError(f"reward {spec!r}: {option}={value!r} {rule}")


def _is_factory(function: RewardFunction) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return not any(p.kind is p.VAR_KEYWORD or p.name in PASSED for p in parameters)
