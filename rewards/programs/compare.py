"""Whether what a submission gave is what was wanted. Both sides are plain built-in values."""

import math
import re
from decimal import Decimal
from typing import Any

_INTEGER = re.compile(r"[+-]?[0-9]+")
_CONTAINERS = (list, tuple)


def same_value(got: Any, wanted: Any, tolerance: float | None = None) -> bool:
    """Equality of exact types: True is not 1, 1 is not 1.0, NaN equals nothing. A tuple may stand for a list.

    tolerance: numbers other than bool are equal up to it, absolutely or relatively to `wanted`; integers exactly.
    """
    if tolerance is not None and _is_number(got) and _is_number(wanted):
        return _close(got, wanted, tolerance)
    if type(got) in _CONTAINERS and type(wanted) in _CONTAINERS:
        pairs = zip(got, wanted, strict=False)
        return len(got) == len(wanted) and all(same_value(a, b, tolerance) for a, b in pairs)
    if type(got) is not type(wanted):
        return False
    if type(got) is dict:
        # True == 1 as a key: compare the keys' types too.
        keys = {(type(key), key): key for key in wanted}
        return len(got) == len(wanted) and all(
            (type(key), key) in keys and same_value(value, wanted[key], tolerance) for key, value in got.items()
        )
    if type(got) in (set, frozenset):
        return {(type(item), item) for item in got} == {(type(item), item) for item in wanted}
    return got == wanted


def same_output(got: str, wanted: str, tolerance: float | None = None) -> bool:
    """Equal words in equally many lines; white space at the ends of lines and empty lines at the end do not count.

    tolerance: words that are numbers on both sides are equal up to it, absolutely or relatively, and integers as they
        are written: 011 may be a text. With 0 all numbers are equal by their exact value, 2 and 2.0.
    """
    ours, theirs = _lines(got), _lines(wanted)
    return len(ours) == len(theirs) and all(
        len(a) == len(b) and all(map(lambda x, y: _same_word(x, y, tolerance), a, b))
        for a, b in zip(ours, theirs, strict=True)
    )


def _lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.rstrip().split("\n")]


def _same_word(got: str, wanted: str, tolerance: float | None) -> bool:
    if got == wanted:
        return not tolerance or wanted.lower().lstrip("+-") != "nan"
    if tolerance is None or (tolerance and _INTEGER.fullmatch(got) and _INTEGER.fullmatch(wanted)):
        return False
    try:
        a, b = Decimal(got), Decimal(wanted)  # a long number is infinite as a float
        near = tolerance and b.is_finite() and abs(a - b) <= Decimal(tolerance) * max(1, abs(b))
        return bool(near) or a == b
    except ArithmeticError:  # no number, NaN, or beyond decimals
        return False


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _close(got: float, wanted: float, tolerance: float) -> bool:
    if got == wanted or tolerance == 0 or (type(got) is int and type(wanted) is int):
        return got == wanted
    try:
        return math.isfinite(got) and math.isfinite(wanted) and abs(got - wanted) <= tolerance * max(1.0, abs(wanted))
    except OverflowError:  # an integer beyond floats
        return False
