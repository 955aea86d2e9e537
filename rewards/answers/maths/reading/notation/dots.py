r"""Sums and products with dots: 1 + 2 + \cdots + n, (v - a_1)(v - a_2) \cdots (v - a_n).

The terms before the dots must differ only in numbers, or numeric subscripts, in arithmetic or geometric progression;
the terms after the dots give the last index. Not supported: alternating signs, dots at the end, a single term in front.
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

from rewards.answers.maths.nodes import INDEX, Num, Op, Scalar, Sym, Unreadable, operations

DOTS = {"ldots", "cdots", "dots", "dotsb", "dotsc"}
_ONE = Num(Fraction(1))
_INDEX = Sym(INDEX)


def series(name: str, before: Sequence[Scalar], after: Sequence[Scalar]) -> Scalar:
    """Op(name, (term, last index, …)), the index from 1, the last one from each term. name: "sum of", "product of"."""
    if len(before) < 2 or not after:
        raise Unreadable("dots after less than two terms")
    try:
        return _series(name, before, after)
    except Unreadable:
        if name == "sum of" or len(before) < 3 or isinstance(before[0], Num):
            raise
    return Op("mul", (before[0], _series(name, before[1:], after)))  # v (1 - a_1)(1 - a_2) …


def _series(name: str, before: Sequence[Scalar], after: Sequence[Scalar]) -> Scalar:
    aligned = _aligned([*before, *after])
    ends: list[Scalar] = []
    term = _general(aligned[: len(before)], aligned[len(before) :], ends)
    if not ends or operations(term) & {"sum of", "product of", "pm", "mp"}:
        raise Unreadable("dots without a pattern")
    return Op(name, (term, *ends))


def _general(first: list[Scalar], last: list[Scalar], ends: list[Scalar]) -> Scalar:
    """The term as a function of the index; adds to `ends` what the last terms say the last index is."""
    every = [*first, *last]
    if all(node == every[0] for node in every):
        return every[0]
    every = _aligned(every)
    first, last = every[: len(first)], every[len(first) :]
    if all(isinstance(node, Num) for node in first):
        return _progression([node.value for node in first if isinstance(node, Num)], last, ends)
    one = first[0]
    if all(isinstance(node, Sym) for node in every):
        return _subscripted([node.name for node in every if isinstance(node, Sym)], len(first), ends)
    if not isinstance(one, Op) or any(
        not isinstance(node, Op) or node.name != one.name or len(node.args) != len(one.args) for node in every
    ):
        raise Unreadable("dots without a pattern")
    columns = list(zip(*(node.args for node in every if isinstance(node, Op)), strict=True))
    below = [_general(list(column[: len(first)]), list(column[len(first) :]), ends) for column in columns]  # type: ignore[arg-type]
    return Op(one.name, tuple(below))


def _progression(values: list[Fraction], last: list[Scalar], ends: list[Scalar]) -> Scalar:
    step = values[1] - values[0]
    arithmetic = step != 0 and all(b - a == step for a, b in pairwise(values))
    if arithmetic and not _is_geometric(values, last):
        start = Num(values[0] - step)
        _add_ends([Op("div", (Op("add", (end, Op("neg", (start,)))), Num(step))) for end in last], ends)
        return Op("add", (start, Op("mul", (Num(step), _INDEX))))
    if _is_geometric(values, last):
        quotient = Num(values[1] / values[0])
        exponents = [Op("div", (Op("ln", (Op("div", (end, Num(values[0]))),)), Op("ln", (quotient,)))) for end in last]
        _add_ends([Op("nearest", (Op("add", (exponent, _ONE)),)) for exponent in exponents], ends)
        return Op("mul", (Num(values[0]), Op("pow", (quotient, Op("add", (_INDEX, Op("neg", (_ONE,))))))))
    raise Unreadable("dots without a pattern")


def _is_geometric(values: list[Fraction], last: list[Scalar]) -> bool:
    """1 + 2 + 4 + …; with two terms, only if the last term is a power: 1 + 2 + … + 2^n."""
    if any(value <= 0 for value in values) or values[0] == values[1]:
        return False
    quotient = values[1] / values[0]
    constant = all(b == quotient * a for a, b in pairwise(values))
    return constant and (len(values) > 2 or "pow" in operations(last[-1]))


def _subscripted(names: list[str], count: int, ends: list[Scalar]) -> Scalar:
    """a_1, a_2, …, a_n."""
    parts = [name.partition("_") for name in names]
    if len({letter for letter, _, _ in parts}) > 1 or any(
        below != str(i + 1) for i, (_, _, below) in enumerate(parts[:count])
    ):
        raise Unreadable("dots without a pattern")
    said = [below for _, _, below in parts[count:]]
    if not all(below.isdigit() or (len(below) == 1 and below.isalpha()) for below in said):
        raise Unreadable("dots without a pattern")
    _add_ends([Num(Fraction(below)) if below.isdigit() else Sym(below) for below in said], ends)
    return Sym(f"{parts[0][0]}_{INDEX}")


def _add_ends(last: Sequence[Scalar], ends: list[Scalar]) -> None:
    """The last index, as each of the terms after the dots gives it."""
    for place, end in enumerate(reversed(last)):
        ends.append(Op("add", (end, Num(Fraction(place)))) if place else end)


def _aligned(nodes: list[Scalar]) -> list[Scalar]:
    """1, x, x^2 as x^0, x^1, x^2; 1, 1/2 as 1/1, 1/2; x, 2x as 1x, 2x."""
    for name in ("pow", "div", "mul"):
        found = next((node for node in nodes if isinstance(node, Op) and node.name == name), None)
        if found is None or all(isinstance(node, Op) and node.name == name for node in nodes):
            continue
        base, last = found.args[0], found.args[-1]
        if name == "pow" and not isinstance(base, Num):
            powers = [_as_power(node, base) for node in nodes]
            if None not in powers:
                return [power for power in powers if power is not None]
        if name == "div" and all(
            isinstance(node, Num) or (isinstance(node, Op) and node.name == "div") for node in nodes
        ):
            return [Op("div", (node, _ONE)) if isinstance(node, Num) else node for node in nodes]
        if name == "mul" and all(node == last or (isinstance(node, Op) and node.name == "mul") for node in nodes):
            return [Op("mul", (_ONE, node)) if node == last else node for node in nodes]
    return nodes


def _as_power(node: Scalar, base: object) -> Scalar | None:
    if isinstance(node, Op) and node.name == "pow" and node.args[0] == base:
        return node
    if node == base and isinstance(node, Scalar):
        return Op("pow", (node, _ONE))
    return Op("pow", (base, Num(Fraction(0)))) if node == _ONE else None  # type: ignore[arg-type]
