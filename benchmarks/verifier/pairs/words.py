"""Answers with units or in words, choices, number bases, ratios, and evasive answers."""

import math
from fractions import Fraction
from random import Random

from benchmarks.verifier.pairs.pair import Case
from benchmarks.verifier.pairs.writing import (
    coefficient,
    fraction,
    integer,
    number,
)


def a_quantity(rng: Random) -> Case:
    """A number with its unit; the bare number is accepted, another number or unit is not."""
    unit, other = rng.choice(
        [
            ("cm", "m"),
            ("km", "cm"),
            ("hours", "minutes"),
            ("miles", "feet"),
            ("kg", "g"),
            ("m/s", "km"),
            ("seconds", "hours"),
        ]
    )
    power = rng.choice(["", "", "^2", "^3"]) if unit in ("cm", "km") else ""
    value = rng.choice(
        [
            Fraction(rng.randint(2, 500)),
            Fraction(rng.randint(1, 99), rng.choice([2, 4, 5, 8])),
            Fraction(rng.randint(1000, 90000)),
        ]
    )

    def write(value: Fraction, unit: str, style: int) -> str:
        n = integer(rng, value.numerator) if value.denominator == 1 else fraction(rng, value)
        return [
            rf"{n}\text{{ {unit}}}{power}",
            rf"{n} \mbox{{ {unit}}}{power}",
            rf"{n}\ \mathrm{{{unit}}}{power}",
            rf"{n}\,\text{{{unit}}}{power}",
            rf"{n}~\textnormal{{{unit}}}{power}",
            rf"{n} {unit}{power}",
        ][style]

    equal = [("with its unit", write(value, unit, style)) for style in range(6)] + [("bare", number(rng, value))]
    unequal = [
        ("off by one", write(value + 1, unit, rng.randrange(6))),
        ("off by one, bare", number(rng, value + 1)),
        ("times 10", write(value * 10, unit, 0)),
        ("sign", write(-value, unit, 0)),
        ("another unit", write(value, other, 0)),
    ]
    return Case(write(value, unit, rng.choice([0, 0, 1, 2])), equal, unequal)


