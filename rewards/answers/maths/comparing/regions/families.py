"""Values over all whole numbers: (7+4k, 9-3k) and (7+4n, 9-3n), n ∈ ℤ; π/6 + 2kπ; 3k+1 or 3k+2 and n ≡ ±1 (mod 3).

A family that is linear in its letters is a shifted lattice. Its coordinates are rational combinations of 1, π, √2 and
whatever else occurs, so that two families are compared exactly, as sets of points. sympy expands the expressions; its
`ImageSet` does not tell that 3k+1 and 3k-2 or kπ/2 and kπ, π/2+kπ are the same sets, by == or by complements.

Where neither side states a domain, k may be the problem's own letter: then only tuples with different letters and
`n = 3k+1 or n = 3k+2` are families. 2k+1 alone is a formula unless the reference answer says that k is a whole number.
Families that are not linear, and those over the natural numbers, are equal only up to the names of their letters.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import permutations

from rewards.answers.maths.comparing.regions.lattices import Lattice, Vector, same_points
from rewards.answers.maths.comparing.regions.solving import expression
from rewards.answers.maths.nodes import Family, Named, Node, Seq, operations, renamed, symbols

_LETTERS = set("klmnst")  # for whole numbers, where no domain is stated
_NAMES = set("nmNMpab")  # for whole numbers: n = 3k+1 or n = 3k+2
_MAX_LETTERS = 3

Equal = Callable[[Node, Node], bool]
Point = tuple[Node, ...]  # its coordinates


class _OtherError(Exception):
    """Not a family of points in whole letters, linear in each."""


def equal_families(wanted: Node, answer: Node, equal: Equal) -> bool:
    """For two nodes of which at least one is a Family."""
    one, other = _stated(wanted), _stated(answer)
    domains = {one.domain, other.domain}
    if len(domains - {""}) > 1 and not _is_function(one.value):
        return False
    if any(equal(one.value, value) for value in _renamings(one, other)):
        return True
    return "ℕ" not in domains and _may_be_shifted(wanted) and _same(one, other)


def equal_undeclared(wanted: Node, answer: Node) -> bool:
    """(7+4k, 9-3k) and (7+4n, 9-3n); n = 3k+1 or n = 3k+2 and n = 3k-1 or n = 3k-2."""
    if not (isinstance(wanted, Seq) and isinstance(answer, Seq)):
        return False
    one, other = _stated(wanted), _stated(answer)
    if len(one.letters) != 1 or len(other.letters) != 1:
        return False
    if _is_split(wanted) and _is_split(answer):
        return _same(one, other, disjoint=True)
    are_tuples = all(_coordinates(item) for node in (wanted, answer) for item in _items(node))
    return are_tuples and one.letters != other.letters and _same(one, other)


def _stated(node: Node) -> Family:
    """The node as a family, with its letters guessed where it does not state them."""
    if isinstance(node, Family):
        return node
    names = {item.name for item in _items(node) if isinstance(item, Named)}
    return Family(node, tuple(sorted((symbols(node) & _LETTERS) - names)), "")


def _may_be_shifted(wanted: Node) -> bool:
    """Whether the reference answer stands for values over all whole numbers even if it does not say so."""
    if isinstance(wanted, Named):
        return wanted.name in _NAMES or "π" in operations(wanted)
    tuples = isinstance(wanted, Seq) and all(_coordinates(item) for item in _items(wanted))
    return isinstance(wanted, Family) or tuples or _is_split(wanted) or "π" in operations(wanted)


def _is_function(node: Node) -> bool:
    """Whether it is f(n) = …, whose domain is the problem's."""
    return any(isinstance(item, Named) and item.arguments for item in (_coordinates(node) or _items(node)))


def _is_split(node: Node) -> bool:
    """n = 3k+1 or n = 3k+2; not 3k+1, 3k+2, which may be two numbers that a problem about k asks for."""
    names = [item.name for item in _items(node) if isinstance(item, Named)]
    return len(names) == len(_items(node)) > 1 and len(set(names)) == 1 and names[0] in _NAMES


def _renamings(one: Family, other: Family) -> Iterator[Node]:
    """The other's value, as it is and with its letters named as in the first."""
    yield other.value
    if other.letters != one.letters and len(one.letters) == len(other.letters) <= _MAX_LETTERS:
        for letters in permutations(one.letters):
            yield renamed(other.value, dict(zip(other.letters, letters, strict=True)))


def _items(node: Node) -> tuple[Node, ...]:
    return node.items if isinstance(node, Seq) and node.kind in ("list", "set") else (node,)


# -- as sets of points


def _same(wanted: Family, answer: Family, *, disjoint: bool = False) -> bool:
    try:
        points, names = _points(wanted.value)
        others, other_names = _points(answer.value)
        one = [_lattice(point, wanted.letters) for point in points]
        other = [_lattice(point, answer.letters) for point in others]
    except _OtherError:
        return False
    named_alike = names == other_names or not names or not other_names
    infinite = all(any(lattice.steps for lattice in lattices) for lattices in (one, other))
    alike = len({len(point) for point in (*points, *others)}) == 1
    return named_alike and infinite and alike and same_points(one, other, disjoint=disjoint)


def _points(node: Node) -> tuple[list[Point], tuple[str, ...]]:
    """The points of a family, and the names of their coordinates if it states them."""
    if isinstance(node, Named) and not node.arguments:
        return _points(node.value)[0], (node.name,)
    if (coordinates := _coordinates(node)) is not None:
        return [tuple(map(_value, coordinates))], _names(coordinates)
    items = _items(node)
    if items == (node,):
        return [(node,)], ()
    found = [_points(item) for item in items]
    names = {named for _, named in found}
    if len(names) > 1:
        raise _OtherError
    return [point for points, _ in found for point in points], names.pop()


def _coordinates(node: Node) -> Point | None:
    """The coordinates of a tuple or of x = 7+4k, y = 9-3k."""
    if isinstance(node, Seq) and node.kind == "tuple":
        return node.items
    if isinstance(node, Seq) and node.kind == "list" and len(set(_names(node.items))) == len(node.items) > 1:
        return node.items
    return None


def _names(items: Point) -> tuple[str, ...]:
    return tuple(item.name for item in items if isinstance(item, Named))


def _value(node: Node) -> Node:
    return node.value if isinstance(node, Named) else node


def _lattice(point: Point, letters: tuple[str, ...]) -> Lattice:
    offset: Vector = {}
    steps: dict[str, Vector] = {}
    for place, coordinate in enumerate(point):
        found = expression(coordinate, opaque=True)
        if found is None:
            raise _OtherError
        for term, factor in found.expand().as_coefficients_dict().items():
            inside = [symbol for symbol in term.free_symbols if symbol.name in letters]
            if not factor.is_Rational or len(inside) > 1:
                raise _OtherError
            unit = term / inside[0] if inside else term
            if inside and unit.has(inside[0]):
                raise _OtherError
            vector = steps.setdefault(inside[0].name, {}) if inside else offset
            key = (place, unit)
            vector[key] = vector.get(key, Fraction(0)) + Fraction(int(factor.p), int(factor.q))
    return Lattice(offset, tuple(steps.values()))
