"""From the string in a recipe to a reward function."""

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

RewardFunction = Callable[..., Any]  # f(prompts, completions, completion_ids=…, **columns) -> list[float | None]
PASSED = ("prompts", "completions", "completion_ids", "trainer_state", "log_metric", "log_extra")  # beside the columns

# The name a recipe uses -> where the function is. A new built-in is one small file and one line here.
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

    A relative path starts at base_dir (default: the working directory). ValueError when there is no such function, or
    when it cannot take the columns of a dataset. It may be a factory, which `bind` makes a reward function of.
    """
    location = locate(spec, base_dir)
    where, _, attribute = location.rpartition(":")
    module = _load_file(Path(where)) if where.endswith(".py") else _load_module(where)
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [name for name, value in vars(module).items() if callable(value)]
        raise ValueError(f"reward {spec!r}: {where} has no function {attribute!r}.{_nearest(attribute, known)}")
    if not _is_factory(function):
        check_signature(spec, function)
    return function


def bind(spec: str, function: RewardFunction, options: Mapping[str, Any]) -> tuple[RewardFunction, dict[str, Any]]:
    """The reward function that `spec` stands for, and the options that go with each of its calls.

    A function that takes neither completions nor **kwargs makes the reward from the options, once, as
    trl.rewards:get_soft_overlong_punishment does.
    """
    if not _is_factory(function):
        check_options(spec, function, options)
        return function, dict(options)
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:
        raise ValueError(
            f"reward {spec!r} has no **kwargs and takes no completions, so it is one that makes a reward function from "
            f"its options, and options={dict(options)} do not fit: {error}. Correct the options, or add **kwargs."
        ) from error
    made = function(**options)
    check_signature(spec, made)
    return made, {}


def checked_by(check: Callable[[Mapping[str, Any]], str | None]) -> Callable[[RewardFunction], RewardFunction]:
    """Decorator of a reward function: `check(columns)` says of one problem why no answer to it can be judged.

    It gets the row's columns and the reward's options, and returns None where all is well. A dataset's rows are checked
    before training. The same as setting the attribute `function.check_columns`.
    """

    def mark(function: RewardFunction) -> RewardFunction:
        vars(function)["check_columns"] = check
        return function

    return mark


def required_columns(function: RewardFunction, options: Mapping[str, Any]) -> list[str]:
    """The columns without which a reward function cannot be called: its parameters that nothing else fills."""
    return [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in (*PASSED, *options)
    ]


def locate(spec: str, base_dir: Path | None = None) -> str:
    """`package.module:function` or `/absolute/file.py:function` for any spec, so that another process finds it too."""
    where, colon, attribute = spec.rpartition(":")
    if not colon:
        if spec not in BUILTINS:
            raise ValueError(
                f"no built-in reward is called {spec!r}.{_nearest(spec, BUILTINS)} Built in: {', '.join(BUILTINS)}. "
                "Your own: package.module:function or path/to/file.py:function."
            )
        return BUILTINS[spec]
    if where.endswith(".py"):
        return f"{(base_dir or Path.cwd()) / Path(where).expanduser()}:{attribute}"
    return spec


def check_signature(name: str, function: RewardFunction) -> None:
    """ValueError unless the function takes **kwargs: it is called with every column of the dataset, as in TRL."""
    parameters = inspect.signature(function).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        raise ValueError(
            f"reward {name!r} has no **kwargs, but reward functions receive prompts, completions, completion_ids and "
            "every column of the dataset. Add **kwargs to its parameters."
        )


def check_options(spec: str, function: RewardFunction, options: Mapping[str, Any]) -> None:
    """ValueError for an option that a built-in does not know, which its **kwargs would swallow, or for its value."""
    if spec not in BUILTINS:
        return
    known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    types = get_type_hints(function)
    for option, value in options.items():
        if option not in known:
            has = f"Options: {', '.join(known)}." if known else "It has no options."
            raise ValueError(f"reward {spec!r} has no option {option!r}.{_nearest(option, known)} {has}")
        choices = get_args(types[option]) if get_origin(types[option]) is Literal else ()
        if choices and value not in choices:
            raise ValueError(
                f"reward {spec!r}: {option}={value!r} is none of {', '.join(choices)}.{_nearest(str(value), choices)}"
            )


def _is_factory(function: RewardFunction) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return not any(p.kind is p.VAR_KEYWORD or p.name in PASSED for p in parameters)


def _load_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there; one that it imports is not
        raise ValueError(
            f"reward module {name!r} cannot be imported: {error}. Install it, or give a path/to/file.py:function."
        ) from error


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"reward file {path} does not exist. Correct the path in the recipe.")
    name = f"_reward_file_{path.stem}_{abs(hash(path)):x}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # before it runs, as the import system does: dataclasses look themselves up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
