"""Answers with several parts: sets, relations, tuples, unions, matrices, families, cases."""

from collections.abc import Callable
from fractions import Fraction
from random import Random

from benchmarks.verifier.pairs.pair import Case, small, unique
from benchmarks.verifier.pairs.writing import coefficient, fraction, total


def _part(rng: Random, value: Fraction) -> str:
    """A number as one part of an answer: no thousands separators, no mixed numbers."""
    return str(value.numerator) if value.denominator == 1 else fraction(rng, value)


def _draw(rng: Random) -> Callable[[Random], Fraction]:
    return rng.choice([small, small, lambda r: Fraction(r.randint(-99, 99)), lambda r: Fraction(r.randint(-9, 9))])


def _without(values: list[Fraction], index: int) -> list[Fraction]:
    return values[:index] + values[index + 1 :]


def _changed(rng: Random, values: list[Fraction]) -> list[tuple[str, list[Fraction]]]:
    """One value added, removed or changed; all differ from `values` both as sets and as sequences."""
    place = rng.randrange(len(values))
    new = next(v for v in (Fraction(n) for n in range(1, 99)) if v not in values and -v not in values)
    variants = [
        ("one missing", _without(values, place)),
        ("one too many", [*values, new]),
        ("one different", [*values[:place], new, *values[place + 1 :]]),
    ]
    if -values[place] not in values:
        variants.append(("a sign", [*values[:place], -values[place], *values[place + 1 :]]))
    off = values[place] + 1
    if off not in values:
        variants.append(("one off by one", [*values[:place], off, *values[place + 1 :]]))
    return variants


def a_set(rng: Random) -> Case:
    """Order does not matter; the reference answer is a list or a set in braces."""
    values = unique(rng, _draw(rng), rng.randint(2, 5))

    def write(values: list[Fraction], style: int) -> str:
        parts = [_part(rng, v) for v in rng.sample(values, len(values))]
        return [
            ", ".join(parts),
            ",".join(parts),
            r"\{" + ", ".join(parts) + r"\}",
            r"\left\{" + ",".join(parts) + r"\right\}",
            (", ".join(parts[:-1]) + r" \text{ and } " if len(parts) > 1 else "") + parts[-1],
            r" \text{ or } ".join(f"x = {p}" for p in parts),
            ", ".join(f"x = {p}" for p in parts),
            ", ".join(f"x_{i} = {p}" for i, p in enumerate(parts, 1)),
            "x = " + ", ".join(parts),
            r"x \in \{" + ", ".join(parts) + r"\}",
        ][style]

    names = ["list", "list", "set", "set", "and", "or", "named", "numbered", "named once", "element of"]
    equal = [(name, write(values, style)) for style, name in enumerate(names)]
    unequal = [(why, write(other, rng.randrange(4))) for why, other in _changed(rng, values)]
    unequal.append(("one of them alone", _part(rng, rng.choice(values))))
    style = rng.choice([0, 0, 2, 3])
    if style > 1:  # a bare list may be meant as ordered
        unequal.append(("ordered", "(" + ", ".join(_part(rng, v) for v in rng.sample(values, len(values))) + ")"))
    return Case(write(values, style), equal, unequal)


def a_plus_minus(rng: Random) -> Case:
    """Two roots a ± b√m against their list."""
    a, b, m = rng.choice([Fraction(0), small(rng), small(rng)]), abs(small(rng)), rng.choice([1, 2, 3, 5, 7, 11])
    root = rf"\sqrt{{{m}}}" if m > 1 else ""

    def parts(a: Fraction, b: Fraction, root: str) -> tuple[str, str]:
        first = (coefficient(rng, a) if abs(a) != 1 else str(a)) if a else ""
        second = coefficient(rng, b) + root if root else str(b) if b == 1 else coefficient(rng, b)
        return first, second

    def short(a: Fraction, b: Fraction, root: str) -> str:
        first, second = parts(a, b, root)
        return rf"{first} \pm {second}".strip()

    def long(a: Fraction, b: Fraction, root: str) -> list[str]:
        first, second = parts(a, b, root)
        return [total([first, second]), total([first, "-" + second])] if first else [second, "-" + second]

    one, two = long(a, b, root)
    equal = [
        ("plus or minus", short(a, b, root)),
        ("named", "x = " + short(a, b, root)),
        ("list", f"{one}, {two}"),
        ("list", f"{two}, {one}"),
        ("set", rf"\{{{one}, {two}\}}"),
        ("or", rf"x = {one} \text{{ or }} x = {two}"),
    ]
    unequal = [
        ("one of two", one),
        ("one of two", two),
        ("coefficient", short(a, b + 1, root)),
        ("middle", short(a + rng.choice([1, 2]), b, root)),
        ("one of two changed", f"{one}, {long(a, b + 1, root)[1]}"),
    ]
    return Case(equal[rng.choice([0, 2, 4])][1], equal, unequal)


