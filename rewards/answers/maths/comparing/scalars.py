"""When two scalars are equal: percent signs, degrees, infinities, rounding, free parameters."""

from fractions import Fraction

from rewards.answers.maths.comparing import value
from rewards.answers.maths.nodes import Node, Num, Op, Scalar, operations, renamed, symbols


def equal_scalars(wanted: Scalar, answer: Scalar) -> bool:
    names = operations(wanted) | operations(answer)
    if "∞" in names:
        return _infinite(wanted) is not None and _infinite(wanted) == _infinite(answer)
    if _is(wanted, "radian") or _is(answer, "radian"):
        return _equal_in_radians(wanted, answer)
    if _equal_with_signs(wanted, answer):
        return True
    # 90° - 3β, 360°/11
    return "degree" in names and _same_or_rounds(_without_degrees(wanted), _without_degrees(answer))


def _equal_in_radians(wanted: Scalar, answer: Scalar) -> bool:
    """One of them is in radians: an angle in degrees is converted, 60° is not 60 radians."""
    wanted, answer = (_inner(node) if _is(node, "radian") else node for node in (wanted, answer))
    if _is(wanted, "degree"):
        return _same_or_rounds(_inner(wanted), _in_degrees(answer))
    return _same_or_rounds(wanted, answer)


def _equal_with_signs(wanted: Scalar, answer: Scalar) -> bool:
    if _is(wanted, "percent") and _is(answer, "percent"):
        return _same_or_rounds(_inner(wanted), _inner(answer), percent=True)
    if _is(wanted, "degree") and _is(answer, "degree"):
        return _same_or_rounds(_inner(wanted), _inner(answer))
    if _is(wanted, "percent"):
        scaled = Op("mul", (answer, Num(Fraction(100))))
        return _same_or_rounds(_inner(wanted), scaled, percent=True) or _same_or_rounds(_inner(wanted), answer)
    if _is(wanted, "degree"):
        return _same_or_rounds(_inner(wanted), answer) or _same_or_rounds(_inner(wanted), _in_degrees(answer))
    if _is(answer, "percent"):  # 50% for 50, but not 0.5% for 0.5
        return (not _is_share(wanted) and _same_or_rounds(wanted, _inner(answer))) or _same_or_rounds(wanted, answer)
    if _is(answer, "degree"):
        return _same_or_rounds(wanted, _inner(answer)) or _same_or_rounds(wanted, answer)
    return _same_or_rounds(wanted, answer)


def _in_degrees(radians: Scalar) -> Scalar:
    return Op("div", (Op("mul", (radians, Num(Fraction(180)))), Op("π")))


def _is_share(wanted: Scalar) -> bool:
    """Whether it is a number between -1 and 1."""
    return not symbols(wanted) and bool(abs(value.approximate(wanted)) < 1)


def _without_degrees(node: Scalar) -> Scalar:
    """The expression in degrees: without degree signs in its sums, products and quotients, but with those of angles
    in functions: sin 30°."""
    match node:
        case Op("degree", (inner,)) if isinstance(inner, Scalar):
            return _without_degrees(inner)
        case Op("add" | "neg" | "mul" | "div" as name, args):
            return Op(name, tuple(_without_degrees(arg) if isinstance(arg, Scalar) else arg for arg in args))
    return node


def _same_or_rounds(wanted: Scalar, answer: Scalar, *, percent: bool = False) -> bool:
    answer = _with_parameter_of(wanted, answer)
    return value.same(wanted, answer) or _rounds_to(wanted, answer, percent=percent)


def _with_parameter_of(wanted: Scalar, answer: Scalar) -> Scalar:
    """The answer with its free parameter named as in the reference answer: nπ for kπ, c for C."""
    mine, theirs = sorted(symbols(wanted) - symbols(answer)), sorted(symbols(answer) - symbols(wanted))
    if len(mine) != 1 or len(theirs) != 1:
        return answer
    periodic = "π" in operations(wanted) and {mine[0], theirs[0]} <= set("klmn")
    constant = {mine[0], theirs[0]} == {"C", "c"}
    if not periodic and not constant:
        return answer
    named = renamed(answer, {theirs[0]: mine[0]})
    assert isinstance(named, Scalar)
    return named


def _rounds_to(wanted: Scalar, answer: Scalar, *, percent: bool) -> bool:
    """Whether the reference answer is a rounded decimal and the answer a more precise value that rounds to it.

    A reference answer such as 0.125 may be exact: it accepts expressions that round to it, but not 0.1251.
    """
    literal, written = _decimal(wanted), _decimal(answer)
    target = value.exact(wanted)
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
        difference = abs(value.approximate(answer) - value.approximate(wanted))
    except value.Undefined:
        return False
    return bool(difference * 2 * 10**literal.places <= 1)


def _decimal(node: Scalar) -> Num | None:
    """The decimal literal in it, whatever its sign; None if it is not one."""
    while isinstance(node, Op) and node.name == "neg" and isinstance(node.args[0], Scalar):
        node = node.args[0]
    return node if isinstance(node, Num) and node.places is not None else None


def _is(node: Node, name: str) -> bool:
    return isinstance(node, Op) and (node.name == name or (node.name == "neg" and _is(node.args[0], name)))


def _inner(node: Node) -> Scalar:
    """The operand of a percent or degree sign: -50 in -50%."""
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
