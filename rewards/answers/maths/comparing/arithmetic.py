"""The operations of scalar expressions, exact on fractions and to the current precision on mpmath numbers.

Each checks the size of its operands first.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from rewards.answers.maths.nodes import Unreadable

Value = Any  # Fraction, mpmath's mpf or mpc

MAX_EXPONENT = 2_000_000  # binary exponent of a floating-point number
MAX_BITS = 40_000  # in an exact number


class TooLarge(Unreadable):
    """The number is too large for these rules."""


class Undefined(Unreadable):
    """No value here: a division by zero, or no real value."""


# -- exact arithmetic: None if the result is irrational or too long to keep exact


def _exact_divide(a: Fraction, b: Fraction) -> Fraction:
    if b == 0:
        raise Undefined("undefined: a division by zero, or no real value")
    return a / b


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        root = _exact_root(base, Fraction(exponent.denominator)) if exponent.denominator < 64 else None
        return None if root is None else _exact_power(root, Fraction(exponent.numerator))
    if base == 0:
        if exponent < 0:
            raise Undefined("undefined: a division by zero, or no real value")
        return Fraction(int(exponent == 0))
    bits = max(abs(base.numerator).bit_length(), base.denominator.bit_length())
    if abs(base) == 1:
        return base if exponent % 2 else Fraction(1)
    return base ** int(exponent) if bits * abs(exponent) <= MAX_BITS else None


def _exact_root(value: Fraction, index: Fraction) -> Fraction | None:
    if index.denominator != 1 or not 2 <= index < 64:
        return None
    n, sign = int(index), 1
    if value < 0:
        if n % 2 == 0:
            return None
        value, sign = -value, -1
    top, bottom = _integer_root(value.numerator, n), _integer_root(value.denominator, n)
    return None if top is None or bottom is None else Fraction(sign * top, bottom)


def _integer_root(value: int, n: int) -> int | None:
    if n == 2:
        root = math.isqrt(value)
        return root if root * root == value else None
    low, high = 0, 1 << (value.bit_length() // n + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**n <= value else (low, middle - 1)
    return low if low**n == value else None


def _exact_factorial(value: Fraction) -> Fraction | None:
    if value.denominator != 1 or value < 0:
        return None
    return Fraction(math.factorial(int(value))) if value <= 3000 else None


def _exact_binomial(n: Fraction, k: Fraction) -> Fraction | None:
    if n.denominator != 1 or k.denominator != 1 or not 0 <= n <= 3000:
        return None
    return Fraction(math.comb(int(n), int(k))) if k >= 0 else Fraction(0)


EXACT: dict[str, Callable[..., Fraction | None]] = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "neg": lambda a: -a,
    "div": _exact_divide,
    "ratio": _exact_divide,
    "pow": _exact_power,
    "root": _exact_root,
    "percent": lambda a: a / 100,
    "radian": lambda a: a,
    "abs": lambda a: abs(a),
    "floor": lambda a: Fraction(math.floor(a)),
    "ceil": lambda a: Fraction(math.ceil(a)),
    "max": lambda *values: max(values),
    "min": lambda *values: min(values),
    "factorial": _exact_factorial,
    "binom": _exact_binomial,
}


# -- floating-point functions of mpmath


def _power(mp: Any, base: Value, exponent: Value) -> Value:
    if base == 0:
        if mp.re(exponent) <= 0:
            raise Undefined("undefined: a division by zero, or no real value")
        return mp.mpf(0)
    if abs(mp.mag(base)) * abs(exponent) > MAX_EXPONENT or abs(exponent) > 10**15:
        raise TooLarge("a power too large to compute")
    if not isinstance(base, mp.mpc) and base < 0 and not isinstance(exponent, mp.mpc):
        odd = _odd_denominator(mp, exponent)
        if odd is not None:  # (-8)^{1/3} is -2, as taught in school
            root = -mp.root(-base, odd[1])
            return root ** odd[0]
    return mp.power(base, exponent)


def _odd_denominator(mp: Any, exponent: Value) -> tuple[int, int] | None:
    """(p, q) if the exponent is p/q with a small odd q > 1."""
    for q in (3, 5, 7, 9):
        p = mp.nint(exponent * q)
        if abs(exponent * q - p) < mp.mpf(10) ** (8 - mp.dps) and p % q and abs(p) < 1000:
            return int(p), q
    return None


def _root(mp: Any, value: Value, index: Value) -> Value:
    if mp.im(index) != 0 or index <= 0 or index > 10**6:
        raise Undefined("undefined: a division by zero, or no real value")
    if index == int(index) and int(index) % 2 and not isinstance(value, mp.mpc) and value < 0:
        return -mp.root(-value, int(index))
    return mp.root(value, int(index)) if index == int(index) else _power(mp, value, 1 / index)


def _exp(mp: Any, value: Value) -> Value:
    if abs(value) > MAX_EXPONENT / 2:
        raise TooLarge("an exponential too large to compute")
    return mp.exp(value)


def _log(mp: Any, value: Value, base: Value | None = None) -> Value:
    if value == 0 or base in (0, 1):
        raise Undefined("undefined: a division by zero, or no real value")
    return mp.log(value) if base is None else mp.log(value) / mp.log(base)


def _gamma(mp: Any, value: Value) -> Value:
    if abs(value) > 10**4:
        raise TooLarge("a factorial too large to compute")
    return mp.gamma(value + 1)


def _binomial(mp: Any, n: Value, k: Value) -> Value:
    if abs(n) > 10**4 or abs(k) > 10**4:
        raise TooLarge("a binomial too large to compute")
    return mp.binomial(n, k)


def _bounded(function: str) -> Callable[..., Value]:
    def call(mp: Any, value: Value) -> Value:
        if abs(value) > 10**12:
            raise TooLarge("an argument too large for a trigonometric function")
        return getattr(mp, function)(value)

    return call


def _whole(mp: Any, value: Value) -> Value:
    """The whole number that a logarithm is, as a fraction."""
    whole = int(mp.nint(mp.re(value))) if abs(value) < 10**6 else -1
    return Fraction(whole) if abs(value - whole) < mp.mpf(10) ** (8 - mp.dps) else value


def _both_signs(*_: Value) -> Value:
    raise Unreadable("± inside an expression")


def _divided(mp: Any, a: Value, b: Value) -> Value:
    if b == 0:
        raise Undefined("undefined: a division by zero, or no real value")
    return a / b


FLOATING: dict[str, Callable[..., Value]] = {
    "add": lambda _, a, b: a + b,
    "mul": lambda _, a, b: a * b,
    "neg": lambda _, a: -a,
    "div": _divided,
    "ratio": _divided,
    "pow": _power,
    "root": _root,
    "percent": lambda _, a: a / 100,
    "radian": lambda _, a: a,
    "degree": lambda mp, a: a * mp.pi / 180,
    "abs": lambda _, a: abs(a),
    "floor": lambda mp, a: mp.floor(a),
    "ceil": lambda mp, a: mp.ceil(a),
    "max": lambda _, *values: max(values),
    "min": lambda _, *values: min(values),
    "factorial": _gamma,
    "binom": _binomial,
    "nearest": _whole,
    "π": lambda mp: +mp.pi,
    "e": lambda mp: +mp.e,
    "i": lambda mp: mp.mpc(0, 1),
    "exp": _exp,
    "ln": _log,
    "log": _log,
    "pm": _both_signs,
    "mp": _both_signs,
    **{name: _bounded(name) for name in ("sin", "cos", "tan", "cot", "sec", "csc")},
    **{name: _bounded(name) for name in ("sinh", "cosh", "tanh", "coth", "sech", "csch")},
    "arcsin": lambda mp, a: mp.asin(a),
    "arccos": lambda mp, a: mp.acos(a),
    "arctan": lambda mp, a: mp.atan(a),
    "arccot": lambda mp, a: mp.acot(a),
    "arcsec": lambda mp, a: mp.asec(a),
    "arccsc": lambda mp, a: mp.acsc(a),
    "arcsinh": lambda mp, a: mp.asinh(a),
    "arccosh": lambda mp, a: mp.acosh(a),
    "arctanh": lambda mp, a: mp.atanh(a),
}  # fmt: skip
