"""Sets written as relations, differences and intersections; systems; functions by cases."""

from collections.abc import Callable
from fractions import Fraction
from random import Random

from benchmarks.verifier.pairs.pair import Case, unique
from benchmarks.verifier.pairs.writing import coefficient, fraction, total

_LETTERS = "xtwy"
_LESS, _MORE = ("<", r"\le"), (">", r"\ge")  # by whether the end belongs


def _number(rng: Random, value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else fraction(rng, value)


def _cuts(rng: Random, count: int) -> list[Fraction]:
    return sorted(unique(rng, lambda r: Fraction(r.randint(-30, 30), r.choice([1, 1, 1, 2, 3])), count))


def _interval(left: str, right: str, closed: tuple[bool, bool]) -> str:
    return f"{'(['[closed[0]]}{left}, {right}{')]'[closed[1]]}"


def a_half_line_and_a_point(rng: Random) -> Case:
    """{-5} ∪ [3, ∞) and x ≥ 3 or x = -5."""
    point, end = _cuts(rng, 2)
    closed, x = rng.random() < 0.5, rng.choice(_LETTERS)

    def write(point: Fraction, end: Fraction, closed: bool, style: int, x: str = x) -> str:
        p, e = _number(rng, point), _number(rng, end)
        half = f"{'[' if closed else '('}{e}, \\infty)"
        relation = f"{x} {_MORE[closed]} {e}"
        return [
            rf"\{{{p}\}} \cup {half}",
            rf"{half} \cup \{{{p}\}}",
            rf"{relation} \text{{ or }} {x} = {p}",
            rf"{x} = {p} \text{{ or }} {relation}",
            rf"{x} = {p}, {relation}",
            rf"{x} = {p} \lor {relation}",
        ][style]

    equal = [(f"style {i}", write(point, end, closed, i)) for i in range(6)]
    unequal = [
        ("open or closed", write(point, end, not closed, rng.randrange(6))),
        ("another point", write(point - 1, end, closed, rng.randrange(6))),
        ("another end", write(point, end + Fraction(1, 7), closed, rng.randrange(6))),
        ("without the point", write(point, end, closed, 0).split(r" \cup ")[1]),
        ("and", write(point, end, closed, 2).replace("or", "and")),
        ("another letter", write(point, end, closed, 2).replace(f"{x} =", "u =")),
    ]
    return Case(write(point, end, closed, rng.randrange(4)), equal, unequal)


def a_difference(rng: Random) -> Case:
    """(0, 9) ∖ {4} and (0, 4) ∪ (4, 9)."""
    a, b, c = _cuts(rng, 3)
    closed = (rng.random() < 0.5, rng.random() < 0.5)
    x = rng.choice(_LETTERS)
    left, hole, right = (_number(rng, v) for v in (a, b, c))
    whole = _interval(left, right, closed)
    below, above = (_LESS[end] for end in closed)
    first, second = _interval(left, hole, (closed[0], False)), _interval(hole, right, (False, closed[1]))
    equal = [
        ("setminus", rf"{whole} \setminus \{{{hole}\}}"),
        ("minus", rf"{whole} - \{{{hole}\}}"),
        ("backslash", rf"{whole} \backslash \{{{hole}\}}"),
        ("union", rf"{first} \cup {second}"),
        ("union", rf"{second} \cup {first}"),
        ("and", rf"{left} {below} {x} {above} {right} \text{{ and }} {x} \ne {hole}"),
        ("comma", rf"{left} {below} {x} {above} {right}, {x} \neq {hole}"),
        ("in two", rf"{left} {below} {x} < {hole} \text{{ or }} {hole} < {x} {above} {right}"),
    ]
    other = _number(rng, b + (c - b) / 3)
    unequal = [
        ("whole", whole),
        ("another hole", rf"{whole} \setminus \{{{other}\}}"),
        ("two holes", rf"{whole} - \{{{hole}, {other}\}}"),
        ("half", first),
        ("open or closed", rf"{_interval(left, right, (not closed[0], closed[1]))} \setminus \{{{hole}\}}"),
        ("the hole", rf"{left} {below} {x} {above} {right}"),
        ("hole belongs", rf"{_interval(left, hole, (closed[0], True))} \cup {second}"),
    ]
    return Case(rng.choice(equal[:6])[1], equal, unequal)


def an_intersection(rng: Random) -> Case:
    """[1, 4] ∩ (2, 6) and (2, 4]."""
    cuts = _cuts(rng, 4)
    a, b, c, d = (_number(rng, v) for v in cuts)
    outer, inner = rng.random() < 0.5, rng.random() < 0.5
    one, other = _interval(a, c, (outer, inner)), _interval(b, d, (outer, inner))
    x = rng.choice(_LETTERS)
    equal = [
        ("cap", rf"{one} \cap {other}"),
        ("cap", rf"{other} ∩ {one}"),
        ("interval", _interval(b, c, (outer, inner))),
        ("relation", f"{b} {_LESS[outer]} {x} {_LESS[inner]} {c}"),
    ]
    unequal = [
        ("union", rf"{one} \cup {other}"),
        ("open or closed", _interval(b, c, (not outer, inner))),
        ("open or closed", rf"{_interval(a, c, (outer, not inner))} \cap {other}"),
        ("one of two", one),
        ("another end", _interval(_number(rng, cuts[1] - Fraction(1, 5)), c, (outer, inner))),
    ]
    return Case(rng.choice(equal)[1], equal, unequal)


def a_magnitude(rng: Random) -> Case:
    """2 ≤ |w| ≤ 5/2 and [-5/2, -2] ∪ [2, 5/2]."""
    low, high = sorted(unique(rng, lambda r: Fraction(r.randint(1, 40), r.choice([1, 1, 2, 3])), 2))
    closed = (rng.random() < 0.5, rng.random() < 0.5)
    w = rng.choice("wxz")

    def relation(low: Fraction, high: Fraction, closed: tuple[bool, bool], inside: str) -> str:
        below, above = (_LESS[end] for end in closed)
        return f"{_number(rng, low)} {below} {inside} {above} {_number(rng, high)}"

    def union(low: Fraction, high: Fraction, closed: tuple[bool, bool]) -> str:
        a, b = _number(rng, low), _number(rng, high)
        minus = _number(rng, -high), _number(rng, -low)
        return rf"{_interval(*minus, closed[::-1])} \cup {_interval(a, b, closed)}"

    equal = [
        ("magnitude", relation(low, high, closed, f"|{w}|")),
        ("union", union(low, high, closed)),
        ("element of", rf"{w} \in {union(low, high, closed)}"),
    ]
    turned = (closed[0], not closed[1])
    unequal = [
        ("open or closed", relation(low, high, turned, f"|{w}|")),
        ("open or closed", union(low, high, turned)),
        ("positive only", relation(low, high, closed, w)),
        ("another end", relation(low, high + 1, closed, f"|{w}|")),
        ("another end", union(low, high + Fraction(1, 3), closed)),
        ("another letter", relation(low, high, closed, "|v|")) if rng.random() < 0.5 else ("inner only", f"[0, {low}]"),
    ]
    reference = rng.choice(equal[:2])[1]
    if reference == equal[1][1]:
        unequal = [pair for pair in unequal if pair[0] != "another letter"]
    return Case(reference, equal, unequal)


def an_unsolved_inequality(rng: Random) -> Case:
    """A reference answer (x - 1)(x - 4) < 0 accepts (1, 4), but not the other way round."""
    a, b = (Fraction(rng.randint(-12, 12)) for _ in range(2))
    if a == b:
        b += 3
    a, b = min(a, b), max(a, b)
    x, closed = rng.choice(_LETTERS), rng.random() < 0.5
    terms = [f"{x}^2"]
    if a + b:
        terms.append(coefficient(rng, -(a + b)) + x)
    if a * b:
        terms.append(str(a * b))
    sign = r"\le" if closed else "<"
    inside = _interval(str(a), str(b), (closed, closed))
    equal = [
        ("interval", inside),
        ("relation", f"{a} {sign} {x} {sign} {b}"),
        ("itself", f"{total(terms)} {sign} 0"),
    ]
    unequal = [
        ("open or closed", _interval(str(a), str(b), (not closed, closed))),
        ("outside", rf"(-\infty, {a}) \cup ({b}, \infty)"),
        ("another end", _interval(str(a), str(b + 1), (closed, closed))),
        ("the roots", f"{a}, {b}"),
    ]
    return Case(f"{total(terms)} {sign} 0", equal, unequal, symmetric=False)


# -- systems and functions by cases


def a_system(rng: Random) -> Case:
    r"""Values in \begin{cases}."""
    x, y = unique(rng, lambda r: Fraction(r.randint(-20, 20), r.choice([1, 1, 2, 3])), 2)

    def write(x: Fraction, y: Fraction, style: int) -> str:
        a, b = _number(rng, x), _number(rng, y)
        return [
            rf"\begin{{cases}} x = {a} \\ y = {b} \end{{cases}}",
            rf"\begin{{cases}} y = {b} \\ x = {a} \end{{cases}}",
            rf"\left\{{\begin{{array}}{{l}} x = {a} \\ y = {b} \end{{array}}\right.",
            f"x = {a}, y = {b}",
            f"(x, y) = ({a}, {b})",
            f"({a}, {b})",
        ][style]

    reference = write(x, y, rng.choice([0, 2, 3, 5]))
    solved = symmetric = rng.random() < 0.6
    if not solved:  # a reference answer that is not solved accepts the solution
        one, other = [Fraction(rng.choice([-3, -2, 2, 5])), Fraction(1)], [Fraction(1), Fraction(rng.choice([3, 4]))]
        rows = [
            f"{total([coefficient(rng, a) + 'x', coefficient(rng, b) + 'y'])} = {_number(rng, a * x + b * y)}"
            for a, b in (one, other)
        ]
        reference = rf"\begin{{cases}} {rows[0]} \\ {rows[1]} \end{{cases}}"
    equal = [(f"style {i}", write(x, y, i)) for i in range(6)]
    unequal = [
        ("swapped", write(y, x, rng.randrange(6))),
        ("one changed", write(x + 1, y, rng.randrange(6))),
        ("one changed", write(x, y - Fraction(1, 2), rng.randrange(6))),
        ("one missing", f"x = {_number(rng, x)}"),
    ]
    return Case(reference, equal, unequal, symmetric=symmetric)


def a_function_by_cases(rng: Random) -> Case:
    r"""Lines on two or three pieces, some of which meet at the ends."""
    count = rng.choice([2, 2, 3])
    ends = _cuts(rng, count - 1)
    lines = [(Fraction(rng.randint(-5, 5)), Fraction(rng.randint(-9, 9))) for _ in range(count)]
    for i, end in enumerate(ends):  # neighbours differ, and either meet at the end or do not
        while lines[i + 1] == lines[i]:
            lines[i + 1] = (lines[i][0] + rng.choice([-2, 1, 3]), lines[i + 1][1])
        if rng.random() < 0.4 and lines[i + 1][0] != lines[i][0]:
            lines[i + 1] = (lines[i + 1][0], (lines[i][0] - lines[i + 1][0]) * end + lines[i][1])
    with_left = [rng.random() < 0.5 for _ in ends]  # which piece has the end

    def line(a: Fraction, b: Fraction, x: str) -> str:
        terms = ([coefficient(rng, a) + x] if a else []) + ([_number(rng, b)] if b or not a else [])
        return total(terms if rng.random() < 0.7 else terms[::-1])

    def conditions(with_left: list[bool], x: str) -> list[str]:
        shown = [_number(rng, end) for end in ends]
        found = []
        for i in range(count):
            low = f"{shown[i - 1]} {_LESS[not with_left[i - 1]]} " if i else ""
            high = f" {_LESS[with_left[i]]} {shown[i]}" if i < count - 1 else ""
            found.append(low + x + high)
        return found

    def write(
        lines: list[tuple[Fraction, Fraction]], with_left: list[bool], x: str, style: int, named: str = ""
    ) -> str:
        rows = list(zip([line(a, b, x) for a, b in lines], conditions(with_left, x), strict=True))
        if style == 1:
            rng.shuffle(rows)
        cells = [f"{v} & {c}" if style == 0 else rf"{v}, & \text{{if }} {c}" for v, c in rows]
        if style == 2:
            cells[-1] = rf"{rows[-1][0]} & \text{{otherwise}}"
        body = r" \\ ".join(cells)
        return rf"{named}\begin{{cases}} {body} \end{{cases}}"

    meets = [lines[i][0] * end + lines[i][1] == lines[i + 1][0] * end + lines[i + 1][1] for i, end in enumerate(ends)]
    equal = [(f"style {style}", write(lines, with_left, "x", style)) for style in range(3)]
    equal.append(("named", write(lines, with_left, "x", 0, "f(x) = ")))
    other_side = [left != meet for left, meet in zip(with_left, meets, strict=True)]
    equal.append(("ends where pieces meet", write(lines, other_side, "x", 1)))
    unequal = [
        ("a constant", write([(lines[0][0], lines[0][1] + 1), *lines[1:]], with_left, "x", rng.randrange(3))),
        ("a slope", write([*lines[:-1], (lines[-1][0] + 1, lines[-1][1])], with_left, "x", rng.randrange(3))),
        ("one piece", line(*lines[0], "x")),
        ("order", write(lines[::-1], with_left, "x", 0)) if lines != lines[::-1] else ("nothing", "0"),
    ]
    if not all(meets):
        unequal.append(("an end", write(lines, [not left for left in with_left], "x", rng.randrange(3))))
    return Case(write(lines, with_left, "x", rng.randrange(3), rng.choice(["", "f(x) = "])), equal, unequal)


KINDS: dict[str, Callable[[Random], Case]] = {
    "half-line and point": a_half_line_and_a_point,
    "difference of sets": a_difference,
    "intersection": an_intersection,
    "magnitude": a_magnitude,
    "unsolved inequality": an_unsolved_inequality,
    "system": a_system,
    "function by cases": a_function_by_cases,
}
