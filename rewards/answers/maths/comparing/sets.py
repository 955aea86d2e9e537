"""Sets of numbers, equations and inequalities: (2, ∞) equals x > 2, and 2x + 4y = 6 equals x + 2y = 3."""

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


def equal_sets(wanted: Node, answer: Node) -> bool:
    """Intervals, unions, and anything that can be read as one: a < x < b, (a, b) with an infinite end, {1, 2}."""
    if isinstance(wanted, Interval) and isinstance(answer, Seq | Interval):
        one, other = _piece(wanted), _piece(answer)
        return one is not None and other is not None and _equal_intervals(one, other)
    if isinstance(answer, Interval) and isinstance(wanted, Seq):
        one = _piece(wanted)
        return one is not None and _equal_intervals(one, answer)
    one, other = _pieces(wanted), _pieces(answer)
    if one is None or other is None:
        return False
    with suppress(Unreadable):  # symbolic ends cannot be ordered
        one, other = _merged(one), _merged(other)
    if len(one) != len(other):
        return False
    orders = permutations(other) if len(one) < 5 else [other]
    return any(all(map(_equal_intervals, one, order)) for order in orders)


def _equal_intervals(wanted: Interval, answer: Interval) -> bool:
    if (wanted.left_closed, wanted.right_closed) != (answer.left_closed, answer.right_closed):
        return False
    return _ends(wanted.left, answer.left) and _ends(wanted.right, answer.right)


def _piece(node: Node) -> Interval | None:
    match node:
        case Interval():
            return node
        case Seq(kind="tuple", items=(left, right)):
            return Interval(left, right, False, False)
    return None


def _pieces(node: Node) -> list[Interval] | None:
    """The node as intervals, points being closed ones; None if it is not a set of numbers."""
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
    """1 < x ≤ 3 and x ≠ 2 as intervals; None unless one side is a single letter."""
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
    """The intervals sorted, with touching ones joined; ±∞ are open ends."""
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


def isolated(wanted: Node) -> Node:
    """The reference answer solved for its letter: x ≤ 20 for -x ≥ -20, -3 < x < 3 for |x| < 3. (Answers are not.)"""
    if isinstance(wanted, Relation) and (pieces := _solved_magnitude(wanted)) is not None:
        return Union(tuple(pieces))
    if not isinstance(wanted, Relation) or len(wanted.signs) != 1 or wanted.signs[0] in ("=", "≠") or _solved(wanted):
        return wanted
    letters = symbols(wanted)
    if len(letters) != 1 or not all(isinstance(part, Scalar) for part in wanted.parts):
        return wanted
    [letter] = letters
    difference = Op("add", (wanted.parts[0], Op("neg", (wanted.parts[1],))))
    at = [value.exact(replaced(difference, letter, Num(Fraction(point)))) for point in (0, 1, 2, 7)]
    if None in at or at[1] == at[0] or any(at[i] != at[0] + (at[1] - at[0]) * x for i, x in ((2, 2), (3, 7))):  # type: ignore[operator]
        return wanted
    start, slope = at[0], at[1] - at[0]  # type: ignore[operator]
    sign = wanted.signs[0] if slope > 0 else reversed_sign(wanted.signs[0])
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


def equal_relations(wanted: Node, answer: Node) -> bool:
    """The same equation up to a factor, the same inequality, or the same set of numbers."""
    if isinstance(wanted, Relation) and isinstance(answer, Scalar):
        return _solves(wanted, answer)
    if isinstance(wanted, Relation) and isinstance(answer, Seq) and answer.kind == "list":
        return set(wanted.signs) == {"<"} and _scalars_in_order(
            wanted.parts, answer.items
        )  # b < a < c, answered as b, a, c
    if not (isinstance(wanted, Relation) and isinstance(answer, Relation)):
        pieces = _pieces(wanted), _pieces(answer)
        return None not in pieces and equal_sets(wanted, answer) if _has_set(wanted, answer) else False
    one, other = _solved(wanted), _solved(answer)
    if one is not None and other is not None:
        return symbols(wanted) == symbols(answer) and equal_sets(Union(tuple(one)), Union(tuple(other)))
    if len(wanted.signs) == 1 and len(answer.signs) == 1:
        return _equal_single(wanted, answer)
    return _equal_chains(wanted, answer)


def _solves(wanted: Relation, answer: Scalar) -> bool:
    """Whether substituting the answer for one letter makes the equation an identity: 6/x for xy = 6."""
    if wanted.signs != ("=",) or not symbols(answer) or not all(isinstance(part, Scalar) for part in wanted.parts):
        return False
    left, right = wanted.parts
    return any(
        value.same(replaced(left, letter, answer), replaced(right, letter, answer))
        for letter in sorted(symbols(wanted) - symbols(answer))
    )


def _has_set(wanted: Node, answer: Node) -> bool:
    """Whether one side is a set of numbers: only then is a relation read as a set, never for a single value."""
    other = answer if isinstance(wanted, Relation) else wanted
    return is_set(other) or (isinstance(other, Seq) and other.kind == "tuple" and len(other.items) == 2)


def _equal_single(wanted: Relation, answer: Relation) -> bool:
    sides = [Op("add", (r.parts[0], Op("neg", (r.parts[1],)))) for r in (wanted, answer)]
    if not all(isinstance(part, Scalar) for r in (wanted, answer) for part in r.parts):
        return wanted.signs == answer.signs and _scalars_in_order(wanted.parts, answer.parts)
    if not symbols(sides[0]):
        return False
    factor = value.ratio(sides[0], sides[1])
    if factor == 0:
        return False
    sign = answer.signs[0] if factor > 0 else reversed_sign(answer.signs[0])
    return wanted.signs[0] == sign


def _equal_chains(wanted: Relation, answer: Relation) -> bool:
    if wanted.signs == answer.signs and _scalars_in_order(wanted.parts, answer.parts):
        return True
    turned = tuple(reversed_sign(sign) for sign in answer.signs[::-1])
    return wanted.signs == turned and _scalars_in_order(wanted.parts, answer.parts[::-1])


def equation(named: Named) -> Relation:
    """The relation y = 2x for the named value."""
    return Relation((Sym(named.name), named.value), ("=",))


def _ends(wanted: Node, answer: Node) -> bool:
    return isinstance(wanted, Scalar) and isinstance(answer, Scalar) and equal_scalars(wanted, answer)


def _scalars_in_order(wanted: tuple[Node, ...], answer: tuple[Node, ...]) -> bool:
    return len(wanted) == len(answer) and all(map(_ends, wanted, answer))
