"""Powers, identities, absolute values, floors, inequalities: true for all values of a letter, or almost all."""

from fractions import Fraction
from random import Random

from benchmarks.verifier.pairs.pair import Case, small
from benchmarks.verifier.pairs.writing import coefficient, number


def a_power(rng: Random) -> Case:
    """Laws of exponents, without those that fail for negative numbers."""
    base, n = rng.choice(["2", "3", "5", "10", "e"]), rng.choice(["n", "k", "x", "m"])
    a, b = rng.randint(1, 6), rng.randint(2, 5)
    if rng.random() < 0.5:
        equal = [
            ("sum of exponents", rf"{base}^{{{n}+{a}}}"),
            ("product", rf"{base}^{{{a}}} \cdot {base}^{n}"),
            ("other order", rf"{base}^{{{a}+{n}}}"),
        ]
        if base != "e":
            equal.append(("digits", rf"{int(base) ** a} \cdot {base}^{{{n}}}"))
        equal.append(("quotient", rf"\frac{{{base}^{{{n}+{a + b}}}}}{{{base}^{b}}}"))
        unequal = [
            ("exponent", rf"{base}^{{{n}+{a + 1}}}"),
            ("exponent lost", rf"{base}^{{{n}}}"),
            ("product of exponents", rf"{base}^{{{a + 1}{n}}}"),
            ("sum", rf"{base}^{{{n}}} + {base}^{{{a}}}"),
            ("sign", rf"-{base}^{{{n}+{a}}}"),
            ("exponent's sign", rf"{base}^{{{n}-{a}}}"),
        ]
    else:
        letter = rng.choice("xyt")
        equal = [
            ("negative power", rf"{letter}^{{-{a}}}"),
            ("fraction", rf"\frac{{1}}{{{letter}^{a}}}"),
            ("quotient", rf"\frac{{{letter}^{{{b}}}}}{{{letter}^{{{a + b}}}}}"),
            ("slash", rf"1/{letter}^{a}"),
        ]
        unequal = [
            ("exponent's sign", rf"{letter}^{{{a}}}"),
            ("exponent", rf"\frac{{1}}{{{letter}^{{{a + 1}}}}}"),
            ("sign", rf"-\frac{{1}}{{{letter}^{a}}}"),
            ("letter", rf"\frac{{1}}{{z^{a}}}"),
            ("doubled", rf"\frac{{2}}{{{letter}^{a}}}"),
        ]
    return Case(equal[rng.randrange(2)][1], equal, unequal)


def an_identity(rng: Random) -> Case:
    """Textbook trigonometric identities with a random argument."""
    k = rng.choice(["", "", "2", "3", "5"])
    x = k + rng.choice(["x", r"\theta", "t", r"\alpha"])
    double = f"{2 * int(k or 1)}{x.removeprefix(k)}"
    families = [
        ([rf"\sin^2({x}) + \cos^2({x}) + 1", "2"], ["1", "0", r"2\sin(x)"]),
        (
            [rf"1 + \tan^2({x})", rf"\sec^2({x})", rf"\frac{{1}}{{\cos^2({x})}}"],
            [rf"\csc^2({x})", rf"\cos^2({x})", rf"\sec({x})"],
        ),
        ([rf"2\sin({x})\cos({x})", rf"\sin({double})"], [rf"\sin({x})\cos({x})", rf"\cos({double})", rf"2\sin({x})"]),
        (
            [rf"\cos^2({x}) - \sin^2({x})", rf"\cos({double})", rf"1 - 2\sin^2({x})", rf"2\cos^2({x}) - 1"],
            [rf"\sin({double})", rf"1 - \sin^2({x})", rf"-\cos({double})"],
        ),
        (
            [rf"\frac{{\sin({x})}}{{\cos({x})}}", rf"\tan({x})"],
            [rf"\cot({x})", rf"\frac{{\cos({x})}}{{\sin({x})}}", rf"-\tan({x})"],
        ),
    ]
    equal, unequal = rng.choice(families)
    return Case(equal[0], [("identity", e) for e in equal], [("not an identity", u) for u in unequal])


