"""Values of scalar expressions, exact if rational, and whether two expressions are the same function.

Rational arithmetic is exact. Everything else is computed twice, with p and with 2p digits: a difference of zero shrinks
with the precision, any other stays. Letters get random rational values; two different analytic functions agree at such
a point with probability zero. Every operation checks the size of its operands first.
"""

import random
from fractions import Fraction
from functools import lru_cache
from typing import Any

from rewards.answers.maths.comparing.arithmetic import (
    EXACT,
    FLOATING,
    MAX_BITS,
    MAX_EXPONENT,
    TooLarge,
    Undefined,
    Value,
)
from rewards.answers.maths.nodes import INDEX, Node, Num, Op, Sym, Unreadable, children, operations, rebuilt, symbols
from rewards.runner.child import uncounted

SERIES = {"sum of": "add", "product of": "mul"}  # with dots; the operation between their terms
_MAX_TERMS = 1000
_DIGITS = 50
_MAX_DIGITS = 4000  # maximum precision
_POINTS = 6  # number of points at which two analytic functions must agree
_LEAST = 3  # enough points, if the others are outside the domain
_CORNERED = {"abs", "floor", "ceil", "max", "min"}
_COUNTERS = set("nmkNMKij")  # letters taken as whole numbers inside floors and the like


def same(left: Node, right: Node) -> bool:
    """Whether two scalar expressions are equal for all values of their letters."""
    if left == right:
        return True
    letters = sorted(symbols(left) | symbols(right))
    real = not {"i"} & (operations(left) | operations(right))
    if not letters:
        return _same_at(left, right, {}, real=False)
    cornered = _is_cornered(left) or _is_cornered(right)
    agreed = 0
    for point in _points(letters, left, right):
        try:
            if not _same_at(left, right, point, real=real):
                return False
        except Undefined:
            continue
        agreed += 1
        if agreed == _POINTS and not cornered:
            return True
    return agreed >= _LEAST


def ratio(left: Node, right: Node) -> int:
    """Sign of left/right if that is the same nonzero constant everywhere, else 0."""
    letters = sorted(symbols(left) | symbols(right))
    cornered = _is_cornered(left) or _is_cornered(right)
    found: Value = None
    agreed = 0
    for point in _points(letters, left, right):
        try:
            a, b = _Evaluator(point, _DIGITS, real=True), _Evaluator(point, _DIGITS, real=True)
            quotient = _divide(a(left), b(right), a)
        except Undefined:
            continue
        if found is None:
            found = quotient
        elif not _near(quotient, found):
            return 0
        agreed += 1
        if agreed == _POINTS and not cornered:
            break
    if agreed < _LEAST or found is None or found == 0:
        return 0
    return 1 if found > 0 else -1


def exact(node: Node) -> Fraction | None:
    """The rational value of an expression without letters; None if it has none."""
    try:
        value = _Evaluator({}, _DIGITS, real=False)(node)
    except (Undefined, KeyError):
        return None
    return value if isinstance(value, Fraction) else None


def approximate(node: Node) -> Value:
    """The real value of an expression without letters, to 50 digits."""
    value = _Evaluator({}, _DIGITS, real=True)(node)
    return _mp().mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def order(left: Node, right: Node) -> int:
    """-1, 0 or 1 if left is less than, equal to or greater than right; both real, possibly ±∞."""
    a, b = _infinity(left), _infinity(right)
    if a or b:
        return (a > b) - (a < b)
    if same(left, right):
        return 0
    return -1 if approximate(left) < approximate(right) else 1


def _infinity(node: Node) -> int:
    match node:
        case Op("∞"):
            return 1
        case Op("neg", (Op("∞"),)):
            return -1
        case Op("add", (_, last)):
            return _infinity(last)
    return 0


