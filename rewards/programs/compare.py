"""Whether a submission's value or output matches the expected one. Both sides are plain built-in values."""

import math
import re
from decimal import Decimal
from typing import Any

_INTEGER = re.compile(r"[+-]?[0-9]+")
_INTEGER_KEY = re.compile(r"0|-?[1-9][0-9]{0,999}")
_CONTAINERS = (list, tuple)


def same_value(got: Any, wanted: Any, tolerance: float | None = None) -> bool:
    """Equality with exact types: True is not 1, 1 is not 1.0, NaN equals nothing. A tuple may replace a list.

    An integer key matches its text in `wanted`: JSON, in which datasets store expected values, has text keys only.

    tolerance: numbers (not bools) may differ by it, absolutely or relative to `wanted`; two integers must be equal.
    """
    if tolerance is not None and _is_number(got) and _is_number(wanted):
        return _close(got, wanted, tolerance)
    if type(got) in _CONTAINERS and type(wanted) in _CONTAINERS:
        pairs = zip(got, wanted, strict=False)
        return len(got) == len(wanted) and all(same_value(a, b, tolerance) for a, b in pairs)
    if type(got) is not type(wanted):
        return False
    if type(got) is dict:
        # True == 1 as a key, so compare the types of keys, too.
        keys = {(int, int(key)): key for key in wanted if type(key) is str and _INTEGER_KEY.fullmatch(key)}
        keys |= {(type(key), key): key for key in wanted}
        places = [keys[type(key), key] for key in got if (type(key), key) in keys]
        return len(got) == len(wanted) == len(set(places)) and all(
            same_value(value, wanted[key], tolerance) for key, value in zip(places, got.values(), strict=True)
        )
    if type(got) in (set, frozenset):
        return {(type(item), item) for item in got} == {(type(item), item) for item in wanted}
    return got == wanted


def same_output(got: str, wanted: str, tolerance: float | None = None) -> bool:
    """The same words on the same number of lines; the amount of white space and empty lines at both ends do not matter.

    tolerance: words that are numbers on both sides may differ by it, absolutely or relatively; integers must match as
        written (011 may be text). With 0, numbers are compared by exact value: 2 equals 2.0.
    """
    ours, theirs = _lines(got), _lines(wanted)
    return len(ours) == len(theirs) and all(
        len(a) == len(b) and all(map(lambda x, y: _same_word(x, y, tolerance), a, b))
        for a, b in zip(ours, theirs, strict=True)
    )


def _lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().split("\n")]


def _same_word(got: str, wanted: str, tolerance: float | None) -> bool:
    if got == wanted:
        return not tolerance or wanted.lower().lstrip("+-") != "nan"
    if tolerance is None or (tolerance and _INTEGER.fullmatch(got) and _INTEGER.fullmatch(wanted)):
        return False
    try:
        a, b = Decimal(got), Decimal(wanted)  # as a float, a long number would be infinite
        near = tolerance and b.is_finite() and abs(a - b) <= Decimal(tolerance) * max(1, abs(b))
        return bool(near) or a == b
    except ArithmeticError:  # not a number, NaN, or out of range
        return False


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _close(got: float, wanted: float, tolerance: float) -> bool:
    if got == wanted or tolerance == 0 or (type(got) is int and type(wanted) is int):
        return got == wanted
    try:
        return math.isfinite(got) and math.isfinite(wanted) and abs(got - wanted) <= tolerance * max(1.0, abs(wanted))
    except OverflowError:  # an integer too large for a float
        return False
