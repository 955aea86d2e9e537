"""Does a recipe's value fit where a function declares a type?

Left out: TypedDict, dataclasses and whatever else YAML cannot write; they take any value.
"""

from collections.abc import Collection, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from rollout.support.names import nearest

_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    NoneType: "null",
    None: "null",
}


def misfit(value: Any, kind: Any) -> str | None:
    """The rule that a value breaks, `must be an integer.`, with what was probably meant; None if it fits the type.

    As in the rest of a recipe, "5" and true are no numbers, and "no" is text.
    """
    if _fits(value, kind):
        return None
    choices = [choice for choice in _choices(kind) if isinstance(choice, str)]
    return f"must be {_described(kind)}.{nearest(str(value), choices) or _remedy(value, kind)}"


def _fits(value: Any, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if kind in _NAMES:
        number = kind in (int, float) and not isinstance(value, bool)
        wanted = {None: NoneType, float: (int, float)}.get(kind, kind)
        return isinstance(value, wanted) and (number or kind not in (int, float))
    container = origin or kind
    if not isinstance(container, type) or container in (object, Any):
        return True
    if issubclass(container, Mapping):
        of_keys, of_values = arguments or (Any, Any)
        return isinstance(value, Mapping) and all(_fits(k, of_keys) and _fits(v, of_values) for k, v in value.items())
    if issubclass(container, Collection):  # a list in YAML, whatever it is here
        is_list = isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)
        return is_list and (len(arguments) != 1 or all(_fits(item, arguments[0]) for item in value))
    return True


def _choices(kind: Any) -> list[Any]:
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [choice for one in get_args(kind) for choice in _choices(one)]


def _described(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_described, arguments))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if kind in _NAMES:
        return _NAMES[kind]
    return "a mapping" if issubclass(origin or kind, Mapping) else "a list"


def _remedy(value: Any, kind: Any) -> str:
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if isinstance(value, str) and (int in members or float in members):
        return " Write it without quotes."
    if isinstance(value, str) and bool in members:
        return " YAML 1.2 reads yes, no, on and off as text."
    return ""
