"""When is an answer the gold one? The rules, kind by kind.

Decimals: equal exactly, but that a gold which is itself rounded (three or more digits, two or more of them decimals,
and no simple binary fraction such as 0.125) is also met by a value that rounds to it.
Percent signs and degrees: 50% is 0.5 and 50; 60° is 60 and π/3. Units may be left out, not changed.
Names: x = 3 is met by 3, and not by y = 3. Order: 1, 3 is met by 3, 1; (1, 3) is not met by (3, 1), nor by {1, 3}.
"""

import re

from rewards.answers.maths.comparing import value
from rewards.answers.maths.comparing.resolve import resolved
from rewards.answers.maths.comparing.scalars import equal_scalars
from rewards.answers.maths.comparing.sets import equal_relations, equal_sets, equation, is_set, isolated
from rewards.answers.maths.nodes import (
    Based,
    Interval,
    Matrix,
    Named,
    Node,
    Op,
    Quantity,
    Relation,
    Scalar,
    Seq,
    Sym,
    Text,
    Unreadable,
    renamed,
    symbols,
)
from rewards.answers.maths.reading.words import unit


def equal(gold: Node, answer: Node) -> bool:
    """Whether the answer is the gold one. Unreadable where a part of either cannot be computed."""
    gold, answer = resolved(gold, _equal), resolved(answer, _equal)
    return _equal(gold, answer) or _equal(isolated(gold), answer)


def _equal(gold: Node, answer: Node) -> bool:
    if gold == answer:
        return True
    if isinstance(gold, Named) or isinstance(answer, Named):
        return _equal_named(gold, answer)
    if isinstance(gold, Text) or isinstance(answer, Text):
        return _equal_text(gold, answer)
    if isinstance(gold, Based) or isinstance(answer, Based):
        return isinstance(gold, Based) and isinstance(answer, Based) and _digits(gold) == _digits(answer)
    if isinstance(gold, Quantity) or isinstance(answer, Quantity):
        return _equal_quantity(gold, answer)
    if isinstance(gold, Matrix) or isinstance(answer, Matrix):
        return _equal_matrix(gold, answer)
    if is_set(gold) or is_set(answer):
        return equal_sets(gold, answer)
    if isinstance(gold, Relation) or isinstance(answer, Relation):
        return equal_relations(gold, answer)
    if isinstance(gold, Seq) or isinstance(answer, Seq):
        return _equal_several(gold, answer)
    assert isinstance(gold, Scalar) and isinstance(answer, Scalar)
    return equal_scalars(gold, answer)


# -- names, words, units


def _equal_named(gold: Node, answer: Node) -> bool:
    if isinstance(gold, Named) and isinstance(answer, Named):
        if gold.name != answer.name and {gold.name} <= symbols(answer.value) and {answer.name} <= symbols(gold.value):
            return equal_relations(equation(gold), equation(answer))  # a line, solved for x or for y
        if gold.name != answer.name and ("y", ()) in ((gold.name, gold.arguments), (answer.name, answer.arguments)):
            return bool(gold.arguments or answer.arguments) and _equal(gold.value, answer.value)  # y is f(x)
        if gold.name != answer.name:
            return _is_plain_word(gold.name) != _is_plain_word(answer.name) and _equal(gold.value, answer.value)
        if len(gold.arguments) != len(answer.arguments):
            return _equal(gold.value, answer.value)
        names = dict(zip(answer.arguments, gold.arguments, strict=True))
        return _equal(gold.value, renamed(answer.value, names))
    named, other = (gold, answer) if isinstance(gold, Named) else (answer, gold)
    assert isinstance(named, Named)
    if isinstance(other, Relation) and set(other.signs) == {"="}:
        return equal_relations(equation(named), other)
    return _equal(named.value, other) if named is gold else _equal(other, named.value)


def _is_plain_word(name: str) -> bool:
    """A word such as `Area`, rather than a letter."""
    return len(name) > 3 and name.isalpha()


def _digits(based: Based) -> tuple[str, int]:
    digits = based.digits.rstrip("0").rstrip(".") if "." in based.digits else based.digits
    sign = "-" if digits.startswith("-") else ""
    return sign + (digits.lstrip("-0") or "0"), based.base


def _equal_text(gold: Node, answer: Node) -> bool:
    if isinstance(gold, Text) and isinstance(answer, Text):
        return gold.words == answer.words or _is_subject(answer.words.split(), gold.words.split())
    text, other = (gold, answer) if isinstance(gold, Text) else (answer, gold)
    assert isinstance(text, Text)
    letter = _choice(other)
    if letter is None:
        return False
    first, _, rest = text.words.partition(" ")
    return first == letter.lower() and (not rest or letter.isupper())


def _choice(node: Node) -> str | None:
    """The letter of a multiple-choice answer."""
    if isinstance(node, Sym) and len(node.name) == 1 and node.name in "ABCDEFGHIJabcdefghij":
        return node.name
    return None


