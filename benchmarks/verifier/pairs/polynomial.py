"""Polynomials as tables of coefficients, and products, quotients, functions and equations built from them."""

import math
from fractions import Fraction
from random import Random

from benchmarks.verifier.pairs.pair import Case, small
from benchmarks.verifier.pairs.writing import (
    coefficient,
    total,
)

Polynomial = dict[tuple[int, int], Fraction]  # exponents of the two letters -> nonzero coefficient


def _poly(*terms: tuple[int, int, Fraction | int]) -> Polynomial:
    out: Polynomial = {}
    for i, j, c in terms:
        out[i, j] = out.get((i, j), Fraction(0)) + c
    return {powers: c for powers, c in out.items() if c}


def _times(p: Polynomial, q: Polynomial) -> Polynomial:
    return _poly(*((i + k, j + m, c * d) for (i, j), c in p.items() for (k, m), d in q.items()))


def _plus(p: Polynomial, q: Polynomial) -> Polynomial:
    return _poly(*((i, j, c) for part in (p, q) for (i, j), c in part.items()))


def _write(rng: Random, p: Polynomial, letters: str = "xy", shuffled: bool = False) -> str:
    """The terms, highest power first or shuffled."""
    powers = sorted(p, reverse=True)
    if shuffled:
        rng.shuffle(powers)
    terms = []
    for exponents in powers:
        symbols = "".join(
            letter + ("" if e == 1 else f"^{e}" if e < 10 and rng.random() < 0.7 else f"^{{{e}}}")
            for letter, e in zip(letters, exponents, strict=True)
            if e
        )
        c = p[exponents]
        terms.append(coefficient(rng, c) + symbols if symbols else (str(c) if abs(c) == 1 else coefficient(rng, c)))
    return total(terms, spaced=rng.random() < 0.7) if terms else "0"


def _random_poly(rng: Random, letters: int, degree: int, whole: bool = False) -> Polynomial:
    while True:
        terms = []
        for _ in range(rng.randint(2, 4)):
            i = rng.randint(0, degree)
            j = rng.randint(0, degree - i) if letters == 2 else 0
            terms.append((i, j, Fraction(rng.choice([-1, 1]) * rng.randint(1, 12)) if whole else small(rng)))
        p = _poly(*terms)
        if len(p) > 1 and any(i or j for i, j in p):
            return p


def _near(rng: Random, p: Polynomial) -> list[tuple[str, Polynomial]]:
    """Polynomials that differ from p in one place, labelled."""
    (i, j), c = rng.choice(sorted(p.items()))
    rest = {powers: value for powers, value in p.items() if powers != (i, j)}
    variants = [
        ("a coefficient", _plus(p, {(i, j): Fraction(rng.choice([-1, 1]))})),
        ("a sign", _plus(rest, {(i, j): -c})),
        ("a term missing", rest),
        ("a constant more", _plus(p, {(0, 0): Fraction(1)})),
        ("negative", _times(p, {(0, 0): Fraction(-1)})),
    ]
    if i > 1:
        variants.append(("an exponent dropped", _plus(rest, {(1, j): c})))
    if i:
        variants.append(("an exponent", _plus(rest, {(i + 1, j): c})))
    return [(why, other) for why, other in variants if other != p and other]


def a_polynomial(rng: Random) -> Case:
    letters = rng.choice(["xy", "xy", "ab", "nm", "ts", "rh"])
    p = _random_poly(rng, rng.choice([1, 1, 2]), rng.randint(1, 4))
    common = math.lcm(*(c.denominator for c in p.values()))
    equal = [
        ("sum", _write(rng, p, letters)),
        ("order", _write(rng, p, letters, True)),
        ("order", _write(rng, p, letters, True)),
    ]
    equal.append(("spread", " + ".join(f"({_write(rng, {powers: c}, letters)})" for powers, c in p.items())))
    if common > 1:
        equal.append(
            ("over one bar", rf"\frac{{{_write(rng, _times(p, {(0, 0): Fraction(common)}), letters)}}}{{{common}}}")
        )
    unequal = [(why, _write(rng, other, letters, rng.random() < 0.5)) for why, other in _near(rng, p)]
    other_letters = "uv" if letters != "uv" else "xy"
    unequal.append(("letters", _write(rng, p, other_letters)))
    return Case(_write(rng, p, letters), equal, unequal)


def a_product(rng: Random) -> Case:
    """Factors and their expanded product."""
    letter = rng.choice("xnta")
    factors = [
        _poly((1, 0, rng.choice([1, 1, 2, 3])), (0, 0, rng.choice([-1, 1]) * rng.randint(1, 9)))
        for _ in range(rng.randint(2, 3))
    ]
    if rng.random() < 0.3:
        factors[1] = factors[0]
    scale = rng.choice([1, 1, 1, -1, 2, 3, 5])
    p = {(0, 0): Fraction(scale)}
    for factor in factors:
        p = _times(p, factor)

    def product(parts: list[Polynomial], scale: int) -> str:
        return coefficient(rng, Fraction(scale)) + "".join(f"({_write(rng, f, letter + 'z')})" for f in parts)

    equal = [("expanded", _write(rng, p, letter + "z")), ("factors", product(factors, scale))]
    equal.append(("factors in another order", product(factors[::-1], scale)))
    if len(factors) == 2 and factors[0] == factors[1]:
        equal.append(("square", coefficient(rng, Fraction(scale)) + rf"({_write(rng, factors[0], letter + 'z')})^2"))
    part = _times(_times(factors[0], factors[1]), {(0, 0): Fraction(scale)})
    rest = "".join(f"({_write(rng, f, letter + 'z')})" for f in factors[2:])
    equal.append(("half expanded", f"({_write(rng, part, letter + 'z')}){rest}"))
    wrong = [(why, _write(rng, other, letter + "z")) for why, other in _near(rng, p)]
    flipped = [_plus(factors[0], {(0, 0): -2 * factors[0][0, 0]}), *factors[1:]]
    if _times(flipped[0], flipped[1]) != _times(factors[0], factors[1]):
        wrong.append(("sign in a factor", product(flipped, scale)))
    wrong.append(("a factor missing", product(factors[1:], scale)))
    return Case(equal[rng.randrange(2)][1], equal, wrong)


