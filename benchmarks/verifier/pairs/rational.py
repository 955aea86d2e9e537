"""Exactly known rational numbers in every notation."""

import math
from fractions import Fraction
from random import Random

from benchmarks.verifier.pairs.pair import Case, different
from benchmarks.verifier.pairs.writing import (
    decimal,
    fraction,
    integer,
    mixed,
    number,
    rounded,
    scientific,
    terminates,
)

_NAMES = ["x", "y", "n", "k", "a", "S", "P", r"\theta", "m", "t"]


def _transposed(rng: Random, n: int) -> int | None:
    """The number with two different adjacent digits swapped; None if impossible without a leading 0."""
    digits = list(str(abs(n)))
    places = [i for i in range(len(digits) - 1) if digits[i] != digits[i + 1] and (i or digits[1] != "0")]
    if not places:
        return None
    i = rng.choice(places)
    digits[i], digits[i + 1] = digits[i + 1], digits[i]
    return int("".join(digits)) * (-1 if n < 0 else 1)


def an_integer(rng: Random) -> Case:
    n = rng.choice([rng.randint(-30, 30), rng.randint(-999, 999), rng.randint(-(10**6), 10**6), rng.randint(0, 10**11)])
    if rng.random() < 0.15:
        n = rng.randint(1, 999) * 10 ** rng.randint(2, 9)
    value = Fraction(n)
    scale = rng.randint(2, 9)
    equal = [
        ("digits", str(n)),
        ("separators", integer(rng, n)),
        ("point zero", f"{n}.0" + "0" * rng.randint(0, 2)),
        ("not reduced", rf"\frac{{{n * scale}}}{{{scale}}}"),
        ("named", f"{rng.choice(_NAMES)} = {n}"),
        ("as a sum", f"{n - scale} + {scale}"),
    ]
    if n and n % 100 == 0:
        equal.append(("scientific", scientific(rng, value)))
    if n > 0:
        equal.append(("plus sign", f"+{n}"))
        factor = next((p for p in (2, 3, 5, 7, 11) if n % p == 0), None)
        if factor:
            equal.append(("product", rng.choice([r"{} \cdot {}", r"{} \times {}"]).format(factor, n // factor)))
    wrong = different(
        [
            ("off by one", value + rng.choice([-1, 1])),
            ("sign", -value),
            ("digits transposed", None if (t := _transposed(rng, n)) is None else Fraction(t)),
            ("a digit dropped", Fraction(int(str(abs(n))[:-1])) if abs(n) > 9 else None),
            ("a digit doubled", Fraction(int(str(n) + str(n)[-1]))),
            ("times 10", value * 10),
            ("times 100", value * 100),
            ("by 100", value / 100),
            ("last digits", value + rng.choice([-3, -2, 2, 3])),
        ],
        value,
    )
    unequal = [(why, integer(rng, v.numerator) if v.denominator == 1 else decimal(v)) for why, v in wrong]
    if n and n % 100 == 0:
        unequal.append(("exponent", scientific(rng, value * rng.choice([10, Fraction(1, 10), 100]))))
    return Case(str(n), equal, unequal)


def a_fraction(rng: Random) -> Case:
    while True:
        top = rng.choice([rng.randint(-30, 30), rng.randint(-999, 999), rng.randint(-99999, 99999)])
        value = Fraction(top, rng.choice([rng.randint(2, 12), rng.randint(2, 99), rng.randint(2, 9999)]))
        if value and value.denominator != 1:
            break
    top, bottom = value.numerator, value.denominator
    equal = [
        ("fraction", fraction(rng, value)),
        ("fraction", fraction(rng, value)),
        ("named", f"x={fraction(rng, value)}"),
    ]
    equal.append(("both signs", rf"\frac{{{-top}}}{{{-bottom}}}"))
    equal.append(("power -1", rf"{top} \cdot {bottom}^{{-1}}"))
    if abs(value) > 1:
        equal.append(("mixed", mixed(rng, value)))
    if terminates(value):
        equal.append(("decimal", decimal(value)))
        percent = decimal(value * 100)
        equal.append(("percent", percent + rng.choice([r"\%", "%", r" \%"])))
    wrong = different(
        [
            ("numerator off by one", Fraction(top + rng.choice([-1, 1]), bottom)),
            ("denominator off by one", Fraction(top, bottom + 1)),
            ("upside down", 1 / value),
            ("sign", -value),
            ("one less", value - 1),
            ("complement", 1 - value),
            ("halved", value / 2),
            ("numerator transposed", None if (t := _transposed(rng, top)) is None else Fraction(t, bottom)),
        ],
        value,
    )
    unequal = [(why, number(rng, v)) for why, v in wrong if v]
    if not terminates(value):
        unequal.append(("rounded, though the reference is exact", rounded(value, rng.randint(3, 6))))
        if abs(value) > Fraction(1, 10):
            equal.append(("with its rounded value", rf"{fraction(rng, value)} \approx {rounded(value, 3)}"))
            false = rounded(value + rng.choice([-2, -1, 1, 2]), 3)
            unequal.append(("with another rounded value", rf"{fraction(rng, value)} \approx {false}"))
    if abs(value) > 1 and not value.numerator % 2:
        whole, rest = divmod(abs(top), bottom)
        unequal.append(("mixed number as product", number(rng, Fraction(whole * rest, bottom) or Fraction(77))))
    return Case(fraction(rng, value) if rng.random() < 0.7 else rf"\frac{{{top}}}{{{bottom}}}", equal, unequal)


def a_decimal(rng: Random) -> Case:
    """The reference answer has three or more significant digits and is exact."""
    digits = rng.randint(1, 4)
    while True:
        n = rng.choice([-1, 1, 1, 1]) * rng.randint(100, 10 ** rng.randint(3, 6))
        value = Fraction(n, 10**digits)
        if n % 10:
            break
    reference = decimal(value)
    equal = [
        ("decimal", reference),
        ("trailing zeros", reference + "0" * rng.randint(1, 2)),
        ("fraction", fraction(rng, value)),
    ]
    equal.append(("scientific", scientific(rng, value)))
    if abs(value) < 1:
        equal.append(("no leading zero", reference.replace("0.", ".", 1)))
    if abs(value) > 1000:
        equal.append(
            ("separators", f"{int(abs(value)):,}.{reference.partition('.')[2]}".replace(",", rng.choice([",", "{,}"])))
        )
        if value < 0:
            equal[-1] = ("separators", "-" + equal[-1][1])
    if abs(value) > 1:
        equal.append(("mixed", mixed(rng, value)))
    last = Fraction(1, 10**digits)
    wrong = different(
        [
            ("last digit off by one", value + rng.choice([-last, last])),
            ("last digit off by two", value + rng.choice([-2 * last, 2 * last])),
            ("sign", -value),
            ("point moved", value * 10),
            ("point moved", value / 10),
            ("times 100", value * 100),
            ("by 100", value / 100),
            ("digits transposed", None if (t := _transposed(rng, n)) is None else Fraction(t, 10**digits)),
        ],
        value,
    )
    return Case(reference, equal, [(why, decimal(v)) for why, v in wrong])


def a_rounded_reference(rng: Random) -> Case:
    """The reference answer is a rounded decimal with at least three significant digits; the answer is exact."""
    while True:
        value = Fraction(rng.randint(1, 9999), rng.choice([3, 7, 9, 11, 13, 17, 19, 23, 27, 59, 64, 97]))
        digits = rng.randint(2, 4)
        if not terminates(value * 10**digits) and value * 10**digits >= 100:
            break
    reference = rounded(value, digits)
    kept, last = Fraction(reference), Fraction(1, 10**digits)
    far = kept + last * Fraction(rng.choice([-1, 1]) * rng.randint(80, 300), 100)
    equal = [("exact value", rf"\frac{{{value.numerator}}}{{{value.denominator}}}")]
    if value > 1:
        equal.append(("exact value, mixed", mixed(rng, value)))
    unequal = [("exact value that rounds otherwise", fraction(rng, far)), ("sign", fraction(rng, -value))]
    unequal.append(("rounded otherwise", decimal(kept + rng.choice([-last, last]))))
    return Case(reference, equal, unequal, symmetric=False)


def a_repeating_decimal(rng: Random) -> Case:
    period, lead = rng.choice([1, 1, 2, 3, 6]), rng.choice(["", "", str(rng.randint(0, 9))])
    digits = str(rng.randint(1, 10**period - 2)).zfill(period)
    whole = rng.choice([0, 0, 0, rng.randint(1, 20)])

    def exact(lead: str, digits: str) -> Fraction:
        shift = 10 ** len(lead)
        return whole + (int(lead or 0) + Fraction(int(digits), 10 ** len(digits) - 1)) / shift

    value = exact(lead, digits)
    bar = rf"{whole}.{lead}\overline{{{digits}}}"
    equal = [
        ("bar", bar),
        ("unrolled", rf"{whole}.{lead}{digits}\overline{{{digits}}}"),
        ("fraction", rf"\frac{{{value.numerator}}}{{{value.denominator}}}"),
    ]
    other = str((int(digits) + 1) % 10**period).zfill(period)
    unequal = [
        ("cut off", f"{whole}.{lead}{digits * 3}"),
        ("a digit", rf"{whole}.{lead}\overline{{{other}}}"),
        ("a digit in front", rf"{whole}.0{lead}\overline{{{digits}}}"),
    ]
    unequal.append(("fraction off", rf"\frac{{{value.numerator + 1}}}{{{value.denominator}}}"))
    return Case(rng.choice([equal[0][1], equal[2][1]]), equal, unequal)


def a_percentage(rng: Random) -> Case:
    percent = Fraction(rng.randint(11, 9999), rng.choice([1, 10, 100]))
    text = decimal(percent)
    value = percent / 100
    equal = [("percent", text + sign) for sign in (r"\%", "%", r" \%", r"\,\%", r"\text{ percent}")]
    equal += [("fraction", fraction(rng, value)), ("decimal", decimal(value))]
    wrong = [("off by one", percent + 1), ("by 100", percent / 100), ("times 10", percent * 10), ("sign", -percent)]
    unequal = [(why, decimal(v) + r"\%") for why, v in wrong]
    unequal += [("half of it", decimal(value / 2)), ("fraction off", fraction(rng, value + Fraction(1, 100)))]
    return Case(text + r"\%", equal, unequal)


def a_count(rng: Random) -> Case:
    """Factorials and binomials, and their digits."""
    n = rng.randint(5, 22)
    k = rng.randint(2, n - 2)
    if rng.random() < 0.5:
        value, symbols = math.factorial(n), [f"{n}!", rf"{n} \cdot {n - 1}!"]
        near = [f"{n + 1}!", f"{n - 1}!"]
    else:
        value, symbols = (
            math.comb(n, k),
            [rf"\binom{{{n}}}{{{k}}}", rf"\dbinom{{{n}}}{{{k}}}", rf"\frac{{{n}!}}{{{k}!\,{n - k}!}}"],
        )
        near = [rf"\binom{{{n + 1}}}{{{k}}}", rf"\frac{{{n}!}}{{{k}!}}"]
    equal = [("digits", str(value)), ("digits", integer(rng, value)), *(("symbols", s) for s in symbols)]
    unequal = [
        ("symbols off by one", rng.choice(near)),
        ("off by one", str(value + 1)),
        ("halved", number(rng, Fraction(value, 2))),
    ]
    return Case(rng.choice([str(value), symbols[0]]), equal, unequal)


KINDS = {
    "integer": an_integer,
    "fraction": a_fraction,
    "decimal": a_decimal,
    "rounded reference": a_rounded_reference,
    "repeating decimal": a_repeating_decimal,
    "percentage": a_percentage,
    "factorial, binomial": a_count,
}
