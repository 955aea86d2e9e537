"""Simplification before comparison: ± into both values, chains into their last value, percent and degrees."""

from collections.abc import Callable, Iterator
from itertools import product

from rewards.answers.maths.comparing import value
from rewards.answers.maths.nodes import (
    Choice,
    Family,
    Named,
    Node,
    Num,
    Op,
    Quantity,
    Relation,
    Scalar,
    Seq,
    Unreadable,
    children,
    operations,
    rebuilt,
    symbols,
)
from rewards.answers.maths.reading.words import unit

_MAX_SIGNS = 4  # ± signs in one answer: sixteen values

Equal = Callable[[Node, Node], bool]


def resolved(node: Node, equal: Equal) -> Node:
    """The node with ± as both values, chains as their last value, percent and degree units as operations."""
    return _with_units(_both_signs(_unchained(node, equal)))


def _unchained(node: Node, equal: Equal) -> Node:
    """x = 1+1 = 2 becomes x = 2; a chain of different values is rejected."""
    if isinstance(node, Op) and node.name == "near":
        return _approximated(*(_unchained(arg, equal) for arg in node.args))
    if isinstance(node, Op) and node.name == "chain":
        values = [_unchained(arg, equal) for arg in node.args]
        if not all(equal(values[-1], other) for other in values[:-1]):
            raise Unreadable("a chain of different values")
        return values[-1]
    if isinstance(node, Relation) and set(node.signs) == {"="} and not symbols(node):
        return _unchained(Op("chain", node.parts), equal)
    below = children(node)
    return rebuilt(node, tuple(_unchained(child, equal) for child in below)) if below else node


def _approximated(exactly: Node, about: Node) -> Node:
    """The exact side of √3/3 ≈ 0.577, if the two agree."""
    if isinstance(exactly, Scalar) and isinstance(about, Scalar) and not symbols(exactly) | symbols(about):
        places = (about.places or 0) if isinstance(about, Num) else 2
        if abs(value.approximate(exactly) - value.approximate(about)) * 10**places < 1:
            return exactly
    raise Unreadable("a false approximation")


def _both_signs(node: Node) -> Node:
    """1 ± √2 becomes the list of its two values."""
    if not operations(node) & {"pm", "mp"}:
        return node
    match node:
        case Seq(kind="list" | "set" | "bracket" as kind, items=items):
            spread = [_both_signs(item) for item in items]
            return Seq(kind, tuple(leaf for item in spread for leaf in _leaves(item)))
        case Named(name, arguments, inner):
            return Named(name, arguments, _both_signs(inner))
        case Family(inner, letters, domain):
            return Family(_both_signs(inner), letters, domain)
        case Quantity(inner, words):
            return Quantity(_both_signs(inner), words)
        case Choice(letter, inner):
            return Choice(letter, _both_signs(inner))
    values = list(_signed(node))
    return Seq("list", tuple(values))


def _leaves(node: Node) -> tuple[Node, ...]:
    return node.items if isinstance(node, Seq) and node.kind == "list" else (node,)


def _signed(node: Node) -> Iterator[Node]:
    count = _count_signs(node)
    if count > _MAX_SIGNS:
        raise Unreadable(f"more than {_MAX_SIGNS} ± signs")
    together = "mp" in operations(node)
    choices = [(1,) * count, (-1,) * count] if together else list(product((1, -1), repeat=count))
    for signs in choices:
        yield _choose(node, iter(signs))


def _count_signs(node: Node) -> int:
    own = int(isinstance(node, Op) and node.name in ("pm", "mp"))
    return own + sum(_count_signs(child) for child in children(node))


def _choose(node: Node, signs: Iterator[int]) -> Node:
    if isinstance(node, Op) and node.name in ("pm", "mp"):
        sign = next(signs) * (1 if node.name == "pm" else -1)
        below = [_choose(arg, signs) for arg in node.args]
        last = below[-1] if sign > 0 else Op("neg", (below[-1],))
        return last if len(below) == 1 else Op("add", (below[0], last))
    below = children(node)
    return rebuilt(node, tuple(_choose(child, signs) for child in below)) if below else node


def _with_units(node: Node) -> Node:
    """28 percent becomes 28%, 60 degrees becomes 60°; 2 radians are marked, too."""
    below = children(node)
    if below:
        node = rebuilt(node, tuple(_with_units(child) for child in below))
    if isinstance(node, Quantity) and isinstance(node.value, Op) and node.value.name == "ratio":
        return node
    if (
        isinstance(node, Quantity)
        and isinstance(node.value, Scalar)
        and (known := unit(node.words)) in ("%", "deg", "rad")
    ):
        return Op({"%": "percent", "deg": "degree", "rad": "radian"}[known], (node.value,))
    return node
