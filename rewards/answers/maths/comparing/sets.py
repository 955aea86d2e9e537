"""Sets of numbers, equations and inequalities: (2, ∞) is x > 2, and 2x + 4y = 6 is x + 2y = 3."""

from contextlib import suppress
from fractions import Fraction
from functools import cmp_to_key
from itertools import permutations, product

from rewards.answers.maths.comparing import value
from rewards.answers.maths.comparing.scalars import equal_scalars
from rewards.answers.maths.nodes import (
    Interval,
    Named,
    Node,
    Num,
    Op,
    Relation,
    Scalar,
    Seq,
    Sym,
    Union,
    Unreadable,
    replaced,
    reversed_sign,
    symbols,
)

_INFINITY = Op("∞")
_MINUS_INFINITY = Op("neg", (_INFINITY,))


def is_set(node: Node) -> bool:
    if isinstance(node, Op) and node.name == "setminus":
        return True
    return isinstance(node, Interval | Union) or (isinstance(node, Sym) and node.name in "ℝℤℕℚℂ")


def equal_sets(gold: Node, answer: Node) -> bool:
    """Intervals, unions, and what can be read as such: a < x < b, (a, b) with one end at infinity, {1, 2}."""
    if isinstance(gold, Interval) and isinstance(answer, Seq | Interval):
        one, other = _piece(gold), _piece(answer)
        return one is not None and other is not None and _equal_intervals(one, other)
    if isinstance(answer, Interval) and isinstance(gold, Seq):
        one = _piece(gold)
        return one is not None and _equal_intervals(one, answer)
    one, other = _pieces(gold), _pieces(answer)
    if one is None or other is None:
        return False
    with suppress(Unreadable):  # ends with letters cannot be put in order
        one, other = _merged(one), _merged(other)
    if len(one) != len(other):
        return False
    orders = permutations(other) if len(one) < 5 else [other]
    return any(all(map(_equal_intervals, one, order)) for order in orders)


def _equal_intervals(gold: Interval, answer: Interval) -> bool:
    if (gold.left_closed, gold.right_closed) != (answer.left_closed, answer.right_closed):
        return False
    return _ends(gold.left, answer.left) and _ends(gold.right, answer.right)


def _piece(node: Node) -> Interval | None:
    match node:
        case Interval():
            return node
        case Seq(kind="tuple", items=(left, right)):
            return Interval(left, right, False, False)
    return None


def _pieces(node: Node) -> list[Interval] | None:
    """The node as intervals, single points being closed ones; None where it is no set of numbers."""
    match node:
        case Interval():
            return [node]
        case Union(parts=parts):
            found = [_pieces(part) for part in parts]
            return None if None in found else [piece for pieces in found if pieces for piece in pieces]
        case Seq(kind="tuple", items=(left, right)):
            return [Interval(left, right, False, False)]
        case Seq(kind="set" | "list", items=items) if all(isinstance(item, Scalar) for item in items):
            return [Interval(item, item, True, True) for item in items]
        case Seq(kind="and", items=items):
            return _intersected([_pieces(item) for item in items])
        case Seq(kind="list", items=items):
            return _pieces(Union(items))
        case Sym("ℝ"):
            return [Interval(_MINUS_INFINITY, _INFINITY, False, False)]
        case Op("setminus", (whole, removed)):
            return _without(_pieces(whole), _pieces(removed))
        case Relation():
            return _solved(node)
    return None


def _solved(relation: Relation) -> list[Interval] | None:
    """1 < x ≤ 3 and x ≠ 2 as intervals; None unless a letter alone stands on one side."""
    parts, signs = relation.parts, relation.signs
    if len(parts) == 2 and signs == ("≠",):
        point = parts[1] if isinstance(parts[0], Sym) else parts[0]
        return [Interval(_MINUS_INFINITY, point, False, False), Interval(point, _INFINITY, False, False)]
    if not set(signs) <= {"<", ">", "≤", "≥"}:
        return None
    if signs[0] in (">", "≥"):
        parts, signs = parts[::-1], tuple(reversed_sign(sign) for sign in signs[::-1])
    if not set(signs) <= {"<", "≤"}:
        return None
    place = next((i for i, part in enumerate(parts) if isinstance(part, Sym)), None)
    if place is None or len(parts) > 3 or (len(parts) == 3 and place != 1):
        return None
    letter = parts[place]
    assert isinstance(letter, Sym)
    if any(letter.name in symbols(part) for i, part in enumerate(parts) if i != place):
        return None
    left = (parts[place - 1], signs[place - 1] == "≤") if place > 0 else (_MINUS_INFINITY, False)
    right = (parts[place + 1], signs[place] == "≤") if place + 1 < len(parts) else (_INFINITY, False)
    return [Interval(left[0], right[0], left[1], right[1])]