def _points(letters: list[str], left: Node, right: Node) -> list[dict[str, Fraction]]:
    """Points at which to compare: whole numbers if the expressions require them, else rationals of both signs.

    A few values identify an analytic function. One with corners, such as |x - 7|, may agree with another on one side of
    a corner, so it is compared at many points of all sizes, on both sides of the numbers in it.
    """
    rng = random.Random(repr((letters, left, right)))
    cornered = _is_cornered(left) or _is_cornered(right)
    whole = bool((operations(left) | operations(right)) & {"factorial", "binom", *SERIES}) or _alternates(left, right)
    if whole or (cornered and set(letters) <= _COUNTERS):
        sizes = [25] * 10 + [400] * 30 if cornered else [25] * 30
        return [{letter: Fraction(rng.randint(1, size)) for letter in letters} for size in sizes]
    points = []
    for trial in range(24):
        signs = [[1], [-1], [1], [1, -1]][trial % 4]
        low, high = (200, 4000) if trial % 3 else (20, 980)  # also below 1, where roots and inverse functions are real
        points.append({letter: rng.choice(signs) * Fraction(rng.randint(low, high), 997) for letter in letters})
    if cornered:
        corners = sorted(_numbers(left) | _numbers(right) | {Fraction(0)})
        for trial in range(40):
            size = Fraction(rng.randint(-999, 999), 997) * 10 ** (trial % 5 - 1)
            points.append({letter: rng.choice((1, -1)) * rng.choice(corners) + size for letter in letters})
    return points


def _is_cornered(node: Node) -> bool:
    """Whether it contains |x|, a rounding, a maximum or minimum, or the root of a power."""
    if not isinstance(node, Op):
        return False
    root_of_power = node.name == "root" and "pow" in operations(node.args[0]) and symbols(node.args[0])
    return bool(node.name in _CORNERED or root_of_power) or any(_is_cornered(arg) for arg in node.args)


def _numbers(node: Node) -> set[Fraction]:
    """The literals in it."""
    if isinstance(node, Num):
        return {node.value}
    return set().union(*(_numbers(child) for child in children(node)))


def _alternates(*nodes: Node) -> bool:
    """Whether a negative constant is raised to a power, as in (-1)^n."""
    for node in nodes:
        if not isinstance(node, Op):
            continue
        if node.name == "pow" and isinstance(node.args[0], Op) and node.args[0].name == "neg" and symbols(node.args[1]):
            return True
        if _alternates(*node.args):
            return True
    return False


def _same_at(left: Node, right: Node, point: dict[str, Fraction], *, real: bool) -> bool:
    digits = _DIGITS
    first, a, b = _both(left, right, point, digits, real)
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    if _differ_plainly(a, b, first.magnitude):
        return False
    if (needed := max(first.magnitude, first.gap)) > 100:  # 10^100 + 1 needs a hundred more digits
        digits = min(_DIGITS + int(needed * 0.302), _MAX_DIGITS)
        first, a, b = _both(left, right, point, digits, real)
    scale = _mp().mpf(2) ** first.magnitude
    difference = abs(_float(a) - _float(b))
    if difference > scale * _mp().mpf(10) ** (12 - digits):
        return False
    _, a, b = _both(left, right, point, 2 * digits, real)
    with _mp().workdps(2 * digits):
        finer = abs(_float(a) - _float(b))
        shrinks = difference == 0 or finer <= difference / 10**10
        return bool(shrinks and finer <= scale * _mp().mpf(10) ** (12 - 2 * digits))


def _differ_plainly(a: Value, b: Value, magnitude: int) -> bool:
    """Whether the leading digits differ and nothing much larger than the values cancelled on the way."""
    a, b = _float(a), _float(b)
    larger = max(abs(a), abs(b))
    return bool(larger and magnitude - _mp().mag(larger) < 60 and abs(a - b) > larger / 10**20)


def _both(
    left: Node, right: Node, point: dict[str, Fraction], digits: int, real: bool
) -> "tuple[_Evaluator, Value, Value]":
    evaluate = _Evaluator(point, digits, real=real)
    return evaluate, evaluate(left), evaluate(right)


