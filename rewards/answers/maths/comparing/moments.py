"""Times of day and residue classes: values of their own, never equal to plain numbers by computation."""

from math import gcd

from rewards.answers.maths.comparing import value
from rewards.answers.maths.nodes import Clock, Node, Num, Op, Scalar
from rewards.answers.maths.reading.notation.literals import as_time

_HALF_DAY = 12 * 3600


def equal_times(wanted: Node, answer: Node) -> bool:
    """7:15 p.m. equals 19:15, and 7:15 if it does not say which half of the day. A ratio such as 7:15 may be a time."""
    one, other = _time(wanted), _time(answer)
    if one is None or other is None:
        return False
    if sorted((bool(one.half), bool(other.half))) == [False, True] and "24h" not in (one.half, other.half):
        return (one.seconds - other.seconds) % _HALF_DAY == 0
    return one.seconds == other.seconds


def _time(node: Node) -> Clock | None:
    return node if isinstance(node, Clock) else as_time(node)


def is_unreduced_time(node: Node) -> bool:
    """Whether it may be a time and is no ratio in lowest terms: 9:24."""
    if not (isinstance(node, Op) and node.name == "ratio") or as_time(node) is None:
        return False
    hours, minutes = node.args
    assert isinstance(hours, Num) and isinstance(minutes, Num)
    return gcd(int(hours.value), int(minutes.value)) > 1


def is_residue(node: Node) -> bool:
    return isinstance(node, Op) and node.name == "residue"


def equal_residues(wanted: Node, answer: Node) -> bool:
    """The same class of the same modulus. The remainder 3 is also 3 (mod 7), but not 10 (mod 7)."""
    if not is_residue(answer):
        return False
    assert isinstance(answer, Op)
    number, modulus = answer.args
    if is_residue(wanted):
        assert isinstance(wanted, Op)
        if not value.same(wanted.args[1], modulus):
            return False
        if value.same(wanted.args[0], number):
            return True
        classes = value.exact(Op("div", (Op("add", (wanted.args[0], Op("neg", (number,)))), modulus)))
        return classes is not None and classes.denominator == 1
    if not (isinstance(wanted, Scalar) and isinstance(number, Num) and isinstance(modulus, Num)):
        return False
    return 0 <= number.value < modulus.value and value.same(wanted, number)
