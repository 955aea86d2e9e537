"""Exactly known irrational, complex and huge numbers: surds, multiples of pi, powers, logarithms."""

import math
from fractions import Fraction
from random import Random

from benchmarks.verifier.pairs.pair import Case, small
from benchmarks.verifier.pairs.writing import (
    coefficient,
    decimal,
    integer,
    number,
    terminates,
    total,
)

_SQUAREFREE = [2, 3, 5, 6, 7, 10, 11, 13, 14, 15, 17, 19, 21, 22, 23, 26]


def a_surd(rng: Random) -> Case:
    """q + r sqrt(m) with squarefree m: equal only if q, r and m are."""
    m, r, q = rng.choice(_SQUAREFREE), small(rng), rng.choice([Fraction(0), Fraction(0), small(rng)])

    def write(q: Fraction, r: Fraction, m: int, style: int) -> str:
        root = rf"\sqrt{{{m}}}"
        a, b = abs(r.numerator), r.denominator
        minus = "-" if r < 0 else ""
        over = "" if b == 1 else f"/{b}"
        surd = [
            coefficient(rng, r) + root,
            rf"{minus}\frac{{{a if a > 1 else ''}{root}}}{{{b}}}" if b > 1 else coefficient(rng, r) + " " + root,
            rf"{minus}{a if a > 1 else ''}{root}{over}",
            rf"{minus}\sqrt{{{a * a * m}}}{over}",
            rf"{minus}\frac{{{a * m}}}{{{b if b > 1 else ''}{root}}}",
            rf"{minus}{a} \cdot {m}^{{1/2}}{over}",
            rf"{minus}\sqrt{{\frac{{{a * a * m}}}{{{b * b}}}}}",
            rf"{minus}\frac{{{a}}}{{{b}}} \times {root}",
        ][style]
        if not q:
            return surd
        rational = coefficient(rng, q) if abs(q) != 1 else str(q)
        if rng.random() < 0.3:
            common = math.lcm(q.denominator, r.denominator)
            sum_ = total([str(int(q * common)), coefficient(rng, r * common) + root])
            return rf"\frac{{{sum_}}}{{{common}}}" if common > 1 else sum_
        return total(rng.choice([[rational, surd], [surd, rational]]), spaced=rng.random() < 0.7)

    names = [
        "simple",
        "over one bar",
        "slash",
        "under the root",
        "rationalised",
        "power 1/2",
        "root of a fraction",
        "times",
    ]
    equal = [(name, write(q, r, m, style)) for style, name in enumerate(names)]
    if m < 10 and not q:
        equal.append(("no braces", coefficient(rng, r) + rf"\sqrt{m}"))
    changed = [
        ("sign of the root", q, -r, m),
        ("radicand", q, r, rng.choice([k for k in _SQUAREFREE if k != m])),
        ("coefficient", q, r + (1 if r != -1 else 2), m),
        ("a rational part", q + (1 if q != -1 else 2), r, m),
    ]
    unequal = [(why, write(*values, style=rng.randrange(8))) for why, *values in changed]
    unequal.append(("no root", number(rng, q + r * m)))
    approximate = float(q) + float(r) * math.sqrt(m)
    unequal.append(("rounded, though the reference is exact", f"{approximate:.4f}"))
    equal.append(("with its rounded value", rf"{write(q, r, m, 0)} \approx {approximate:.3f}"))
    unequal.append(("with another rounded value", rf"{write(q, r, m, 0)} \approx {approximate + 0.1:.3f}"))
    return Case(write(q, r, m, rng.randrange(3)), equal, unequal)