def _near(a: Value, b: Value) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    a, b = _float(a), _float(b)
    return abs(a - b) <= abs(b) * _mp().mpf(10) ** (-_DIGITS // 2)


@lru_cache(maxsize=1)
def _mp() -> Any:
    with uncounted():
        from mpmath import mp  # takes 0.1 s, only needed once an answer is not a plain number
    mp.dps = _DIGITS
    return mp


def _float(value: Value) -> Value:
    return _mp().mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _divide(a: Value, b: Value, evaluator: "_Evaluator") -> Value:
    return evaluator.apply("div", [a, b])


def _at_index(term: Node, index: int) -> Node:
    """The term with a_3 for a_#."""
    if isinstance(term, Sym) and term.name != INDEX:
        return Sym(term.name.replace(INDEX, str(index)))
    below = children(term)
    return rebuilt(term, tuple(_at_index(child, index) for child in below)) if below else term


class _Evaluator:
    """Computes nodes at one point and precision; `magnitude` is the largest binary exponent that occurred."""

    def __init__(self, point: dict[str, Fraction], digits: int, *, real: bool) -> None:
        self._point, self._digits, self._real = point, digits, real
        self.magnitude = 1
        self.terms = 0  # of sums and products with dots
        self.gap = 0  # the largest ratio of two terms, as a binary exponent: 1 - e^{-200} needs its digits

    def __call__(self, node: Node) -> Value:
        with _mp().workdps(self._digits):
            try:
                return self._value(node)
            except (ZeroDivisionError, OverflowError, ValueError) as error:  # how mpmath reports a pole
                if isinstance(error, Unreadable):
                    raise
                raise Undefined("undefined: a division by zero or the like") from error

    def apply(self, name: str, values: list[Value]) -> Value:
        with _mp().workdps(self._digits):
            return self._apply(name, values)

    def _value(self, node: Node) -> Value:
        if isinstance(node, Num):
            return self._checked(node.value)
        if isinstance(node, Sym):
            if node.name not in self._point and INDEX in self._point:  # a_3 of a_1 + … + a_n
                return Fraction(random.Random(node.name).randint(20, 4000), 997)
            if node.name not in self._point:
                raise Undefined("undefined: a division by zero, or no real value")
            return self._point[node.name]
        if not isinstance(node, Op):
            raise Unreadable(f"{type(node).__name__.lower()} inside an expression")
        if node.name in SERIES:
            return self._series(node)
        if node.name in ("sin", "cos", "tan", "cot", "sec", "csc"):
            return self._checked(self._apply(node.name, [self._angle(node.args[0])]))
        values = [self._value(arg) for arg in node.args]
        if node.name == "add" and all(values) and not all(isinstance(value, Fraction) for value in values):
            left, right = (_mp().mag(_float(value)) for value in values)
            self.gap = max(self.gap, int(abs(left - right)))
        return self._checked(self._apply(node.name, values))

    def _series(self, node: Op) -> Value:
        """A sum or product with dots, term by term."""
        term, *ends = node.args
        last, *others = (self._value(end) for end in ends)
        if any(other != last for other in others):
            raise Unreadable("dots without a pattern")
        if not isinstance(last, Fraction) or last.denominator != 1 or last < 1:
            raise Undefined("undefined: no whole number of terms")
        self.terms += int(last) if last <= _MAX_TERMS else _MAX_TERMS + 1
        if self.terms > _MAX_TERMS:
            raise TooLarge(f"more than {_MAX_TERMS} terms")
        total: Value = None
        for index in range(1, int(last) + 1):
            at = _Evaluator({**self._point, INDEX: Fraction(index)}, self._digits, real=self._real)
            value = at._value(_at_index(term, index))
            self.magnitude, self.gap = max(self.magnitude, at.magnitude), max(self.gap, at.gap)
            total = value if total is None else self._checked(self._apply(SERIES[node.name], [total, value]))
        return total

    def _angle(self, node: Node) -> Value:
        return (
            self._value(Op("degree", (node.args[0],)))
            if isinstance(node, Op) and node.name == "degree"
            else self._value(node)
        )

    def _apply(self, name: str, values: list[Value]) -> Value:
        exactly = EXACT.get(name)
        if exactly and all(isinstance(value, Fraction) for value in values):
            result = exactly(*values)
            if result is not None:
                return result
        function = FLOATING.get(name)
        if function is None:
            raise Unreadable(f"unsupported operation {name}")
        return function(_mp(), *(_float(value) for value in values))

    def _checked(self, value: Value) -> Value:
        if isinstance(value, Fraction):
            bits = value.numerator.bit_length() - value.denominator.bit_length()
            if abs(bits) > MAX_BITS:
                raise TooLarge("a number too large to compute")
        else:
            mp = _mp()
            if self._real and isinstance(value, mp.mpc):
                if value.imag != 0:
                    raise Undefined("undefined: a division by zero, or no real value")
                value = value.real
            if not mp.isfinite(value):
                raise Undefined("undefined: a division by zero, or no real value")
            bits = mp.mag(value) if value else 0
            if abs(bits) > MAX_EXPONENT:
                raise TooLarge("a number too large to compute")
        self.magnitude = max(self.magnitude, int(bits))
        return value