def _merged(pieces: list[Interval]) -> list[Interval]:
    """In order, touching ones joined; -∞ and ∞ are open."""
    if any(value.order(piece.left, piece.right) > 0 for piece in pieces):
        raise Unreadable("an interval that ends before it starts")
    pieces = [
        piece
        for piece in pieces
        if value.order(piece.left, piece.right) < 0 or (piece.left_closed and piece.right_closed)
    ]
    pieces = sorted(pieces, key=cmp_to_key(lambda a, b: value.order(a.left, b.left) or b.left_closed - a.left_closed))
    merged: list[Interval] = []
    for piece in pieces:
        if merged:
            last = merged[-1]
            touch = value.order(piece.left, last.right)
            if touch < 0 or (touch == 0 and (piece.left_closed or last.right_closed)):
                ends = value.order(piece.right, last.right)
                right, closed = (piece.right, piece.right_closed) if ends > 0 else (last.right, last.right_closed)
                if ends == 0:
                    closed = piece.right_closed or last.right_closed
                merged[-1] = Interval(last.left, right, last.left_closed, closed)
                continue
        merged.append(piece)
    return merged


def _intersected(sets: list[list[Interval] | None]) -> list[Interval] | None:
    found = sets[0]
    for other in sets[1:]:
        if found is None or other is None:
            return None
        found = [piece for a, b in product(found, other) if (piece := _common(a, b)) is not None]
    return found


def _common(a: Interval, b: Interval) -> Interval | None:
    low, high = value.order(a.left, b.left), value.order(a.right, b.right)
    left = (a.left, a.left_closed) if low > 0 else (b.left, b.left_closed and (low < 0 or a.left_closed))
    right = (a.right, a.right_closed) if high < 0 else (b.right, b.right_closed and (high > 0 or a.right_closed))
    empty = value.order(left[0], right[0])
    if empty > 0 or (empty == 0 and not (left[1] and right[1])):
        return None
    return Interval(left[0], right[0], left[1], right[1])


def _without(whole: list[Interval] | None, removed: list[Interval] | None) -> list[Interval] | None:
    if whole is None or removed is None:
        return None
    for hole in removed:
        outside = [
            Interval(_MINUS_INFINITY, hole.left, False, not hole.left_closed),
            Interval(hole.right, _INFINITY, not hole.right_closed, False),
        ]
        whole = [piece for a, b in product(whole, outside) if (piece := _common(a, b)) is not None]
    return whole


def isolated(gold: Node) -> Node:
    """x ≤ 20 for a gold -x ≥ -20, and -3 < x < 3 for |x| < 3; an answer has to say it itself."""
    if isinstance(gold, Relation) and (pieces := _solved_magnitude(gold)) is not None:
        return Union(tuple(pieces))
    if not isinstance(gold, Relation) or len(gold.signs) != 1 or gold.signs[0] in ("=", "≠") or _solved(gold):
        return gold
    letters = symbols(gold)
    if len(letters) != 1 or not all(isinstance(part, Scalar) for part in gold.parts):
        return gold
    [letter] = letters
    difference = Op("add", (gold.parts[0], Op("neg", (gold.parts[1],))))
    at = [value.exact(replaced(difference, letter, Num(Fraction(point)))) for point in (0, 1, 2, 7)]
    if None in at or at[1] == at[0] or any(at[i] != at[0] + (at[1] - at[0]) * x for i, x in ((2, 2), (3, 7))):  # type: ignore[operator]
        return gold
    start, slope = at[0], at[1] - at[0]  # type: ignore[operator]
    sign = gold.signs[0] if slope > 0 else reversed_sign(gold.signs[0])
    return Relation((Sym(letter), Num(-start / slope)), (sign,))  # type: ignore[operator]


