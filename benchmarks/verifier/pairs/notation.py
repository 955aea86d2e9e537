r"""Values in other notations: TeX's \over, combinations, repeating decimals, moduli, dots, HTML, words, times."""

from fractions import Fraction
from math import comb, factorial
from random import Random

from benchmarks.verifier.pairs.pair import Case
from benchmarks.verifier.pairs.writing import fraction

_SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen""".split()  # noqa: SIM905
_TENS = ["", "", *"twenty thirty forty fifty sixty seventy eighty ninety".split()]  # noqa: SIM905
_CHINESE = "零一二三四五六七八九"


def in_words(n: int, hyphen: str = "-") -> str:
    """Up to 99,999: two hundred and five."""
    if n < 20:
        return _SMALL[n]
    if n < 100:
        return _TENS[n // 10] + (hyphen + _SMALL[n % 10] if n % 10 else "")
    size, name = (100, "hundred") if n < 1000 else (1000, "thousand")
    rest = n % size
    joint = " and " if 0 < rest < 100 else " "
    return f"{in_words(n // size, hyphen)} {name}" + (joint + in_words(rest, hyphen) if rest else "")


def in_chinese(n: int) -> str:
    """10 to 99: 二十五."""
    tens, ones = divmod(n, 10)
    return ("" if tens == 1 else _CHINESE[tens]) + "十" + (_CHINESE[ones] if ones else "")


def a_number_word(rng: Random) -> Case:
    n = rng.choice([rng.randint(10, 99), rng.randint(10, 99), rng.randint(100, 99_999)])
    equal = [
        ("words", in_words(n)),
        ("words, no hyphens", rf"\text{{{in_words(n, ' ')}}}"),
        ("capital", rf"\text{{{in_words(n).capitalize()}}}"),
        ("with a unit", f"{in_words(n)} days"),
    ]
    unequal = [
        ("off by one", in_words(n + 1)),
        ("not", f"not {in_words(n)}"),
        ("either", f"{in_words(n)} or {in_words(n + 1)}"),
        ("at least", rf"\text{{at least {in_words(n)}}}"),
        ("a million times", f"{n} million"),
        ("negative", f"negative {in_words(n)}"),
        ("of them", rf"\text{{{in_words(n)} less than x}}"),
    ]
    if n < 100:
        equal += [("Chinese", in_chinese(n))]
        unequal += [("Chinese, off by one", in_chinese(n - 1) if n > 10 else "九")]
    return Case(str(n), equal, unequal, symmetric=False, plain=True)


def an_eastern_unit(rng: Random) -> Case:
    n = rng.randint(2, 900)
    unit, other, english = rng.choice(
        [
            ("元", "角", "yuan"),
            ("米", "厘米", "meters"),
            ("小时", "分钟", "hours"),
            ("千克", "克", "kg"),
            ("円", "元", ""),
        ]
    )
    equal = [
        ("bare unit", f"{n}{unit}"),
        ("text", rf"{n}\text{{{unit}}}"),
        ("bare number", str(n)),
        ("space", f"{n} {unit}"),
    ]
    equal += [("English", rf"{n} \text{{ {english}}}")] if english else []
    unequal = [
        ("off by one", f"{n + 1}{unit}"),
        ("another unit", f"{n}{other}"),
        ("or more", f"{n}{unit}以上"),
        ("wrong", f"{n}不对"),
        ("ten thousand", f"{n}万{unit}"),
        ("negated", f"不是{n}"),
        ("or", f"{n}或{n + 1}"),
    ]
    return Case(f"{n}{unit}", equal, unequal, plain=True)


def an_infix_fraction(rng: Random) -> Case:
    top, bottom = rng.sample(range(2, 60), 2)
    value = Fraction(top, bottom)
    equal = [
        ("over", rf"{{{top} \over {bottom}}}"),
        ("over, no braces", rf"{top} \over {bottom}"),
        ("over, inside", rf"1 + {{{top - bottom} \over {bottom}}}"),
        ("doubled backslash", rf"\\frac{{{top}}}{{{bottom}}}"),
        ("HTML", f"<b>{top}/{bottom}</b>"),
        ("division", rf"{top} ÷ {bottom}"),
        ("colon", f"{top * 3}:{bottom * 3}={top}/{bottom}"),
    ]
    unequal = [
        ("turned round", rf"{{{bottom} \over {top}}}"),
        ("off by one", rf"{{{top + 1} \over {bottom}}}"),
        ("chosen", rf"{{{top} \choose {bottom}}}"),
        ("superscript", f"{top}<sup>{bottom}</sup>"),
        ("false chain", f"{top}:{bottom}={top + 1}/{bottom}"),
        ("doubled backslash, off", rf"\\frac{{{top}}}{{{bottom + 1}}}"),
    ]
    return Case(fraction(rng, value), equal, unequal, plain=True)


def a_combination(rng: Random) -> Case:
    n = rng.randint(5, 14)
    k = rng.randint(2, n - 2)
    while comb(n, k) == factorial(n) // factorial(n - k):
        k = rng.randint(2, n - 2)
    equal = [
        ("braces", rf"{{{n} \choose {k}}}"),
        ("index", rf"C_{{{n}}}^{{{k}}}"),
        ("index turned", rf"C^{{{k}}}_{{{n}}}"),
        ("roman", rf"\mathrm{{C}}_{{{n}}}^{{{k}}}"),
        ("prefix", rf"{{}}_{{{n}}}C_{{{k}}}"),
        ("upper prefix", rf"{{}}^{{{n}}}C_{{{k}}}"),
        ("value", str(comb(n, k))),
    ]
    unequal = [
        ("permutations", rf"A_{{{n}}}^{{{k}}}"),
        ("permutations", rf"{{}}_{{{n}}}P_{{{k}}}"),
        ("another n", rf"C_{{{n + 1}}}^{{{k}}}"),
        ("n and k swapped", rf"C_{{{k}}}^{{{n}}}"),
        ("a letter with an index", rf"C_{{{n}}}"),
        ("off by one", str(comb(n, k) + 1)),
        ("a constant", rf"C_{{{n}}}^{{{k}}} x"),
    ]
    return Case(rf"\binom{{{n}}}{{{k}}}", equal, unequal)


def a_repeating_decimal(rng: Random) -> Case:
    before = rng.choice(["", str(rng.randint(1, 9))])
    period = str(rng.randint(1, 8)) if rng.random() < 0.5 else str(rng.randint(12, 98))
    if len(set(period)) == 1:
        period = period[0]
    whole = rng.randint(0, 12)
    value = whole + Fraction(int(before or 0), 10 ** len(before)) if before else Fraction(whole)
    value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(before))
    dotted = rf"\dot{{{period[0]}}}" if len(period) == 1 else rf"\dot{period[0]}\dot{period[1]}"
    start = f"{whole}.{before}"
    equal = [
        ("dots above", start + dotted),
        ("overline", rf"{start}\overline{{{period}}}"),
        ("brackets", f"{start}({period})"),
        ("written out", rf"{start}{period * 4}\ldots"),
        ("combining line", start + "".join(digit + "\u0305" for digit in period)),
        ("fraction", fraction(rng, value)),
    ]
    unequal = [
        ("cut off", start + period),
        ("cut off", start + period * 3),
        ("another period", rf"{start}\overline{{{int(period) + 1}}}"),
        ("a digit more", rf"{start}{period}\overline{{{(int(period[-1]) + 1) % 10}}}"),
        ("another whole", rf"{whole + 1}.{before}{dotted}"),
    ]
    return Case(rf"\frac{{{value.numerator}}}{{{value.denominator}}}", equal, unequal, symmetric=False, plain=True)


def a_residue(rng: Random) -> Case:
    modulus = rng.randint(3, 40)
    value = rng.randrange(modulus)
    equal = [
        ("pmod", rf"{value} \pmod{{{modulus}}}"),
        ("congruence", rf"x \equiv {value} \pmod{{{modulus}}}"),
        ("bmod", rf"x \equiv {value} \bmod {modulus}"),
        ("words", rf"{value} \text{{ mod }} {modulus}"),
        ("brackets", rf"x \equiv {value} (\mathrm{{mod}}\ {modulus})"),
        ("another number", rf"x \equiv {value + 3 * modulus} \pmod{{{modulus}}}"),
        ("negative", rf"x \equiv {value - modulus} \pmod{{{modulus}}}"),
    ]
    unequal = [
        ("off by one", rf"x \equiv {value + 1} \pmod{{{modulus}}}"),
        ("another modulus", rf"x \equiv {value} \pmod{{{modulus + 1}}}"),
        ("no modulus", str(value)),
        ("modulus", str(modulus)),
        ("two classes", rf"x \equiv {value}, {value + 1} \pmod{{{modulus}}}"),
        ("another letter", rf"y \equiv {value} \pmod{{{modulus}}}"),
    ]
    return Case(rf"x \equiv {value} \pmod{{{modulus}}}", equal, unequal, symmetric=False)


def a_dotted_sum(rng: Random) -> Case:
    """a + (a+d) + … to n terms, and products."""
    a, d = rng.randint(1, 6), rng.randint(1, 5)
    last = f"({d}n + {a - d})" if a > d else (f"({d}n - {d - a})" if a < d else f"{d}n")
    last = last.replace("(1n", "(n") if d == 1 else last
    last = "n" if last == "1n" else last
    off = f"({d}n + {a})"
    equal = [
        ("three terms", rf"{a} + {a + d} + {a + 2 * d} + \cdots + {last}"),
        ("ldots", rf"{a} + {a + d} + \ldots + {last}"),
        ("closed", rf"\frac{{n({2 * a} + {d}(n-1))}}{{2}}"),
    ]
    unequal = [
        ("a term more", rf"{a} + {a + d} + \cdots + {off}"),
        ("another start", rf"{a + 1} + {a + 1 + d} + \cdots + {last}"),
        ("closed, off", rf"\frac{{n({2 * a} + {d}(n-1))}}{{2}} + 1"),
        ("closed, n + 1", rf"\frac{{n({2 * a} + {d}(n+1))}}{{2}}"),
        ("product", rf"{a} \cdot {a + d} \cdots {last}"),
        ("no end", rf"{a} + {a + d} + \cdots"),
    ]
    return Case(rf"{a} + {a + d} + \cdots + {last}", equal, unequal, symmetric=False)


def a_time(rng: Random) -> Case:
    hours, minutes = rng.randint(1, 9), rng.randint(10, 59)  # 10:47 may be either half of the day
    later = rng.random() < 0.5
    half, other = ("p", "a") if later else ("a", "p")
    full = f"{hours + 12 * later:02d}:{minutes}"
    equal = [
        ("dots", f"{hours}:{minutes} {half}.m."),
        ("capitals", rf"{hours}:{minutes} \text{{ {half.upper()}M}}"),
        ("zero", f"{hours:02d}:{minutes} {half.upper()}.M."),
        ("seconds", f"{hours}:{minutes}:00 {half}m"),
        ("24 hours", full),
        ("24 hours and seconds", f"{full}:00"),
    ]
    unequal = [
        ("other half", f"{hours}:{minutes} {other}.m."),
        ("24 hours, other half", f"{hours + 12 * (not later):02d}:{minutes}"),
        ("a minute", f"{hours}:{minutes + 1 if minutes < 59 else 10} {half}.m."),
        ("an hour", f"{hours % 11 + 1}:{minutes} {half}.m."),
        ("seconds", f"{full}:30"),
        ("minutes only", str(60 * hours + minutes)),
        ("a fraction", rf"\frac{{{hours}}}{{{minutes}}}"),
    ]
    return Case(f"{hours}:{minutes} \\text{{ {half}.m.}}", equal, unequal, plain=True)


def a_decimal_comma(rng: Random) -> Case:
    whole, digits = rng.randint(0, 99), rng.choice([rng.randint(1, 9), rng.randint(11, 99)])
    value = Fraction(f"{whole}.{digits}")
    reference = f"{whole}.{digits}" if rng.random() < 0.5 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    equal = [
        ("comma", f"{whole},{digits}"),
        ("braced comma", f"{whole}{{,}}{digits}"),
        ("named", f"x = {whole},{digits}"),
        ("point", f"{whole}.{digits}"),
    ]
    unequal = [
        ("off by one", f"{whole},{digits + 1}"),
        ("two numbers", f"{whole}, {digits}"),
        ("a pair", f"({whole},{digits})"),
        ("no comma", f"{whole}{digits}"),
        ("three numbers", f"{whole},{digits},{digits}"),
        ("turned round", f"{digits},{whole}" if digits != whole else f"{whole},{digits + 2}"),
        ("braced, off", f"{whole}{{,}}{digits + 1}"),
    ]
    return Case(reference, equal, unequal, symmetric=False, plain=True)


KINDS = {
    "number word": a_number_word,
    "eastern unit": an_eastern_unit,
    "infix fraction": an_infix_fraction,
    "combination": a_combination,
    "repeating decimal": a_repeating_decimal,
    "residue": a_residue,
    "dots": a_dotted_sum,
    "time": a_time,
    "decimal comma": a_decimal_comma,
}
