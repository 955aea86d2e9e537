"""When an answer equals the reference answer: the rules, by kind of node.

Decimals must be exactly equal. But if the reference answer is itself rounded (three or more digits, at least two of
them decimals, and no simple binary fraction such as 0.125), a value that rounds to it is accepted, too.
Percent signs and degrees: 50% equals 0.5 and 50, 0.5% does not equal 0.5; 60° equals 60 and π/3, but not 60 radians.
Units may be omitted but not changed. Names: x = 3 accepts 3 but not y = 3. Order: 1, 3 accepts 3, 1; (1, 3) accepts
neither (3, 1) nor {1, 3}.
"""

import re
from string import ascii_lowercase

from rewards.answers.maths.comparing import value
from rewards.answers.maths.comparing.moments import equal_residues, equal_times, is_residue, is_unreduced_time
from rewards.answers.maths.comparing.regions.families import equal_families, equal_undeclared
from rewards.answers.maths.comparing.regions.piecewise import equal_piecewise
from rewards.answers.maths.comparing.regions.relations import (
    equal_relations,
    equal_systems,
    equation,
    is_system,
    isolated,
)
from rewards.answers.maths.comparing.regions.sets import equal_sets, is_set, region
from rewards.answers.maths.comparing.resolve import resolved
from rewards.answers.maths.comparing.scalars import equal_scalars
from rewards.answers.maths.nodes import (
    Based,
    Choice,
    Clock,
    Family,
    Interval,
    Matrix,
    Named,
    Node,
    Op,
    Piecewise,
    Quantity,
    Relation,
    Scalar,
    Seq,
    Sym,
    Text,
    Unreadable,
    operations,
    renamed,
    symbols,
)
from rewards.answers.maths.reading.words import qualifier, unit


def equal(wanted: Node, answer: Node) -> bool:
    """Whether the answer equals the reference answer. Raises Unreadable if part of either cannot be computed."""
    if set(value.SERIES) & operations(answer) and not set(value.SERIES) & operations(wanted):
        raise Unreadable("unevaluated \\ldots")
    wanted, answer = resolved(wanted, _equal), resolved(answer, _equal)
    if _equal(wanted, answer) or equal_undeclared(wanted, answer):
        return True
    element, other = _element(wanted), _element(answer)
    if (element, other) != (wanted, answer) and _equal(element, other):
        return True
    solved = isolated(wanted)
    return solved is not None and _equal(solved, answer)


def _element(node: Node) -> Node:
    """The element of a set of one: 5 for {5}, x = 5 for x = {5}."""
    match node:
        case Seq(kind="set", items=(item,)):
            return item
        case Named(name, arguments, inner):
            return Named(name, arguments, _element(inner))
    return node


def _equal(wanted: Node, answer: Node) -> bool:
    if wanted == answer:
        return True
    if isinstance(wanted, Choice) or isinstance(answer, Choice):
        return _equal_option(wanted, answer)
    if isinstance(wanted, Family) or isinstance(answer, Family):
        return equal_families(wanted, answer, _equal)
    if isinstance(wanted, Named) or isinstance(answer, Named):
        return _equal_named(wanted, answer)
    if isinstance(wanted, Clock) or isinstance(answer, Clock):
        return equal_times(wanted, answer)
    if is_residue(wanted) or is_residue(answer):
        return equal_residues(wanted, answer)
    if is_unreduced_time(wanted):
        return False
    if isinstance(wanted, Piecewise) or isinstance(answer, Piecewise):
        return equal_piecewise(wanted, answer, _equal)
    if isinstance(wanted, Text) or isinstance(answer, Text):
        return _equal_text(wanted, answer)
    if isinstance(wanted, Based) or isinstance(answer, Based):
        return isinstance(wanted, Based) and isinstance(answer, Based) and _digits(wanted) == _digits(answer)
    if isinstance(wanted, Quantity) or isinstance(answer, Quantity):
        return _equal_quantity(wanted, answer)
    if isinstance(wanted, Matrix) or isinstance(answer, Matrix):
        return _equal_matrix(wanted, answer)
    if is_system(wanted) or is_system(answer):
        return equal_systems(wanted, answer)
    if is_set(wanted) or is_set(answer):
        return equal_sets(wanted, answer)
    if isinstance(wanted, Scalar) and isinstance(answer, Relation) and answer.labelled and not symbols(wanted):
        return _equal_labelled(wanted, answer)
    if isinstance(wanted, Relation) or isinstance(answer, Relation):
        return equal_relations(wanted, answer)
    if isinstance(wanted, Seq) or isinstance(answer, Seq):
        return _equal_several(wanted, answer)
    assert isinstance(wanted, Scalar) and isinstance(answer, Scalar)
    return equal_scalars(wanted, answer)


# -- labels, names, words, units