def a_higher_root(rng: Random) -> Case:
    index, a = rng.choice([3, 3, 4, 5]), rng.randint(1, 6)
    m = rng.choice([k for k in range(2, 30) if all(k % p**index for p in (2, 3, 5))])
    c = str(a) if a > 1 else ""
    equal = [
        ("simple", rf"{c}\sqrt[{index}]{{{m}}}"),
        ("under the root", rf"\sqrt[{index}]{{{a**index * m}}}"),
        ("power", rf"{a} \cdot {m}^{{1/{index}}}"),
        ("power", rf"{a} \cdot {m}^{{\frac{{1}}{{{index}}}}}"),
        ("power of all", rf"({a**index * m})^{{\frac1{index}}}"),
    ]
    unequal = [
        ("index", rf"{c}\sqrt[{index + 1}]{{{m}}}"),
        ("index lost", rf"{c}\sqrt{{{m}}}"),
        ("radicand off by one", rf"\sqrt[{index}]{{{a**index * m + 1}}}"),
        ("coefficient", rf"{a + 1}\sqrt[{index}]{{{m}}}"),
        ("sign", rf"-{c}\sqrt[{index}]{{{m}}}"),
    ]
    return Case(equal[rng.randrange(2)][1], equal, unequal)


def a_multiple_of_pi(rng: Random) -> Case:
    r, q = small(rng), rng.choice([Fraction(0), Fraction(0), Fraction(0), small(rng)])

    def write(r: Fraction, q: Fraction, pi: str = r"\pi") -> str:
        a, b, minus = abs(r.numerator), r.denominator, "-" if r < 0 else ""
        shown = [
            coefficient(rng, r) + pi,
            rf"{minus}\frac{{{a if a > 1 else ''}{pi}}}{{{b}}}" if b > 1 else coefficient(rng, r) + pi,
        ]
        shown.append(rf"{minus}{a if a > 1 else ''}{pi}" + (f"/{b}" if b > 1 else ""))
        if terminates(r):
            shown.append(decimal(r) + pi)
        term = rng.choice(shown)
        rest = coefficient(rng, q) if abs(q) != 1 else str(q)
        return total(rng.choice([[term, rest], [rest, term]])) if q else term

    equal = [
        ("pi", write(r, q)),
        ("pi", write(r, q)),
        ("the letter", write(r, q, "π")),
        ("named", "A = " + write(r, q)),
    ]
    unequal = [
        ("coefficient", write(r + (1 if r != -1 else 2), q)),
        ("sign", write(-r, q)),
        ("pi lost", number(rng, r + q + (5 if r + q == 0 else 0))),
        ("pi squared", write(r, q, r"\pi^2")),
        ("a rational part", write(r, q + (1 if q != -1 else 2))),
        ("halved", write(r / 2, q)),
        ("rounded, though the reference is exact", f"{float(r) * math.pi + float(q):.3f}"),
    ]
    return Case(write(r, q), equal, unequal)


def a_complex_number(rng: Random) -> Case:
    a, b = rng.choice([Fraction(0), small(rng), small(rng)]), small(rng)

    def write(a: Fraction, b: Fraction) -> str:
        imaginary = coefficient(rng, b) + "i"
        real = coefficient(rng, a) if abs(a) != 1 else str(a)
        return total(rng.choice([[real, imaginary], [real, imaginary], [imaginary, real]])) if a else imaginary

    equal = [("sum", write(a, b)), ("sum", write(a, b)), ("named", "z = " + write(a, b))]
    if a:
        common = math.lcm(a.denominator, b.denominator)
        if common > 1:
            above = total([str(int(a * common)), coefficient(rng, b * common) + "i"])
            equal.append(("over one bar", rf"\frac{{{above}}}{{{common}}}"))
    unequal = [
        ("conjugate", write(a, -b)),
        ("imaginary part", write(a, b + (1 if b != -1 else 2))),
        ("real part", write(a + 1, b)),
        ("no i", number(rng, a + b or Fraction(9))),
        ("negative", write(-a, -b)),
    ]
    if a and a != b:
        unequal.append(("swapped", write(b, a)))
    return Case(write(a, b), equal, unequal)