def a_tuple(rng: Random) -> Case:
    values = [_draw(rng)(rng) for _ in range(rng.randint(2, 4))]
    names = ["x, y", "x, y, z", "a, b, c, d"][len(values) - 2]

    def write(values: list[Fraction]) -> str:
        return "(" + rng.choice([", ", ","]).join(_part(rng, v) for v in values) + ")"

    equal = [("tuple", write(values)), ("tuple", write(values)), ("named", f"({names}) = {write(values)}")]
    unequal = [(why, write(other)) for why, other in _changed(rng, values) if len(other) > 1]
    unequal.append(("about another", rf"{write(values)} \approx {write([v + 1 for v in values])}"))
    unequal += [("nothing", r"\emptyset"), ("nothing", r"\text{no solution}")]
    i, j = rng.sample(range(len(values)), 2)
    if values[i] != values[j]:
        swapped = list(values)
        swapped[i], swapped[j] = values[j], values[i]
        unequal += [("two swapped", write(swapped))] * 2
    if len(set(values)) == len(values):
        unequal.append(("a set", r"\{" + ", ".join(_part(rng, v) for v in values) + r"\}"))
    return Case(write(values), equal, unequal)


def some_points(rng: Random) -> Case:
    """Several tuples: order matters within each, not between them."""
    size = rng.choice([2, 2, 3])
    points: list[tuple[Fraction, ...]] = []
    while len(points) < rng.randint(2, 4):
        point = tuple(Fraction(rng.randint(-12, 12), rng.choice([1, 1, 1, 2])) for _ in range(size))
        if point not in points:
            points.append(point)

    def write(points: list[tuple[Fraction, ...]], braces: bool = False) -> str:
        shown = [f"({', '.join(_part(rng, v) for v in p)})" for p in rng.sample(points, len(points))]
        text = rng.choice([", ", ",", r" \text{ and } " if len(points) == 2 else ", "]).join(shown)
        return rf"\{{{text}\}}" if braces else text

    equal = [("list", write(points)), ("list", write(points)), ("set", write(points, True))]
    first = points[0]
    moved = (first[0] + 1, *first[1:])
    unequal = [("one missing", write(points[1:]))]
    if moved not in points:
        unequal += [("one coordinate", write([moved, *points[1:]])), ("one too many", write([*points, moved]))]
    turned = (first[1], first[0], *first[2:])
    if turned not in points:
        unequal += [("one turned round", write([turned, *points[1:]]))]
    negative = (first[0], -first[1], *first[2:])
    if negative not in points:
        unequal.append(("a sign", write([negative, *points[1:]])))
    return Case(write(points, rng.random() < 0.3), equal, unequal)


def a_union(rng: Random) -> Case:
    """Two disjoint intervals."""
    cuts = sorted(unique(rng, lambda r: Fraction(r.randint(-30, 30), r.choice([1, 1, 2, 3])), 4))
    infinite = rng.random() < 0.6
    closed = [rng.random() < 0.5 for _ in range(4)]

    def write(cuts: list[Fraction], closed: list[bool], order: bool, sign: str = r" \cup ") -> str:
        a, b, c, d = (_part(rng, v) for v in cuts)
        left = f"(-\\infty, {b}" if infinite else f"{'[' if closed[0] else '('}{a}, {b}"
        right = rng.choice([r"\infty)", r"+\infty)", "∞)"]) if infinite else f"{d}{']' if closed[3] else ')'}"
        first = left + ("]" if closed[1] else ")")
        second = f"{'[' if closed[2] else '('}{c}, {right}"
        return sign.join([first, second] if order else [second, first])

    equal = [
        ("union", write(cuts, closed, True)),
        ("other order", write(cuts, closed, False)),
        ("element of", r"x \in " + write(cuts, closed, True)),
        ("sign", write(cuts, closed, True, " ∪ ")),
    ]
    inner = rng.choice([1, 2])
    opened = [not c if i == inner else c for i, c in enumerate(closed)]
    moved = [c + Fraction(1, 97) if i == inner else c for i, c in enumerate(cuts)]
    one = write(cuts, closed, True)
    unequal = [
        ("open or closed", write(cuts, opened, True)),
        ("an end", write(moved, closed, True)),
        ("one of two", one.split(r" \cup ")[0]),
        ("intersection", one.replace(r"\cup", r"\cap")),
    ]
    return Case(one, equal, unequal)