def _is_subject(answer: list[str], gold: list[str]) -> bool:
    """Petya, for the gold sentence `Petya will receive the last token`."""
    denied = {"not", "no", "never", "if", "when", "unless", "or", "neither"} & set(gold)
    return len(gold) > 2 and gold[1] in ("will", "wins", "can", "always", "has") and answer == gold[:1] and not denied


def _equal_quantity(gold: Node, answer: Node) -> bool:
    units = []
    for node in (gold, answer):
        units.append(unit(node.words) if isinstance(node, Quantity) else None)
    if units[0] and units[1] and units[0] != units[1]:
        return False
    if isinstance(gold, Quantity) and isinstance(answer, Quantity) and _differ_in_digits(gold.words, answer.words):
        return False
    return _equal(_value_of(gold), _value_of(answer))


def _value_of(node: Node) -> Node:
    return node.value if isinstance(node, Quantity) else node


# -- several values


def _equal_matrix(gold: Node, answer: Node) -> bool:
    one, other = _rows(gold), _rows(answer)
    if one is None or other is None:
        return False
    if isinstance(gold, Matrix) and isinstance(answer, Matrix):
        shapes = [[len(row) for row in rows] for rows in (one, other)]
        return shapes[0] == shapes[1] and _in_order(_flat(one), _flat(other))
    is_vector = all(len(rows) == 1 or len(rows[0]) == 1 for rows in (one, other))  # a vector against a tuple
    return is_vector and _in_order(_flat(one), _flat(other))


def _flat(rows: tuple[tuple[Node, ...], ...]) -> tuple[Node, ...]:
    return tuple(entry for row in rows for entry in row)


def _rows(node: Node) -> tuple[tuple[Node, ...], ...] | None:
    match node:
        case Matrix(rows=rows):
            return rows
        case Seq(kind="tuple" | "bracket", items=items):
            return (items,)
        case Interval(left, right, True, True) | Interval(left, right, False, False):
            return ((left, right),)
    return None


def _equal_several(gold: Node, answer: Node) -> bool:
    if not (isinstance(gold, Seq) and isinstance(answer, Seq)):
        return False
    kinds = {gold.kind, answer.kind}
    if kinds == {"ratio"}:
        return _equal_ratios(gold.items, answer.items)
    if "ratio" in kinds or len(gold.items) > 60 or len(answer.items) > 60:
        return gold.kind == answer.kind and _in_order(gold.items, answer.items)
    if all(isinstance(item, Named) for item in (*gold.items, *answer.items)):
        return _matched(gold.items, answer.items)  # x = 1, y = 2 or y = 2, x = 1
    if _has_own_names(gold) != _has_own_names(answer):
        return _in_order(gold.items, answer.items)  # a = 1, b = 2 is 1, 2 and not 2, 1
    if kinds <= {"list", "set", "and"}:
        one, other = gold.items, answer.items
        if kinds == {"set"} or all(isinstance(item, Seq) for item in one):
            one, other = _distinct(one), _distinct(other)
        return _matched(one, other)
    if "set" in kinds:
        return False
    return _in_order(gold.items, answer.items)


def _has_own_names(seq: Seq) -> bool:
    """Whether every item has a letter of its own; x_1 and x_2 are two of the same."""
    letters = [item.name.partition("_")[0] for item in seq.items if isinstance(item, Named)]
    return len(letters) == len(seq.items) > 1 and len(set(letters)) == len(letters)


def _in_order(gold: tuple[Node, ...], answer: tuple[Node, ...]) -> bool:
    return len(gold) == len(answer) and all(map(_equal, gold, answer))


def _matched(gold: tuple[Node, ...], answer: tuple[Node, ...]) -> bool:
    """Whether the values agree in some order, each with one of the other side."""
    if len(gold) != len(answer):
        return False
    left = list(answer)
    for item in gold:
        place = next((i for i, other in enumerate(left) if _agree(item, other)), None)
        if place is None:
            return False
        del left[place]
    return True


def _agree(gold: Node, answer: Node) -> bool:
    """Equal, where values that cannot be compared are not."""
    if isinstance(gold, Quantity) and isinstance(answer, Quantity) and not _share_a_word(gold, answer):
        return False  # 6 apples and 21 pears are not 21 apples and 6 pears
    try:
        return _equal(gold, answer)
    except Unreadable:
        return False


def _differ_in_digits(gold: str, answer: str) -> bool:
    """units^2 and units^3."""
    pattern = r"[0-9]+"
    return gold != answer and re.sub(pattern, "", gold) == re.sub(pattern, "", answer)


def _share_a_word(gold: Quantity, answer: Quantity) -> bool:
    return unit(gold.words) is not None or bool(set(gold.words.lower().split()) & set(answer.words.lower().split()))


def _distinct(items: tuple[Node, ...]) -> tuple[Node, ...]:
    kept: list[Node] = []
    for item in items:
        if not any(_agree(item, other) for other in kept):
            kept.append(item)
    return tuple(kept)


def _equal_ratios(gold: tuple[Node, ...], answer: tuple[Node, ...]) -> bool:
    if len(gold) != len(answer):
        return False
    return all(
        value.same(Op("mul", (a, answer[0])), Op("mul", (b, gold[0]))) for a, b in zip(gold, answer, strict=True)
    )