def a_step_or_size(rng: Random) -> Case:
    """Absolute values, floors and ceilings; agreeing on half of the numbers is not enough."""
    letter, a = rng.choice("xtu"), rng.randint(1, 9)
    if rng.random() < 0.5:
        equal = [
            ("turned round", f"|{a} - {letter}|"),
            ("bars", rf"\left|{letter} - {a}\right|"),
            ("root of a square", rf"\sqrt{{({letter} - {a})^2}}"),
            ("scaled", rf"\frac{{|{2 * a} - 2{letter}|}}{{2}}"),
        ]
        unequal = [
            ("no bars", f"{letter} - {a}"),
            ("no bars", f"{a} - {letter}"),
            ("a sign", f"|{letter} + {a}|"),
            ("bars misplaced", f"|{letter}| - {a}"),
            ("negative", f"-|{letter} - {a}|"),
        ]
        return Case(f"|{letter} - {a}|", equal, unequal)
    m = rng.randint(2, 7)
    floor = rf"\lfloor \frac{{{letter}}}{{{m}}} \rfloor"
    equal = [
        ("floor", rf"\left\lfloor \frac{{{letter}}}{{{m}}} \right\rfloor"),
        ("shifted", rf"\lfloor \frac{{{letter} + {a * m}}}{{{m}}} \rfloor - {a}"),
        ("slash", rf"\lfloor {letter}/{m} \rfloor"),
    ]
    unequal = [
        ("ceiling", rf"\lceil \frac{{{letter}}}{{{m}}} \rceil"),
        ("no floor", rf"\frac{{{letter}}}{{{m}}}"),
        ("divisor", rf"\lfloor \frac{{{letter}}}{{{m + 1}}} \rfloor"),
        ("one more", floor + " + 1"),
    ]
    return Case(floor, equal, unequal)


def an_inequality(rng: Random) -> Case:
    """A half-line or a bounded interval, as inequality or as interval."""
    a = small(rng)
    b = a + rng.choice([1, 2, Fraction(5, 2), 7])
    closed_a, closed_b = rng.random() < 0.5, rng.random() < 0.5
    le = [r"\le", r"\leq", "≤", r"\leqslant"]
    ge = [r"\ge", r"\geq", "≥", r"\geqslant"]

    def sign(less: bool, closed: bool) -> str:
        return rng.choice((le if less else ge) if closed else (["<", r"\lt"] if less else [">", r"\gt"]))

    def stretch(a: Fraction, b: Fraction, closed_a: bool, closed_b: bool) -> list[tuple[str, str]]:
        x, n = "x", [coefficient(rng, v) if abs(v) != 1 else str(v) for v in (a, b)]
        brackets = f"{'[' if closed_a else '('}{n[0]}, {n[1]}{']' if closed_b else ')'}"
        chain = f"{n[0]} {sign(True, closed_a)} {x} {sign(True, closed_b)} {n[1]}"
        return [
            ("chain", chain),
            ("turned round", f"{n[1]} {sign(False, closed_b)} {x} {sign(False, closed_a)} {n[0]}"),
            ("interval", brackets),
            ("element of", rf"{x} \in {brackets}"),
            ("set-builder", rf"\{{{x} \mid {chain}\}}"),
        ]

    def half(a: Fraction, closed: bool, above: bool) -> list[tuple[str, str]]:
        n = coefficient(rng, a) if abs(a) != 1 else str(a)
        minus_n = coefficient(rng, -a) if abs(a) != 1 else str(-a)
        bracket = f"{'[' if closed else '('}{n}, \\infty)" if above else f"(-\\infty, {n}{']' if closed else ')'}"
        return [
            ("sign", f"x {sign(not above, closed)} {n}"),
            ("turned round", f"{n} {sign(above, closed)} x"),
            ("times -1", f"-x {sign(above, closed)} {minus_n}"),
            ("interval", bracket),
            ("element of", rf"x \in {bracket}"),
        ]

    if rng.random() < 0.5:
        equal = stretch(a, b, closed_a, closed_b)
        near = [
            ("an end open or closed", (a, b, not closed_a, closed_b)),
            ("an end open or closed", (a, b, closed_a, not closed_b)),
            ("an end", (a - 1, b, closed_a, closed_b)),
            ("an end", (a, b + 1, closed_a, closed_b)),
            ("mirrored", (-b, -a, closed_b, closed_a)),
        ]
        near = [(why, values) for why, values in near if values != (a, b, closed_a, closed_b)]
        unequal = [(why, rng.choice(stretch(*values))[1]) for why, values in near]
    else:
        above = rng.random() < 0.5
        equal = half(a, closed_a, above)
        near = [
            ("open or closed", (a, not closed_a, above)),
            ("direction", (a, closed_a, not above)),
            ("end", (a + 1, closed_a, above)),
            ("sign", (-a, closed_a, above)),
        ]
        unequal = [(why, rng.choice(half(*values))[1]) for why, values in near]
        unequal.append(("equation", f"x = {number(rng, a)}"))
    way, reference = equal[rng.randrange(3)]
    return Case(reference, equal, unequal, symmetric=way != "times -1")  # unsolved, it is not accepted for an interval


KINDS = {
    "power": a_power,
    "identity": an_identity,
    "step or size": a_step_or_size,
    "inequality": an_inequality,
}