def a_matrix(rng: Random) -> Case:
    rows, columns = rng.choice([(2, 2), (2, 2), (3, 1), (2, 1), (2, 3), (3, 3), (1, 3)])
    entries = [[_draw(rng)(rng) for _ in range(columns)] for _ in range(rows)]

    def write(entries: list[list[Fraction]], style: int) -> str:
        body = r" \\ ".join(rng.choice([" & ", "&"]).join(_part(rng, v) for v in row) for row in entries)
        if style == 2:
            return rf"\left[\begin{{array}}{{{'c' * len(entries[0])}}}{body}\end{{array}}\right]"
        name = ["pmatrix", "bmatrix"][style]
        return rf"\begin{{{name}}}{body}\end{{{name}}}"

    equal = [(name, write(entries, style)) for style, name in enumerate(["round", "square", "array"])] + [
        ("named", "A = " + write(entries, 0))
    ]
    i, j = rng.randrange(rows), rng.randrange(columns)

    def put(value: Fraction) -> list[list[Fraction]]:
        return [[value if (r, c) == (i, j) else v for c, v in enumerate(row)] for r, row in enumerate(entries)]

    unequal = [
        ("an entry", write(put(entries[i][j] + 1), 0)),
        ("an entry", write(put(entries[i][j] - Fraction(1, 3)), 1)),
    ]
    if entries[i][j]:
        unequal.append(("a sign", write(put(-entries[i][j]), 0)))
    transposed = [list(column) for column in zip(*entries, strict=True)]
    if transposed != entries:
        unequal.append(("transposed", write(transposed, 0)))
    if rows > 1 and entries[::-1] != entries:
        unequal.append(("rows swapped", write(entries[::-1], 0)))
    if rows > 1:
        unequal.append(("a row missing", write(entries[:-1], 0)))
    return Case(write(entries, rng.randrange(2)), equal, unequal)


def _ordered(rng: Random, count: int) -> list[int]:
    return sorted(rng.sample(range(-20, 21), count))


def a_punctured_interval(rng: Random) -> Case:
    """An interval without a point, and a ray with a point."""
    a, point, b = _ordered(rng, 3)
    reference = f"({a},{point})\\cup({point},{b})"
    equal = [
        ("difference", f"({a},{b}) \\setminus \\{{{point}\\}}"),
        ("minus", f"({a},{b}) - \\{{{point}\\}}"),
        ("relations", f"{a} < x < {point} \\text{{ or }} {point} < x < {b}"),
        ("the other order", f"({point},{b})\\cup({a},{point})"),
    ]
    unequal = [
        ("the point too", f"({a},{b})"),
        ("another point", f"({a},{b}) \\setminus \\{{{b + 1}\\}}"),
        ("a closed end", f"({a},{b}] \\setminus \\{{{point}\\}}"),
        ("a relation closed", f"{a} \\le x < {point} \\text{{ or }} {point} < x < {b}"),
        ("one part", f"({a},{point})"),
    ]
    return Case(reference, equal, unequal)


def a_ray_and_a_point(rng: Random) -> Case:
    point, end = _ordered(rng, 2)
    reference = f"\\{{{point}\\}}\\cup[{end},\\infty)"
    equal = [
        ("relations", f"x \\ge {end} \\text{{ or }} x = {point}"),
        ("the other order", f"[{end},\\infty)\\cup\\{{{point}\\}}"),
    ]
    unequal = [
        ("an open end", f"x > {end} \\text{{ or }} x = {point}"),
        ("no point", f"x \\ge {end}"),
        ("another point", f"x \\ge {end} \\text{{ or }} x = {point - 1}"),
        ("the other side", f"x \\le {end} \\text{{ or }} x = {point}"),
    ]
    return Case(reference, equal, unequal)


def an_intersection(rng: Random) -> Case:
    a, b, c, d = _ordered(rng, 4)
    reference = f"({b},{c}]"
    equal = [("intersection", f"[{a},{c}]\\cap({b},{d})"), ("relation", f"{b} < x \\le {c}")]
    unequal = [
        ("union", f"[{a},{c}]\\cup({b},{d})"),
        ("a closed end", f"[{a},{c}]\\cap[{b},{d})"),
        ("an open end", f"{b} < x < {c}"),
    ]
    return Case(reference, equal, unequal)