def _equal_option(wanted: Node, answer: Node) -> bool:
    """(B) 420 equals B and 420, and no other letter or value."""
    if isinstance(wanted, Choice) and isinstance(answer, Choice):
        return wanted.letter == answer.letter and _equal(wanted.value, answer.value)
    option, other = (wanted, answer) if isinstance(wanted, Choice) else (answer, wanted)
    assert isinstance(option, Choice)
    letter = _choice(other)
    if letter is not None and letter.isupper() == option.letter.isupper():
        return letter == option.letter and (option is wanted or not _hedges(option.value))
    return _equal(option.value, answer) if option is wanted else _equal(wanted, option.value)


def _hedges(value: Node) -> bool:
    """Whether what follows an option's letter names another option or takes the letter back."""
    return not _only_names(value.words) if isinstance(value, Text) else bool(symbols(value) & set("ABCDEFGHIJ"))


def _only_names(said: str) -> bool:
    """Whether words after a letter neither deny it nor name another letter."""
    return qualifier(said) is None and not any(
        word in ("or", "if", "because", "vs") or (len(word) == 1 and word in "abcdefghij") for word in said.split()
    )


def _equal_labelled(wanted: Node, answer: Relation) -> bool:
    """p + q = 120 + 47 = 167 for 167: all values after the label are the same."""
    values = answer.parts[1:]
    if not all(_equal(values[-1], other) for other in values[:-1]):
        raise Unreadable("a chain of different values")
    return _equal(wanted, values[-1])


def _equal_named(wanted: Node, answer: Node) -> bool:
    if isinstance(wanted, Named) and isinstance(answer, Named):
        if wanted.name != answer.name and wanted.name in symbols(answer.value) and answer.name in symbols(wanted.value):
            return equal_relations(equation(wanted), equation(answer))  # a line, solved for x or for y
        if wanted.name != answer.name and any((n.name, n.arguments) == ("y", ()) for n in (wanted, answer)):
            return bool(wanted.arguments or answer.arguments) and _equal(wanted.value, answer.value)  # y is f(x)
        if wanted.name != answer.name:
            return _is_plain_word(wanted.name) != _is_plain_word(answer.name) and _equal(wanted.value, answer.value)
        if len(wanted.arguments) != len(answer.arguments):
            return _equal(wanted.value, answer.value)
        names = dict(zip(answer.arguments, wanted.arguments, strict=True))
        return _equal(wanted.value, renamed(answer.value, names))
    named, other = (wanted, answer) if isinstance(wanted, Named) else (answer, wanted)
    assert isinstance(named, Named)
    is_relation = isinstance(other, Relation) and "=" not in other.signs
    if (is_relation or is_set(other)) and region(named.value) is not None and not isinstance(named.value, Scalar):
        return equal_sets(wanted, answer)  # with the name, which is a letter of the other
    if isinstance(other, Relation) and set(other.signs) == {"="}:
        return equal_relations(equation(named), other)
    return _equal(named.value, other) if named is wanted else _equal(other, named.value)


def _is_plain_word(name: str) -> bool:
    """Whether it is a word such as `Area`, not a letter."""
    return len(name) > 3 and name.isalpha()


def _digits(based: Based) -> tuple[str, int]:
    digits = based.digits.rstrip("0").rstrip(".") if "." in based.digits else based.digits
    sign = "-" if digits.startswith("-") else ""
    return sign + (digits.lstrip("-0") or "0"), based.base


def _equal_text(wanted: Node, answer: Node) -> bool:
    if isinstance(wanted, Text) and isinstance(answer, Text):
        return wanted.words == answer.words or _is_subject(answer.words.split(), wanted.words.split())
    text, other = (wanted, answer) if isinstance(wanted, Text) else (answer, wanted)
    assert isinstance(text, Text)
    letter = _choice(other)
    if letter is None:
        return False
    first, _, rest = text.words.partition(" ")
    return first == letter.lower() and (not rest or (letter.isupper() and _only_names(rest)))


def _choice(node: Node) -> str | None:
    """The letter of a multiple-choice answer, or None."""
    if isinstance(node, Sym) and len(node.name) == 1 and node.name in "ABCDEFGHIJabcdefghij":
        return node.name
    return None


def _is_subject(answer: list[str], wanted: list[str]) -> bool:
    """Whether the answer is the subject of a sentence: Petya, for `Petya will receive the last token`."""
    denied = {"not", "no", "never", "if", "when", "unless", "or", "neither"} & set(wanted)
    return (
        len(wanted) > 2
        and wanted[1] in ("will", "wins", "can", "always", "has")
        and answer == wanted[:1]
        and not denied
    )


