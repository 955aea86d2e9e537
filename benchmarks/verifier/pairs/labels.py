"""Values with something written next to them: an option's letter, a quantity's name, degree signs, ordinals, spaces."""

from random import Random

from benchmarks.verifier.pairs.pair import Case, small
from benchmarks.verifier.pairs.writing import coefficient, integer, number

_OPTIONS = [
    r"\textbf{(%s)} ",
    r"\textbf{(%s) }",
    r"\mathrm{(%s)}\ ",
    r"\text{(%s)}\,",
    r"\textbf{(%s)}~",
    r"\mathbf{(%s)}\quad ",
    "(%s) ",
    "%s. ",
    "%s) ",
    r"\text{%s.} ",
    r"(\textbf{%s}) ",
]


def an_option_with_its_value(rng: Random) -> Case:
    """The letter, the value or both are right; another letter or value, or their product, is not."""
    letter, other = rng.sample("ABCDE", 2)
    value = small(rng)
    shown, near = (rng.choice([number, lambda _, v: str(v)])(rng, v) for v in (value, value + rng.choice([1, -1, 10])))
    if value < 0 or near.startswith("-"):
        shown, near = str(abs(value)), str(abs(value) + 1)
    equal = [("both", option % letter + shown) for option in _OPTIONS]
    equal += [
        ("both in text", rf"\text{{({letter}) {abs(value)}}}"),
        ("letter", letter),
        ("letter", f"({letter})"),
        ("letter", rf"\text{{{letter}}}"),
        ("letter", rf"\textbf{{({letter})}}"),
        ("value", shown),
        ("value", shown),
        ("value named", f"x = {shown}"),
        ("letter behind", rf"{shown}\ \textbf{{({letter})}}"),
    ]
    unequal = [("another letter", option % other + shown) for option in rng.sample(_OPTIONS, 3)]
    unequal += [("another value", option % letter + near) for option in rng.sample(_OPTIONS, 3)]
    unequal += [
        ("another letter", other),
        ("another letter", f"({other})"),
        ("another value", near),
        ("product", f"{abs(value)}{letter}"),
        ("product", f"{abs(value)}({letter})"),
        ("sum", f"{letter} + {shown}"),
        ("two options", f"({letter}) {shown} or ({other}) {near}"),
        ("two letters", f"({letter}) or ({other})"),
        ("two letters", rf"\text{{{letter} and {other}}}"),
        ("two values", f"{shown} or {near}"),
        ("denied", rf"\text{{not {letter}}}"),
        ("denied", rf"\text{{({letter}) is wrong}}"),
    ]
    return Case(rng.choice(_OPTIONS) % letter + shown, equal, unequal, symmetric=False, plain=True)


_NAMES = ["AB", "|S|", "E[X]", "[ABC]", "f(1)+f(2)", "P(A)+P(B)", r"|A\cup B|", "f^{-1}(3)", r"\mathbb{E}[X]"]
_NAMES += ["AB+CD", r"|\vec{a}|", r"\overline{AB}", r"\angle PQR", r"\gcd(a,b)", r"\det A", r"\operatorname{Var}(X)"]
_SUMS = ["p+q", "a^2+b^2", "xy", "a-b", "m+n+k", r"\frac{a}{b}", "x_1+x_2", r"\alpha+\beta", "10a+b"]
_EQUATIONS = ["2x", "x^2", "x+1", "3AB", "n(n+1)", "-x", r"\sqrt{x}", "2f(1)", "e^x", "|x|", r"\frac{x}{2}", "x^2+x"]


def a_labelled_value(rng: Random) -> Case:
    """A quantity's name before its value; an equation in one unknown says something else."""
    value = small(rng) * rng.choice([1, 7])
    other = value + rng.choice([1, -1])
    first, second = number(rng, value), number(rng, other)
    a, b = rng.randint(2, 90), rng.randint(2, 90)
    equal = [("label", f"{name} = {first}") for name in _NAMES + _SUMS]
    equal += [
        ("formula", rf"A = \pi r^2 = {first}"),
        ("formula", f"S = ab = {first}"),
        ("integral", rf"\int_0^1 f(x)\,dx = {first}"),
    ]
    unequal = [("an equation", f"{left} = {first}") for left in _EQUATIONS]
    unequal += [("another value", f"{name} = {second}") for name in rng.sample(_NAMES + _SUMS, 3)]
    unequal += [
        ("false chain", f"p+q = {second} = {first}"),
        ("false chain", f"p+q = {first} = {second}"),
        ("inequality", f"a+b > {first}"),
        ("another unknown", f"a+b = {first} + z"),
        ("two values", rf"a+b = {first} \text{{ or }} {second}"),
    ]
    if rng.random() < 0.3:
        first, equal = str(a + b), [("chain", f"p+q = {a}+{b} = {a + b}"), ("label", f"m+n = {a + b}")]
        unequal = [("chain of another", f"p+q = {a}+{b} = {a + b + 1}"), ("an equation", f"2x = {a}+{b} = {a + b}")]
    return Case(first, equal, unequal, symmetric=False, plain=True)


def a_curve(rng: Random) -> Case:
    """An equation asked for is no label: its right side alone is wrong."""
    n, m = rng.randint(2, 60), rng.randint(2, 9)
    left, again = rng.choice(
        [("x^2 + y^2", "y^2 + x^2"), (f"{m}x + y", f"y + {m}x"), ("xy", "yx"), ("x - y", "-y + x")]
    )
    equal = [("other order", f"{again} = {n}"), ("turned round", f"{n} = {left}"), ("doubled", f"2({left}) = {2 * n}")]
    unequal = [
        ("right side", str(n)),
        ("named", f"a = {n}"),
        ("other letters", f"{left.replace('x', 'a')} = {n}"),
        ("off by one", f"{left} = {n + 1}"),
    ]
    return Case(f"{left} = {n}", equal, unequal, symmetric=False)