def a_magnitude(rng: Random) -> Case:
    low, high = sorted(rng.sample(range(1, 30), 2))
    reference = f"{low} \\le |w| \\le {high}"
    equal = [
        ("union", f"[-{high},-{low}]\\cup[{low},{high}]"),
        ("reversed", f"{high} \\ge |w| \\ge {low}"),
    ]
    unequal = [
        ("one side", f"[{low},{high}]"),
        ("without bars", f"{low} \\le w \\le {high}"),
        ("an open end", f"{low} \\le |w| < {high}"),
        ("the whole", f"[-{high},{high}]"),
    ]
    return Case(reference, equal, unequal)


def a_family(rng: Random) -> Case:
    """Points on a line with whole coordinates; the index may be shifted, negated or named otherwise."""
    x, y = rng.randint(-9, 9), rng.randint(-9, 9)
    dx, dy = rng.randint(2, 9), rng.choice([-1, 1]) * rng.randint(2, 9)

    def write(x: int, y: int, dx: int, dy: int, letter: str = "n") -> str:
        return f"({x}{dx:+d}{letter}, {y}{dy:+d}{letter}), {letter} \\in \\mathbb{{Z}}"

    shift = rng.choice([-2, -1, 1, 2])
    equal = [
        ("another letter", write(x, y, dx, dy, "k")),
        ("shifted", write(x + shift * dx, y + shift * dy, dx, dy, "t")),
        ("negated", write(x, y, -dx, -dy, "k")),
    ]
    unequal = [
        ("every other", write(x, y, 2 * dx, 2 * dy, "k")),
        ("the other direction", write(x, y, dx, -dy, "k")),
        ("another start", write(x + 1, y, dx, dy, "k")),
        ("one member", f"({x}, {y})"),
    ]
    return Case(write(x, y, dx, dy), equal, unequal)


def some_residues(rng: Random) -> Case:
    modulus = rng.randint(3, 9)
    first, second = sorted(rng.sample(range(1, modulus), 2))
    reference = f"n = {modulus}k+{first} \\text{{ or }} n = {modulus}k+{second}"
    equal = [
        ("congruence", f"n \\equiv {first}, {second} \\pmod{{{modulus}}}"),
        ("another letter", f"n = {modulus}m+{second} \\text{{ or }} n = {modulus}m+{first}"),
    ]
    unequal = [
        ("one class", f"n = {modulus}k+{first}"),
        ("one congruence", f"n \\equiv {second} \\pmod{{{modulus}}}"),
        ("another modulus", f"n \\equiv {first}, {second} \\pmod{{{modulus + 1}}}"),
        ("another class", f"n \\equiv {first}, {second}, 0 \\pmod{{{modulus}}}"),
    ]
    return Case(reference, equal, unequal)


def some_cases(rng: Random) -> Case:
    """A function by cases; rows in another order, or the last one as "otherwise"."""
    end, left, right = rng.randint(-9, 9), rng.randint(2, 9), rng.randint(10, 19)

    def write(*rows: str) -> str:
        return "\\begin{cases} " + " \\\\ ".join(rows) + " \\end{cases}"

    above, below = f"{right}x & x \\ge {end}", f"{left}x & x < {end}"
    equal = [
        ("rows swapped", write(below, above)),
        ("otherwise", write(above, f"{left}x & \\text{{otherwise}}")),
        ("if", write(f"{right}x, & \\text{{if }} x \\ge {end}", f"{left}x, & \\text{{if }} x < {end}")),
    ]
    unequal = [
        ("another value", write(f"{right + 1}x & x \\ge {end}", below)),
        ("conditions swapped", write(f"{left}x & x \\ge {end}", f"{right}x & x < {end}")),
        ("another end", write(f"{right}x & x \\ge {end + 1}", f"{left}x & x < {end + 1}")),
        ("one case", f"{right}x"),
    ]
    return Case(write(above, below), equal, unequal)


KINDS = {
    "set": a_set,
    "punctured interval": a_punctured_interval,
    "ray and point": a_ray_and_a_point,
    "intersection": an_intersection,
    "magnitude": a_magnitude,
    "family": a_family,
    "residues": some_residues,
    "cases": some_cases,
    "plus or minus": a_plus_minus,
    "tuple": a_tuple,
    "points": some_points,
    "union": a_union,
    "matrix": a_matrix,
}