def a_price(rng: Random) -> Case:
    cents = rng.choice([rng.randint(1, 99) * 100, rng.randint(100, 99999), rng.randint(1000, 99999) * 100])
    value = Fraction(cents, 100)
    digits = f"{cents // 100:,}" + (f".{cents % 100:02d}" if cents % 100 else "")
    plain = digits.replace(",", "")
    equal = [
        ("dollar sign", rf"\${plain}"),
        ("dollar sign", rf"\${digits}"),
        ("word", rf"{plain}\text{{ dollars}}"),
        ("bare", plain),
        ("sign behind", plain + r"\$"),
        ("thin space", rf"\$\,{plain}"),
    ]
    off = value + rng.choice([1, -1, 10])
    unequal = [
        ("off", rf"\${float(off):.2f}"),
        ("cents for dollars", rf"\${cents}"),
        ("bare, off", str(cents // 100 + 2)),
        ("times 1000", rf"\${value * 1000}"),
    ]
    return Case(rf"\${plain}", equal, unequal)


def an_angle(rng: Random) -> Case:
    n = rng.choice([rng.randint(1, 359), rng.choice([15, 30, 45, 60, 75, 90, 120, 135, 150, 180])])
    r = Fraction(n, 180)
    radians = (
        rf"\frac{{{r.numerator if r.numerator > 1 else ''}\pi}}{{{r.denominator}}}"
        if r.denominator > 1
        else rf"{coefficient(rng, r)}\pi"
    )
    equal = [
        ("degrees", t) for t in (rf"{n}^\circ", rf"{n}^{{\circ}}", f"{n}°", rf"{n} \text{{ degrees}}", rf"{n}\degree")
    ]
    equal += [("bare", str(n)), ("named", rf"\angle A = {n}^\circ")]
    if rng.random() < 0.5:
        equal.append(("radians", radians))
    unequal = [
        ("off by one", rf"{n + 1}^\circ"),
        ("off by one, bare", str(n - 1)),
        ("complement", rf"{180 - n}^\circ" if n != 90 else "91^\\circ"),
        ("radians of another", rf"\frac{{\pi}}{{{r.denominator + 1}}}"),
        ("sign", rf"-{n}^\circ"),
    ]
    return Case(rf"{n}^\circ" if rng.random() < 0.7 else rf"{n}^{{\circ}}", equal, unequal)


_WORDS = "Evelyn Monday odd even ellipse parabola hyperbola circle Tuesday Cecile Briana east west yes"
_WORDS += " no neither increasing point line plane Alice Bob cat dog square rhombus isosceles equilateral"


def a_word(rng: Random) -> Case:
    word, other = rng.sample(_WORDS.split(), 2)
    equal = [
        ("text", rf"\text{{{word}}}"),
        ("bare", word),
        ("bold", rf"\textbf{{{word}}}"),
        ("roman", rf"\mathrm{{{word}}}"),
        ("spaces", rf"\text{{ {word} }}"),
        ("case", rf"\text{{{word.upper()}}}"),
        ("full stop", rf"\text{{{word}.}}"),
        ("mbox", rf"\mbox{{{word}}}"),
    ]
    letters = list(word)
    while "".join(letters).lower() == word.lower():
        rng.shuffle(letters)
    unequal = [
        ("another word", rf"\text{{{other}}}"),
        ("anagram", "".join(letters)),
        ("a letter more", rf"\text{{{word}{word[-1]}}}"),
        ("a letter less", word[:-1]),
        ("negated", rf"\text{{not {word}}}"),
        ("number", "1"),
        ("hedge", rf"\text{{{word} or {other}}}"),
    ]
    return Case(rng.choice([rf"\text{{{word}}}", word]), equal, unequal, plain=True)


def a_choice(rng: Random) -> Case:
    letter, other = rng.sample("ABCDE", 2)
    equal = [
        ("letter", letter),
        ("brackets", f"({letter})"),
        ("text", rf"\text{{({letter})}}"),
        ("bold", rf"\textbf{{({letter})}}"),
        ("text", rf"\text{{{letter}}}"),
        ("roman", rf"\mathrm{{({letter})}}"),
        ("full stop", f"{letter}."),
        ("closing bracket", f"{letter})"),
    ]
    unequal = [
        ("another", other),
        ("another", rf"\text{{({other})}}"),
        ("two", f"{letter}, {other}"),
        ("two", rf"\text{{{letter} or {other}}}"),
        ("doubled", letter * 2),
        ("number", str(ord(letter) - 64)),
    ]
    return Case(
        rng.choice([letter, rf"\text{{({letter})}}", f"({letter})", rf"\textbf{{({letter})}}"]),
        equal,
        unequal,
        plain=True,
    )


def a_based_number(rng: Random) -> Case:
    base = rng.randint(2, 9)
    digits = str(rng.randint(1, base - 1)) + "".join(str(rng.randrange(base)) for _ in range(rng.randint(2, 7)))
    value = int(digits, base)
    other = "".join(str((value + 1) // base**i % base) for i in range(len(digits), -1, -1)).lstrip("0")
    equal = [
        ("suffix", f"{digits}_{base}"),
        ("suffix in braces", f"{digits}_{{{base}}}"),
        ("suffix", f"{digits}_{{({base})}}"),
    ]
    unequal = [
        ("another base", f"{digits}_{base + 1}"),
        ("off by one", f"{other}_{base}"),
        ("bare digits", digits),
        ("a digit dropped", f"{digits[:-1]}_{base}"),
        ("a digit doubled", f"{digits}{digits[-1]}_{base}" if set(digits) != {"0"} else digits),
    ]
    return Case(rng.choice([f"{digits}_{base}", f"{digits}_{{{base}}}"]), equal, unequal)


def a_ratio(rng: Random) -> Case:
    while True:
        a, b = rng.randint(1, 40), rng.randint(1, 40)
        if math.gcd(a, b) == 1 and 1 < b != a:
            break
    equal = [
        ("ratio", f"{a}:{b}"),
        ("spaced", f"{a} : {b}"),
        ("fraction", rf"\frac{{{a}}}{{{b}}}"),
        ("named", f"x:y = {a}:{b}"),
    ]
    unequal = [
        ("turned round", f"{b}:{a}"),
        ("off by one", f"{a + 1}:{b}"),
        ("fraction turned round", rf"\frac{{{b}}}{{{a}}}"),
        ("one number", str(a)),
        ("three", f"{a}:{b}:1"),
    ]
    return Case(f"{a}:{b}", equal, unequal)


def a_sentence(rng: Random) -> Case:
    """Words with numbers: every word and every number counts."""
    n, m = rng.sample(range(2, 60), 2)
    name, other = rng.sample(["Petya", "Vasya", "Alice", "Bob"], 2)
    reference, near = rng.choice(
        [
            (
                f"{name} will receive {n} tokens.",
                [f"{name} will receive {m} tokens.", f"{other} will receive {n} tokens."],
            ),
            (
                f"The remainder increases by a factor of {n}.",
                [f"The remainder increases by a factor of {m}.", f"The remainder decreases by a factor of {n}."],
            ),
            (
                f"October {n % 30 + 1}",
                [f"October {m % 30 + 1}" if n % 30 != m % 30 else "May 1", f"November {n % 30 + 1}"],
            ),
            (
                f"{n % 11 + 1}:{m:02} PM",
                [f"{n % 11 + 1}:{(m + 1) % 60:02} PM", f"{n % 11 + 1}:{m:02} AM", f"{n % 11 + 2}:{m:02} PM"],
            ),
            (
                f"{n} apples and {m} pears",
                [f"{m} apples and {n} pears", f"{n} apples and {m + 1} pears", f"{n} apples"],
            ),
            (
                f"{name} is in room {n}",
                [f"{name} is in room {m}", f"{name} is not in room {n}", f"{other} is in room {n}"],
            ),
        ]
    )
    equal = [
        ("bare", reference),
        ("text", rf"\text{{{reference}}}"),
        ("no full stop", reference.rstrip(".")),
        ("spaces", rf"\text{{ {reference} }}"),
    ]
    unequal = [("a word or number", shown) for text in near for shown in (text, rf"\text{{{text}}}")]
    unequal += [
        ("its first word", reference.split()[0]),
        ("an article", "The"),
        ("a number", str(n + m)),
        ("a hedge", f"{reference} or not"),
    ]
    return Case(
        rng.choice([reference, rf"\text{{{reference}}}"]),
        equal,
        [(w, t) for w, t in unequal if t not in (name, f"{n}") and not t.endswith(f":{m:02}")],
        plain=True,
    )


def a_dodge(rng: Random) -> Case:
    """Answers that contain the right number without committing to it: hedges, false chains, restated problems."""
    n = rng.randint(3, 60)
    other = n + rng.choice([-2, -1, 1, 2])
    equal = [
        ("chain of equals", f"x = {n - 1} + 1 = {n}"),
        ("chain of equals", f"{n - 2} + 2 = {n}"),
        ("number", str(n)),
    ]
    unequal = [
        ("plus or minus", rf"\pm {n}"),
        ("false chain", f"{other} = {n}"),
        ("false chain", f"{n} = {other}"),
        ("false chain", f"x = {other} = {n}"),
        ("false chain", f"x = {other} + 1 = {other} + 2 = {n + 7} = {n}"),
        ("either", rf"{n} \text{{ or }} {other}"),
        ("either", f"{n} or {other}"),
        ("both", f"{n}, {other}"),
        ("both", rf"\{{{n}, {other}\}}"),
        ("range", rf"x \le {n}"),
        ("range", f"[{n - 1}, {n + 1}]"),
        ("about", rf"{other} \approx {n}"),
        ("about", rf"{n} \approx {other}"),
        ("against", rf"{n} \text{{ vs. }} {other}"),
        ("not equal", rf"\ne {n}"),
        ("not equal", rf"x \neq {n}"),
        ("words", rf"{n} \text{{ is wrong}}"),
        ("sum of signs", rf"\sum_{{k=1}}^{{{n}}} 1"),
        ("integral", rf"\int_0^{{{n}}} 1 \, dx"),
        ("greatest common divisor", rf"\gcd({n}, {2 * n})"),
        ("greatest of", rf"\max({n}, {n - 1})"),
        ("limit", rf"\lim_{{x \to {n}}} x"),
        ("a question", "?"),
        ("a letter", "n"),
    ]
    return Case(str(n), equal, unequal, plain=True)


KINDS = {
    "quantity": a_quantity,
    "price": a_price,
    "angle": an_angle,
    "word": a_word,
    "choice": a_choice,
    "base": a_based_number,
    "ratio": a_ratio,
    "sentence": a_sentence,
    "dodge": a_dodge,
}