def a_rational_function(rng: Random) -> Case:
    """A/(x-a) + B/(x-b) and the single fraction."""
    letter = rng.choice("xnt")
    a, b = rng.sample([n for n in range(-7, 8) if n], 2)
    top_a, top_b = (rng.choice([-1, 1]) * rng.randint(1, 7) for _ in "AB")
    x_a, x_b = _poly((1, 0, 1), (0, 0, -a)), _poly((1, 0, 1), (0, 0, -b))

    def write(p: Polynomial) -> str:
        return _write(rng, p, letter + "z")

    def sum_(top_a: int, top_b: int) -> str:
        parts = [rf"{'-' if c < 0 else ''}\frac{{{abs(c)}}}{{{write(x)}}}" for c, x in ((top_a, x_a), (top_b, x_b))]
        return total(parts if rng.random() < 0.5 else parts[::-1])

    def one(top: Polynomial) -> str:
        below = f"({write(x_a)})({write(x_b)})" if rng.random() < 0.5 else write(_times(x_a, x_b))
        return rf"\frac{{{write(top)}}}{{{below}}}"

    top = _plus(_times(x_b, {(0, 0): Fraction(top_a)}), _times(x_a, {(0, 0): Fraction(top_b)}))
    extra = _poly((1, 0, 1), (0, 0, rng.randint(8, 12)))
    equal = [
        ("partial fractions", sum_(top_a, top_b)),
        ("one fraction", one(top)),
        ("negative fraction", "-" + one(_times(top, {(0, 0): Fraction(-1)}))),
    ]
    equal.append(
        ("not reduced", rf"\frac{{{write(_times(top, extra))}}}{{({write(x_a)})({write(_times(x_b, extra))})}}")
    )
    unequal = [("numerators", sum_(top_a + 9, top_b)), ("a sign", sum_(top_a, -top_b)), ("negative", "-" + one(top))]
    unequal += [(why, one(other)) for why, other in _near(rng, top)]
    return Case(equal[rng.randrange(2)][1], equal, unequal)


def a_function(rng: Random) -> Case:
    """f(x) = … and y = …, and the right-hand side alone."""
    p = _random_poly(rng, 1, 3, whole=True)
    names = ["f(x) = ", "y = ", "f(x)=", "g(x) = ", "p(x) = "]
    name = rng.choice(names)
    equal = [
        ("named", name + _write(rng, p)),
        ("the expression alone", _write(rng, p, shuffled=True)),
        ("order", name + _write(rng, p, shuffled=True)),
    ]
    equal.append(
        ("another letter", f"{name[0]}(t) = " + _write(rng, p, "tz"))
        if "(" in name
        else ("order", name + _write(rng, p, shuffled=True))
    )
    unequal = [(why, rng.choice([name, ""]) + _write(rng, other)) for why, other in _near(rng, p)]
    return Case(name + _write(rng, p), equal, unequal)


def an_equation(rng: Random) -> Case:
    """A curve in x and y: any multiple, terms on either side."""
    if rng.random() < 0.6:
        p = _poly(
            (1, 0, rng.choice([-1, 1]) * rng.randint(1, 9)),
            (0, 1, rng.choice([-1, 1]) * rng.randint(1, 9)),
            (0, 0, rng.choice([-1, 1]) * rng.randint(1, 20)),
        )
    else:
        h, k, r = rng.randint(-5, 5), rng.randint(-5, 5), rng.randint(1, 9)
        p = _poly((2, 0, 1), (1, 0, -2 * h), (0, 2, 1), (0, 1, -2 * k), (0, 0, h * h + k * k - r * r))

    def write(p: Polynomial, factor: Fraction) -> str:
        q = _times(p, {(0, 0): factor})
        left = {powers: c for powers, c in q.items() if powers != (0, 0) and rng.random() < 0.8}
        if not left or rng.random() < 0.4:
            return _write(rng, q) + " = 0"
        right = _times(_plus(q, _times(left, {(0, 0): Fraction(-1)})), {(0, 0): Fraction(-1)})
        return f"{_write(rng, left)} = {_write(rng, right)}"

    factors = [Fraction(1), Fraction(-1), Fraction(2), Fraction(-3), Fraction(1, 2)]
    equal = [("rearranged", write(p, f)) for f in factors]
    if (0, 1) in p and (0, 2) not in p:
        solved = {powers: -c / p[0, 1] for powers, c in p.items() if powers != (0, 1)}
        equal += [("solved for y", "y = " + _write(rng, solved))] * 2
    elif (0, 2) in p:
        square = [
            f"({_write(rng, _poly((1, 0, 1), (0, 0, -c)), letter + 'z')})^2" if c else f"{letter}^2"
            for c, letter in ((h, "x"), (k, "y"))
        ]
        equal += [("completed squares", f"{square[0]} + {square[1]} = {r * r}")] * 2
    unequal = [(why, write(other, Fraction(1))) for why, other in _near(rng, p) if why != "negative" and len(other) > 1]
    return Case(write(p, Fraction(1)), equal, [u for u in unequal if "y" in u[1] or "x" in u[1]])


KINDS = {
    "polynomial": a_polynomial,
    "product": a_product,
    "rational function": a_rational_function,
    "function": a_function,
    "equation": an_equation,
}
