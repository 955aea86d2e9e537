"""Shifted lattices, exactly: the points offset + k·step for all whole k, for one or several steps."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

Vector = dict[Hashable, Fraction]
Row = tuple[int, ...]

_MAX_COSETS = 1000  # of one progression


@dataclass(frozen=True, slots=True)
class Lattice:
    """Lattice({0: 1}, ({0: 3},)) are the numbers 3k+1; coordinates may have any keys, zeros may be left out."""

    offset: Vector
    steps: tuple[Vector, ...]


def same_points(one: Sequence[Lattice], other: Sequence[Lattice], *, disjoint: bool = False) -> bool:
    """Whether two unions are the same set of points. disjoint: and neither has a point twice."""
    both = [_Integral(lattice, *_scale([*one, *other])) for lattice in (*one, *other)]
    periods: dict[Row, int] = {}  # by direction: a period that all progressions in it have in common
    for lattice in both:
        if len(lattice.rows) == 1:
            periods[lattice.direction] = lcm(periods.get(lattice.direction, 1), lattice.period)
    if any(len(item.rows) == 1 and periods[item.direction] > _MAX_COSETS * item.period for item in both):
        return False
    left = [coset for lattice in both[: len(one)] for coset in lattice.cosets(periods)]
    right = [coset for lattice in both[len(one) :] for coset in lattice.cosets(periods)]
    if disjoint and len({*left}) + len({*right}) < len(left) + len(right):
        return False
    return _without_covered(left) == _without_covered(right)


def _scale(lattices: Sequence[Lattice]) -> tuple[list[Hashable], int]:
    """All coordinates, and a number that makes all of them whole."""
    vectors = [vector for lattice in lattices for vector in (lattice.offset, *lattice.steps)]
    keys = list(dict.fromkeys(key for vector in vectors for key in vector))
    return keys, lcm(*(number.denominator for vector in vectors for number in vector.values()))


class _Integral:
    """A lattice with integer coordinates: `rows` in Hermite normal form, `offset` reduced by them."""

    def __init__(self, lattice: Lattice, keys: Sequence[Hashable], scale: int) -> None:
        def row(vector: Vector) -> Row:
            return tuple(int(vector.get(key, 0) * scale) for key in keys)

        self.rows = _hermite([row(step) for step in lattice.steps])
        self.offset = _reduced(row(lattice.offset), self.rows)
        if len(self.rows) == 1:
            self.period = gcd(*self.rows[0])
            self.direction = tuple(entry // self.period for entry in self.rows[0])

    def cosets(self, periods: dict[Row, int]) -> list[tuple[tuple[Row, ...], Row]]:
        """A progression 2k as 6k, 6k+2, 6k+4 where the common period is 6; everything else as it is."""
        if len(self.rows) != 1:
            return [(self.rows, self.offset)]
        period = periods[self.direction]
        rows = (tuple(entry * period for entry in self.direction),)
        shifts = range(0, period, self.period)
        return [
            (rows, _reduced(tuple(o + shift * d for o, d in zip(self.offset, self.direction, strict=True)), rows))
            for shift in shifts
        ]


def _hermite(rows: list[Row]) -> tuple[Row, ...]:
    """The Hermite normal form: pivots positive, entries above a pivot between 0 and the pivot."""
    done: list[Row] = []
    rows = [row for row in rows if any(row)]
    for column in range(len(rows[0]) if rows else 0):
        while len(live := sorted((row for row in rows if row[column]), key=lambda row: abs(row[column]))) > 1:
            least = live[0]
            rows = [row if row is least else _minus(row, least, row[column] // least[column]) for row in rows]
            rows = [row for row in rows if any(row)]
        if live:
            [pivot] = live
            rows = [row for row in rows if row is not pivot]
            pivot = pivot if pivot[column] > 0 else tuple(-entry for entry in pivot)
            done = [_minus(row, pivot, row[column] // pivot[column]) for row in done] + [pivot]
    return tuple(done)


def _reduced(row: Row, rows: Sequence[Row]) -> Row:
    """The point modulo the lattice."""
    for step in rows:
        column = next(i for i, entry in enumerate(step) if entry)
        row = _minus(row, step, row[column] // step[column])
    return row


def _minus(row: Row, other: Row, factor: int) -> Row:
    return tuple(a - factor * b for a, b in zip(row, other, strict=True))


def _without_covered(cosets: Sequence[tuple[tuple[Row, ...], Row]]) -> set[tuple[tuple[Row, ...], Row]]:
    """The cosets without single points that lie in another."""

    def covers(coset: tuple[tuple[Row, ...], Row], point: Row) -> bool:
        rows, offset = coset
        return not any(_reduced(_minus(point, offset, 1), rows))

    infinite = {coset for coset in cosets if coset[0]}
    return infinite | {
        (rows, point) for rows, point in cosets if not rows and not any(covers(coset, point) for coset in infinite)
    }
