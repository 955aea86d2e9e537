"""Values as text between processes that do not trust each other: JSON, and tags for the plain types that JSON lacks.

    dumps((1, {2: b"x"})) == '{"t":"tuple","v":[1,{"t":"dict","v":[[2,{"t":"bytes","v":"78"}]]}]}'

`loads` builds exact built-in types and nothing else (no subclass, no pickle), so that comparing them calls no code of
the sender. This file also runs inside the sandbox, where the standard library is all there is.
"""

import json
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_DEPTH = 200
MAX_KEYS = 10_000  # of a set or dict, words aside: whoever chooses numbers can make them collide
_TYPES = {kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)}
_LONG = 10**4000  # Python reads no longer decimals than 4300 digits; longer integers go in base 16


class NotPlainError(TypeError):
    """A value that is no plain data, or a text that is no such value."""


def dumps(value: Any, handle: Callable[[Any], int] | None = None) -> str:
    """The value as one line of ASCII. `handle` numbers what is not plain; without it, NotPlainError is raised.

    Subclasses go as the plain value they extend: what arrives is data, whatever class it had.
    """
    return json.dumps(_encode(value, handle, 0), separators=(",", ":"))


def loads(text: str | bytes, remote: Callable[[int], Any] | None = None) -> Any:
    """The value of a text made by `dumps`. `remote` makes what stands here for a numbered object of the other side."""
    try:
        return _decode(json.loads(text), remote)
    except (ValueError, RecursionError, KeyError, TypeError, ArithmeticError) as error:
        raise NotPlainError(f"not a plain value: {error}") from None


def _encode(value: Any, handle: Callable[[Any], int] | None, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise NotPlainError(f"nested deeper than {MAX_DEPTH}")
    if value is None or value is True or value is False:
        return value

    def encoded(items: Any) -> list[Any]:
        return [_encode(item, handle, depth + 1) for item in items]

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
        return _encode(value.item(), handle, depth + 1)  # a NumPy scalar is the number it holds
    if handle is None:
        raise NotPlainError(f"{type(value).__name__} is not a plain value")
    return {"t": "ref", "v": handle(value)}


def _decode(data: Any, remote: Callable[[int], Any] | None) -> Any:
    if isinstance(data, list):
        return [_decode(item, remote) for item in data]
    if not isinstance(data, dict):
        return data
    value = data["v"]
    match data["t"]:
        case "tuple":
            return tuple(_decode(item, remote) for item in value)
        case "dict":
            _check_keys([key for key, _ in value])
            return {_decode(key, remote): _decode(item, remote) for key, item in value}
        case "set":
            _check_keys(value)
            return {_decode(item, remote) for item in value}
        case "frozenset":
            _check_keys(value)
            return frozenset(_decode(item, remote) for item in value)
        case "int":
            return int(value, 16)
        case "float":
            return float(value)
        case "bytes":
            return bytes.fromhex(value)
        case "complex":
            real, imaginary = (_decode(item, remote) for item in value)
            return complex(real, imaginary)
        case "Decimal":
            return Decimal(value)
        case "type":
            return _TYPES[value]
        case "Fraction":
            numerator, denominator = value
            return Fraction(int(numerator), int(denominator))  # of at most 4300 digits: reducing longer ones takes long
        case "ref" if remote is not None:
            return remote(int(value))
    raise NotPlainError(f"no such type: {str(data['t'])[:40]}")


def _check_keys(keys: list[Any]) -> None:
    if sum(not isinstance(key, str) for key in keys) > MAX_KEYS:
        raise NotPlainError(f"a set or dict of more than {MAX_KEYS} keys that are no words")