def _equal_quantity(wanted: Node, answer: Node) -> bool:
    units = []
    for node in (wanted, answer):
        units.append(unit(node.words) if isinstance(node, Quantity) else None)
    if units[0] and units[1] and units[0] != units[1]:
        return False
    if isinstance(wanted, Quantity) and isinstance(answer, Quantity) and _differ_in_digits(wanted.words, answer.words):
        return False
    return _equal(_value_of(wanted), _value_of(answer))


def _value_of(node: Node) -> Node:
    return node.value if isinstance(node, Quantity) else node


# -- several values


def _equal_matrix(wanted: Node, answer: Node) -> bool:
    one, other = _rows(wanted), _rows(answer)
    if one is None or other is None:
        return False
    if isinstance(wanted, Matrix) and isinstance(answer, Matrix):
        sizes = [[len(row) for row in rows] for rows in (one, other)]
        return sizes[0] == sizes[1] and _in_order(_flat(one), _flat(other))
    is_vector = all(len(rows) == 1 or len(rows[0]) == 1 for rows in (one, other))  # a vector and a tuple
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


def _equal_several(wanted: Node, answer: Node) -> bool:
    if not (isinstance(wanted, Seq) and isinstance(answer, Seq)):
        return False
    kinds = {wanted.kind, answer.kind}
    if kinds == {"ratio"}:
        return _equal_ratios(wanted.items, answer.items)
    if "ratio" in kinds or len(wanted.items) > 60 or len(answer.items) > 60:
        return wanted.kind == answer.kind and _in_order(wanted.items, answer.items)
    if all(isinstance(item, Named) for item in (*wanted.items, *answer.items)):
        return _matched(wanted.items, answer.items)  # x = 1, y = 2 or y = 2, x = 1
    if _has_own_names(wanted) != _has_own_names(answer):
        # a = 1, b = 2 and b = 2, a = 1 equal 1, 2 but not 2, 1
        return _in_order(_by_name(wanted.items), _by_name(answer.items))
    if kinds <= {"list", "set", "and"}:
        one, other = wanted.items, answer.items
        if kinds == {"set"} or all(isinstance(item, Seq) for item in one):
            one, other = _distinct(one), _distinct(other)
        return _matched(one, other)
    if "set" in kinds:
        return False
    return _in_order(wanted.items, answer.items)


def _has_own_names(seq: Seq) -> bool:
    """Whether each item has its own letter; x_1 and x_2 share one."""
    letters = [item.name.partition("_")[0] for item in seq.items if isinstance(item, Named)]
    return len(letters) == len(seq.items) > 1 and len(set(letters)) == len(letters)


def _by_name(items: tuple[Node, ...]) -> tuple[Node, ...]:
    """Coordinates named by consecutive letters in the order of these, x before y; others as they are written."""
    names = sorted(item.name for item in items if isinstance(item, Named))
    if len(names) < len(items) or "".join(names) not in ascii_lowercase:
        return items
    return tuple(sorted(items, key=lambda item: item.name if isinstance(item, Named) else ""))


def _in_order(wanted: tuple[Node, ...], answer: tuple[Node, ...]) -> bool:
    return len(wanted) == len(answer) and all(map(_equal, wanted, answer))


def _matched(wanted: tuple[Node, ...], answer: tuple[Node, ...]) -> bool:
    """Whether the values match one to one in some order."""
    if len(wanted) != len(answer):
        return False
    left = list(answer)
    for item in wanted:
        place = next((i for i, other in enumerate(left) if _agree(item, other)), None)
        if place is None:
            return False
        del left[place]
    return True


def _agree(wanted: Node, answer: Node) -> bool:
    """Whether two values are equal; values that cannot be compared are not."""
    if isinstance(wanted, Quantity) and isinstance(answer, Quantity) and not _share_a_word(wanted, answer):
        return False  # 6 apples and 21 pears are not 21 apples and 6 pears
    try:
        return _equal(wanted, answer)
    except Unreadable:
        return False


def _differ_in_digits(wanted: str, answer: str) -> bool:
    """Whether only digits differ: units^2 and units^3."""
    pattern = r"[0-9]+"
    return wanted != answer and re.sub(pattern, "", wanted) == re.sub(pattern, "", answer)


def _share_a_word(wanted: Quantity, answer: Quantity) -> bool:
    return unit(wanted.words) is not None or bool(set(wanted.words.lower().split()) & set(answer.words.lower().split()))


def _distinct(items: tuple[Node, ...]) -> tuple[Node, ...]:
    kept: list[Node] = []
    for item in items:
        if not any(_agree(item, other) for other in kept):
            kept.append(item)
    return tuple(kept)


def _equal_ratios(wanted: tuple[Node, ...], answer: tuple[Node, ...]) -> bool:
    if len(wanted) != len(answer):
        return False
    return all(
        value.same(Op("mul", (a, answer[0])), Op("mul", (b, wanted[0]))) for a, b in zip(wanted, answer, strict=True)
    )