def a_large_power(rng: Random) -> Case:
    base, exponent = rng.choice([2, 3, 5, 6, 7, 10, 12]), rng.randint(12, 110)
    value = base**exponent
    power = rf"{base}^{{{exponent}}}"
    split = rng.randint(1, exponent - 1)
    equal = [("power", power), ("product", rf"{base}^{{{split}}} \cdot {base}^{{{exponent - split}}}")]
    equal += [
        ("digits", str(value)),
        ("digits", integer(rng, value)),
        ("quotient", rf"\frac{{{base}^{{{exponent + 3}}}}}{{{base**3}}}"),
    ]
    unequal = [
        ("exponent off by one", rf"{base}^{{{exponent + rng.choice([-1, 1])}}}"),
        ("digits off by one", str(value + rng.choice([-1, 1]))),
        ("one more", power + " + 1"),
        ("one less", power + " - 1"),
        ("base", rf"{base + 1}^{{{exponent}}}"),
    ]
    return Case(rng.choice([power, str(value)]), equal, unequal)


def a_tiny_number(rng: Random) -> Case:
    base, exponent = rng.choice([2, 3, 5, 10]), rng.randint(40, 300)
    power = f"{base}^{{{exponent}}}"
    equal = [
        ("fraction", rf"\frac{{1}}{{{power}}}"),
        ("negative power", f"{base}^{{-{exponent}}}"),
        ("slash", f"1/{power}"),
    ]
    equal.append(("power of a fraction", rf"\left(\frac{{1}}{{{base}}}\right)^{{{exponent}}}"))
    unequal = [
        ("exponent off by one", rf"\frac{{1}}{{{base}^{{{exponent + 1}}}}}"),
        ("denominator off by one", rf"\frac{{1}}{{{power} + 1}}"),
        ("doubled", rf"\frac{{2}}{{{power}}}"),
        ("zero", "0"),
        ("sign", rf"-\frac{{1}}{{{power}}}"),
    ]
    return Case(equal[0][1], equal, unequal)


def a_logarithm(rng: Random) -> Case:
    p, k = rng.choice([2, 3, 5, 7]), rng.randint(2, 6)
    other = rng.choice([n for n in (2, 3, 5, 7, 11) if n != p])
    log = rng.choice([r"\ln", r"\log"])
    if rng.random() < 0.5:
        equal = [
            ("multiple", rf"{k} {log} {p}"),
            ("power", rf"{log} {p**k}"),
            ("power", rf"{log}({p}^{k})"),
            ("product", rf"{k} \cdot {log}({p})"),
        ]
        unequal = [
            ("argument", rf"{log} {p**k + 1}"),
            ("multiple", rf"{k + 1} {log} {p}"),
            ("sign", rf"-{k} {log} {p}"),
            ("power outside", rf"{log} {p} + {k}"),
        ]
        return Case(equal[rng.randrange(2)][1], equal, unequal)
    equal = [
        ("base", rf"\log_{{{p}}} {other}"),
        ("base", rf"\log_{p} {other}"),
        ("quotient", rf"\frac{{\ln {other}}}{{\ln {p}}}"),
        ("quotient", rf"\frac{{\log {other}}}{{\log {p}}}"),
    ]
    unequal = [
        ("swapped", rf"\log_{{{other}}} {p}"),
        ("swapped", rf"\frac{{\ln {p}}}{{\ln {other}}}"),
        ("quotient inside", rf"\ln \frac{{{other}}}{{{p}}}"),
        ("sign", rf"-\log_{{{p}}} {other}"),
    ]
    return Case(equal[0][1], equal, unequal)


KINDS = {
    "surd": a_surd,
    "higher root": a_higher_root,
    "multiple of pi": a_multiple_of_pi,
    "complex": a_complex_number,
    "large power": a_large_power,
    "tiny": a_tiny_number,
    "logarithm": a_logarithm,
}