def _solved_magnitude(relation: Relation) -> list[Interval] | None:
    """1 ≤ |x| ≤ 2 as [-2, -1] ∪ [1, 2]."""
    magnitudes = [part for part in relation.parts if isinstance(part, Op) and part.name == "abs"]
    if len(magnitudes) != 1 or not isinstance(magnitudes[0].args[0], Sym) or not set(relation.signs) <= set("<>≤≥"):
        return None
    letter = magnitudes[0].args[0]
    found = _solved(Relation(tuple(letter if p is magnitudes[0] else p for p in relation.parts), relation.signs))
    if found is None or any(symbols(end) for piece in found for end in (piece.left, piece.right)):
        return None
    right = _intersected([found, [Interval(Num(Fraction(0)), _INFINITY, True, False)]]) or []
    mirrored = [Interval(_negative(p.right), _negative(p.left), p.right_closed, p.left_closed) for p in right]
    return [*mirrored, *right]


def _negative(end: Node) -> Node:
    return _MINUS_INFINITY if end == _INFINITY else Op("neg", (end,))


def equal_relations(gold: Node, answer: Node) -> bool:
    """The same equation up to a factor, the same inequality, or the same set of numbers."""
    if isinstance(gold, Relation) and isinstance(answer, Scalar):
        return _solves(gold, answer)
    if isinstance(gold, Relation) and isinstance(answer, Seq) and answer.kind == "list":
        return set(gold.signs) == {"<"} and _scalars_in_order(gold.parts, answer.items)  # b < a < c, answered b, a, c
    if not (isinstance(gold, Relation) and isinstance(answer, Relation)):
        pieces = _pieces(gold), _pieces(answer)
        return None not in pieces and equal_sets(gold, answer) if _has_set(gold, answer) else False
    one, other = _solved(gold), _solved(answer)
    if one is not None and other is not None:
        return symbols(gold) == symbols(answer) and equal_sets(Union(tuple(one)), Union(tuple(other)))
    if len(gold.signs) == 1 and len(answer.signs) == 1:
        return _equal_single(gold, answer)
    return _equal_chains(gold, answer)


def _solves(gold: Relation, answer: Scalar) -> bool:
    """6/x for xy = 6: put in the place of one letter, the answer makes the equation hold everywhere."""
    if gold.signs != ("=",) or not symbols(answer) or not all(isinstance(part, Scalar) for part in gold.parts):
        return False
    left, right = gold.parts
    return any(
        value.same(replaced(left, letter, answer), replaced(right, letter, answer))
        for letter in sorted(symbols(gold) - symbols(answer))
    )


def _has_set(gold: Node, answer: Node) -> bool:
    """A relation may stand for a set of numbers only where the other side is one, and not for a value."""
    other = answer if isinstance(gold, Relation) else gold
    return is_set(other) or (isinstance(other, Seq) and other.kind == "tuple" and len(other.items) == 2)


def _equal_single(gold: Relation, answer: Relation) -> bool:
    sides = [Op("add", (r.parts[0], Op("neg", (r.parts[1],)))) for r in (gold, answer)]
    if not all(isinstance(part, Scalar) for r in (gold, answer) for part in r.parts):
        return gold.signs == answer.signs and _scalars_in_order(gold.parts, answer.parts)
    if not symbols(sides[0]):
        return False
    factor = value.ratio(sides[0], sides[1])
    if factor == 0:
        return False
    sign = answer.signs[0] if factor > 0 else reversed_sign(answer.signs[0])
    return gold.signs[0] == sign


def _equal_chains(gold: Relation, answer: Relation) -> bool:
    if gold.signs == answer.signs and _scalars_in_order(gold.parts, answer.parts):
        return True
    turned = tuple(reversed_sign(sign) for sign in answer.signs[::-1])
    return gold.signs == turned and _scalars_in_order(gold.parts, answer.parts[::-1])


def equation(named: Named) -> Relation:
    """y = 2x, as a relation."""
    return Relation((Sym(named.name), named.value), ("=",))


def _ends(gold: Node, answer: Node) -> bool:
    return isinstance(gold, Scalar) and isinstance(answer, Scalar) and equal_scalars(gold, answer)


def _scalars_in_order(gold: tuple[Node, ...], answer: tuple[Node, ...]) -> bool:
    return len(gold) == len(answer) and all(map(_ends, gold, answer))
