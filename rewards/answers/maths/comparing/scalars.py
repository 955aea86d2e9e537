"""When is one scalar the other? Percent signs, degrees, infinities, rounding, free parameters."""

from fractions import Fraction

from rewards.answers.maths.comparing import value
from rewards.answers.maths.nodes import Node, Num, Op, Scalar, operations, renamed, symbols


def equal_scalars(gold: Scalar, answer: Scalar) -> bool:
    if "∞" in operations(gold) | operations(answer):
        return _infinite(gold) is not None and _infinite(gold) == _infinite(answer)
    if _is(gold, "percent") and _is(answer, "percent"):
        return _same_or_rounds(_inner(gold), _inner(answer), percent=True)
    if _is(gold, "degree") and _is(answer, "degree"):
        return _same_or_rounds(_inner(gold), _inner(answer))
    if _is(gold, "percent"):
        scaled = Op("mul", (answer, Num(Fraction(100))))
        return _same_or_rounds(_inner(gold), scaled, percent=True) or _same_or_rounds(_inner(gold), answer)
    if _is(gold, "degree"):
        degrees = Op("div", (Op("mul", (answer, Num(Fraction(180)))), Op("π")))
        return _same_or_rounds(_inner(gold), answer) or _same_or_rounds(_inner(gold), degrees)
    if _is(answer, "percent") or _is(answer, "degree"):
        return _same_or_rounds(gold, _inner(answer)) or _same_or_rounds(gold, answer)
    return _same_or_rounds(gold, answer)


def _same_or_rounds(gold: Scalar, answer: Scalar, *, percent: bool = False) -> bool:
    answer = _with_parameter_of(gold, answer)
    return value.same(gold, answer) or _rounds_to(gold, answer, percent=percent)


def _with_parameter_of(gold: Scalar, answer: Scalar) -> Scalar:
    """nπ for kπ, and c for C: the answer with its free parameter named as in the gold."""
    mine, theirs = sorted(symbols(gold) - symbols(answer)), sorted(symbols(answer) - symbols(gold))
    if len(mine) != 1 or len(theirs) != 1:
        return answer
    periodic = "π" in operations(gold) and {mine[0], theirs[0]} <= set("klmn")
    constant = {mine[0], theirs[0]} == {"C", "c"}
    if not periodic and not constant:
        return answer
    named = renamed(answer, {theirs[0]: mine[0]})
    assert isinstance(named, Scalar)
    return named


def _rounds_to(gold: Scalar, answer: Scalar, *, percent: bool) -> bool:
    """Whether the gold is a rounded decimal, and the answer a more precise value that rounds to it.

    A gold such as 0.125 may be exact: it is not met by 0.1251, only by an expression that rounds to it.
    """
    literal, written = _decimal(gold), _decimal(answer)
    target = value.exact(gold)
    if literal is None or literal.places is None or target is None or symbols(answer):
        return False
    digits = len(str(abs(int(target * 10**literal.places))))
    if digits < 3 or literal.places < (1 if percent else 2):
        return False
    if written is not None and written.places is not None:
        exact = target.denominator in (1, 2, 4, 8, 16, 32, 64)
        if exact or written.places <= literal.places:
            return False
    try:
        difference = abs(value.approximate(answer) - value.approximate(gold))
    except value.Undefined:
        return False
    return bool(difference * 2 * 10**literal.places <= 1)


def _decimal(node: Scalar) -> Num | None:
    """The decimal literal that it is, whatever its sign."""
    while isinstance(node, Op) and node.name == "neg" and isinstance(node.args[0], Scalar):
        node = node.args[0]
    return node if isinstance(node, Num) and node.places is not None else None


def _is(node: Node, name: str) -> bool:
    return isinstance(node, Op) and (node.name == name or (node.name == "neg" and _is(node.args[0], name)))


def _inner(node: Node) -> Scalar:
    """What a percent or degree sign stands behind: -50% is -50."""
    assert isinstance(node, Op)
    if node.name == "neg":
        return Op("neg", (_inner(node.args[0]),))
    inner = node.args[0]
    assert isinstance(inner, Scalar)
    return inner


def _infinite(node: Node) -> int | None:
    match node:
        case Op("∞"):
            return 1
        case Op("neg", (inner,)):
            sign = _infinite(inner)
            return None if sign is None else -sign
    return None
