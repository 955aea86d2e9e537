"""Values as text between processes that do not trust each other: JSON plus tags for the plain types it lacks.

    dumps((1, {2: b"x"})) == '{"t":"tuple","v":[1,{"t":"dict","v":[[2,{"t":"bytes","v":"78"}]]}]}'

`loads` builds exact built-in types and nothing else (no subclass, no pickle), so comparing them never runs the sender's
code. Objects of `classes` defined on both sides, such as linked lists, are sent as their fields and rebuilt as the
receiver's class. They are numbered in one flat list, so long, shared and circular structures work:

    dumps(ListNode(1, ListNode(2)), classes={"ListNode": ListNode}) == '{"t":"objects","v":[{"t":"object","v":0},
        [["ListNode",{"val":1,"next":{"t":"object","v":1}}],["ListNode",{"val":2,"next":null}]]]}'

This file also runs inside the sandbox, where the standard library is all there is.
"""

import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_DEPTH = 200
Classes = Mapping[str, type]
MAX_KEYS = 10_000  # of a set or dict, strings aside: whoever picks the numbers can make them collide
_TYPES = {kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)}
_LONG = 10**4000  # Python parses at most 4300 decimal digits; longer integers are sent in base 16


class NotPlainError(TypeError):
    """A value that is not plain data, or a text that does not encode one."""


def dumps(value: Any, handle: Callable[[Any], int] | None = None, classes: Classes | None = None) -> str:
    """The value as one line of ASCII. `handle` numbers objects that are not plain; without it, NotPlainError is raised.

    Instances of subclasses are sent as the plain type they extend.
    """
    objects: list[Any] = []
    places: dict[int, int] = {}  # by id

    def other(item: Any) -> dict[str, Any]:
        kind = type(item)
        if classes is not None and classes.get(kind.__name__) is kind and hasattr(item, "__dict__"):
            if id(item) not in places:
                places[id(item)] = len(objects)
                objects.append(item)
            return {"t": "object", "v": places[id(item)]}
        if handle is None:
            raise NotPlainError(f"{kind.__name__} is not a plain value")
        return {"t": "ref", "v": handle(item)}

    data = _encode(value, other, 0)
    # The list grows while fields are encoded.
    fields = [[type(item).__name__, {k: _encode(v, other, 0) for k, v in vars(item).items()}] for item in objects]
    return json.dumps({"t": "objects", "v": [data, fields]} if objects else data, separators=(",", ":"))


def loads(text: str | bytes, remote: Callable[[int], Any] | None = None, classes: Classes | None = None) -> Any:
    """The inverse of `dumps`. `remote` makes the local stand-in for one of the other side's numbered objects."""
    try:
        data = json.loads(text)
        if not isinstance(data, dict) or data["t"] != "objects":
            return _decode(data, remote, [])
        data, fields = data["v"]
        objects = [object.__new__((classes or {})[name]) for name, _ in fields]
        for made, (_, values) in zip(objects, fields, strict=True):
            for name, value in values.items():
                if callable(getattr(type(made), name, None)):
                    raise NotPlainError(f"the field {name[:40]!r} shadows a method")
                vars(made)[name] = _decode(value, remote, objects)
        return _decode(data, remote, objects)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise NotPlainError(f"not a plain value: {error}") from None


def _encode(value: Any, other: Callable[[Any], dict[str, Any]], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise NotPlainError(f"nested deeper than {MAX_DEPTH}")
    if value is None or value is True or value is False:
        return value

    def encoded(items: Any) -> list[Any]:
        return [_encode(item, other, depth + 1) for item in items]

    match value:
        case str():
            return str.__str__(value)
        case int():
            number = int.__index__(value)
            return number if -_LONG < number < _LONG else {"t": "int", "v": hex(number)}
        case float():
            number = float.__float__(value)
            return number if number - number == 0 else {"t": "float", "v": repr(number)}
        case list():
            return encoded(list.__iter__(value))
        case tuple():
            return {"t": "tuple", "v": encoded(tuple.__iter__(value))}
        case dict():
            return {"t": "dict", "v": [encoded(pair) for pair in dict.items(value)]}
        case set():
            return {"t": "set", "v": encoded(set.__iter__(value))}
        case frozenset():
            return {"t": "frozenset", "v": encoded(frozenset.__iter__(value))}
        case bytes() | bytearray():
            return {"t": "bytes", "v": bytes(value).hex()}
        case complex():
            return {"t": "complex", "v": encoded([value.real, value.imag])}
        case Decimal():
            return {"t": "Decimal", "v": Decimal.__str__(value)}
        case Fraction():
            return {"t": "Fraction", "v": encoded([value.numerator, value.denominator])}
    if isinstance(value, type) and _TYPES.get(value.__name__) is value:
        return {"t": "type", "v": value.__name__}
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return _encode(value.item(), other, depth + 1)  # a NumPy scalar is the number it holds
    return other(value)


def _decode(data: Any, remote: Callable[[int], Any] | None, objects: list[Any]) -> Any:
    if isinstance(data, list):
        return [_decode(item, remote, objects) for item in data]
    if not isinstance(data, dict):
        return data
    value = data["v"]
    match data["t"]:
        case "tuple":
            return tuple(_decode(item, remote, objects) for item in value)
        case "dict":
            _check_keys([key for key, _ in value])
            return {_decode(key, remote, objects): _decode(item, remote, objects) for key, item in value}
        case "set":
            _check_keys(value)
            return {_decode(item, remote, objects) for item in value}
        case "frozenset":
            _check_keys(value)
            return frozenset(_decode(item, remote, objects) for item in value)
        case "int":
            return int(value, 16)
        case "float":
            return float(value)
        case "bytes":
            return bytes.fromhex(value)
        case "complex":
            real, imaginary = (_decode(item, remote, objects) for item in value)
            return complex(real, imaginary)
        case "Decimal":
            return Decimal(value)
        case "type":
            return _TYPES[value]
        case "Fraction":
            numerator, denominator = value
            return Fraction(int(numerator), int(denominator))  # at most 4300 digits: reducing longer fractions is slow
        case "object":
            return objects[value]
        case "ref" if remote is not None:
            return remote(int(value))
    raise NotPlainError(f"unknown type: {str(data['t'])[:40]}")


def _check_keys(keys: list[Any]) -> None:
    if sum(not isinstance(key, str) for key in keys) > MAX_KEYS:
        raise NotPlainError(f"a set or dict with more than {MAX_KEYS} keys that are not strings")