def degrees_inside(rng: Random) -> Case:
    """Degree signs in sums and quotients, which may be left out."""
    if rng.random() < 0.5:
        n, d = rng.choice([90, 180, 270, 360, 100]), rng.choice([7, 11, 13, 17])
        equal = [
            ("sign in the numerator", rf"\frac{{{n}^\circ}}{{{d}}}"),
            ("none", rf"\frac{{{n}}}{{{d}}}"),
            ("outside", rf"\left(\frac{{{n}}}{{{d}}}\right)^\circ"),
            ("slash", rf"{n}^\circ/{d}"),
            ("word", rf"\frac{{{n}}}{{{d}}} \text{{ degrees}}"),
        ]
        unequal = [
            ("off by one", rf"\frac{{{n + 1}^\circ}}{{{d}}}"),
            ("divisor", rf"\frac{{{n}^\circ}}{{{d + 1}}}"),
            ("turned round", rf"\frac{{{d}^\circ}}{{{n}}}"),
            ("whole", rf"{n}^\circ"),
            ("sine", rf"\sin \frac{{{n}^\circ}}{{{d}}}"),
        ]
        return Case(equal[rng.randrange(2)][1], equal, unequal)
    n, k = rng.randint(10, 180), rng.choice([1, 2, 3, 5])
    beta = (str(k) if k > 1 else "") + rng.choice([r"\beta", r"\alpha", "x"])
    equal = [
        ("sign", rf"{n}^\circ - {beta}"),
        ("none", f"{n} - {beta}"),
        ("other order", rf"-{beta} + {n}^\circ"),
        ("outside", rf"({n} - {beta})^\circ"),
    ]
    unequal = [
        ("a sign", rf"{n}^\circ + {beta}"),
        ("off by one", rf"{n + 1}^\circ - {beta}"),
        ("coefficient", rf"{n}^\circ - {k + 1}{beta.removeprefix(str(k))}"),
        ("product", rf"{n}^\circ {beta}"),
        ("constant only", rf"{n}^\circ"),
    ]
    return Case(equal[rng.randrange(2)][1], equal, unequal)


def an_ordinal(rng: Random) -> Case:
    n = rng.choice([rng.randint(1, 30), rng.randint(31, 999)])
    ending, near = _ending(n), _ending(n + 1)
    styles = [r"{}^{{\mathrm{{{}}}}}", r"{}^{{\text{{{}}}}}", r"{}^\text{{{}}}", "{}^{{{}}}", "{}{}", "{}-{}"]
    styles += [r"{}\text{{{}}}", r"{}^{{\textrm{{{}}}}}", r"{}^{{\rm {}}}", r"{}\textsuperscript{{{}}}"]
    styles += [r"\text{{{}{}}}"]
    equal = [("ordinal", style.format(n, ending)) for style in styles] + [("bare", str(n))]
    unequal = [("off by one", style.format(n + 1, near)) for style in rng.sample(styles, 4)]
    unequal += [
        ("off by one", str(n + 1)),
        ("a power", f"{n}^{{{n % 7 + 2}}}" if n > 1 else "2"),
        ("negative", f"-{n}"),
    ]
    return Case(rng.choice([str(n), *(style.format(n, ending) for style in styles[:3])]), equal, unequal, plain=True)


def _ending(n: int) -> str:
    return "th" if n // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")


def spaced_thousands(rng: Random) -> Case:
    """12 750, with any space; 12 75, 1 100/101 and x^2 100 are not one number."""
    n = rng.choice([rng.randint(1000, 99_999), rng.randint(100_000, 99_999_999)])
    spaces = [" ", r"\ ", "~", r"\;", r"\:", r"\,", "\u202f", "\u00a0", "\u2009", r"\thinspace "]

    def spaced(n: int) -> str:
        return f"{n:,}".replace(",", rng.choice(spaces))

    groups = f"{n:,}".split(",")
    equal = [("spaces", spaced(n)) for _ in range(4)]
    equal += [("none", integer(rng, n)), ("named", f"x = {spaced(n)}"), ("unit", rf"{spaced(n)}\text{{ m}}")]
    unequal = [
        ("off by one", spaced(n + 1)),
        ("times 1000", spaced(n * 1000)),
        ("last group", groups[-1]),
        ("first group", groups[0]),
        ("a list", ", ".join(groups)),
        ("a digit lost", spaced(n)[:-1] if n % 1000 > 99 else "1"),
        ("a power", f"{groups[0]}^2 {groups[-1]}"),
        ("a fraction", f"{spaced(n)}/{groups[-1]}1"),
    ]
    return Case(rng.choice([str(n), spaced(n)]), equal, unequal, symmetric=False, plain=True)


def a_coefficient_before_a_bracket(rng: Random) -> Case:
    """Products of letters and brackets, which are no labels: (A)(B), (a + 1) b, 3(C)."""
    one, two = rng.sample("ABCD", 2)
    n = coefficient(rng, small(rng))
    product = f"{n}({one})({two})"
    equal = [("product", f"{n}{one}{two}"), ("other order", f"{n}({two})({one})"), ("bracketed", product)]
    unequal = [("letter", one), ("letter", two), ("one letter", f"{n}({one})"), ("squared", f"{n}({one})({two})^2")]
    return Case(product, equal, unequal, plain=True)


KINDS = {
    "option and value": an_option_with_its_value,
    "labelled value": a_labelled_value,
    "curve": a_curve,
    "degrees inside": degrees_inside,
    "ordinal": an_ordinal,
    "spaced thousands": spaced_thousands,
    "letters in brackets": a_coefficient_before_a_bracket,
}
