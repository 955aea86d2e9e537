"""LaTeX for exactly known values, in the styles people and models use, without sympy."""

import re
from collections.abc import Sequence
from fractions import Fraction
from random import Random

_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[A-Za-z]{2,}|[0-9]*\.?[0-9]+|.", re.DOTALL)
_OPAQUE = re.compile(
    r"\\(?:text|mbox|textbf|mathrm|textnormal|begin\{array\}|begin|end|operatorname)\s*\{[^{}]*\}"
    r"|[0-9]{1,3}(?:(?:\{,\}(?:\\!)?|\\,|,\\!|,)[0-9]{3})+(?:\.[0-9]+)?"  # a number with separators
)
_LOOSE = set("+-=<>")  # signs that allow any spacing around them
_OPENING, _CLOSING = "([", ")]"


def integer(rng: Random, n: int) -> str:
    """7425000 as 7425000, 7,425,000, 7{,}425{,}000, 7\\,425\\,000, …"""
    if abs(n) < 1000:
        return str(n)
    return f"{n:,}".replace(",", rng.choice(["", "", ",", "{,}", r"\,", r",\!", r"{,}\!"]))


def fraction(rng: Random, value: Fraction) -> str:
    """A fraction of integers: any \\frac command or a slash, sign in front or in the numerator, sometimes unreduced."""
    scale = rng.choice([1, 1, 1, 1, 1, 2, 3, 10])
    top, bottom = abs(value.numerator) * scale, value.denominator * scale
    minus = "-" if value < 0 else ""
    style = rng.randrange(6)
    if style == 0:
        return f"{minus}{top}/{bottom}"
    if style == 1 and minus:
        return rf"\frac{{{minus}{top}}}{{{bottom}}}"
    if style == 2 and top < 10 and bottom < 10:
        return rng.choice(
            [rf"{minus}\frac{top}{bottom}", rf"{minus}\frac {top} {bottom}", rf"{minus}\frac{{{top}}}{bottom}"]
        )
    return rf"{minus}\{rng.choice(['frac', 'frac', 'dfrac', 'tfrac', 'cfrac'])}{{{top}}}{{{bottom}}}"


def terminates(value: Fraction) -> bool:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def decimal(value: Fraction) -> str:
    """All digits of a terminating fraction: 3/8 is 0.375."""
    digits = 0
    while (value * 10**digits).denominator != 1:
        digits += 1
    whole = str(abs(int(value * 10**digits))).zfill(digits + 1)
    text = whole if digits == 0 else f"{whole[:-digits]}.{whole[-digits:]}"
    return "-" + text if value < 0 else text


def rounded(value: Fraction, digits: int) -> str:
    """To `digits` places, halves to even: 2/3 to 3 places is 0.667."""
    scaled = round(value * 10**digits)
    text = str(abs(scaled)).zfill(digits + 1)
    return ("-" if scaled < 0 else "") + (f"{text[:-digits]}.{text[-digits:]}" if digits else text)


def mixed(rng: Random, value: Fraction) -> str:
    """3/2 as 1\\frac{1}{2}; |value| > 1 and not an integer."""
    whole, rest = divmod(abs(value.numerator), value.denominator)
    command = rng.choice(["frac", "dfrac", "tfrac"])
    gap = rng.choice(["", "", " ", r"\,"])
    return rf"{'-' if value < 0 else ''}{whole}{gap}\{command}{{{rest}}}{{{value.denominator}}}"


def scientific(rng: Random, value: Fraction) -> str:
    """1500 as 1.5 \\times 10^{3}; the value is a nonzero terminating decimal."""
    exponent, mantissa = 0, abs(value)
    while mantissa >= 10:
        mantissa, exponent = mantissa / 10, exponent + 1
    while mantissa < 1:
        mantissa, exponent = mantissa * 10, exponent - 1
    times = rng.choice([r"\times", r"\cdot", r" \times "])
    return f"{'-' if value < 0 else ''}{decimal(mantissa)}{times} 10^{{{exponent}}}"


def number(rng: Random, value: Fraction) -> str:
    """A rational number in any exact notation."""
    if value.denominator == 1:
        return integer(rng, value.numerator)
    if terminates(value) and rng.random() < 0.25:
        return decimal(value)
    if abs(value) > 1 and rng.random() < 0.15:
        return mixed(rng, value)
    return fraction(rng, value)


def coefficient(rng: Random, value: Fraction) -> str:
    """A number in front of a symbol: '', '-', '3', '\\frac{1}{2}'; never a slash or a mixed number."""
    if abs(value) == 1:
        return "-" if value < 0 else ""
    if value.denominator == 1:
        return str(value.numerator)
    return rf"{'-' if value < 0 else ''}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def total(terms: Sequence[str], spaced: bool = True) -> str:
    """Signed terms joined into a sum: ["2x", "-3"] is 2x - 3."""
    text = terms[0]
    for term in terms[1:]:
        sign, body = ("-", term[1:]) if term.startswith("-") else ("+", term)
        text += f" {sign} {body}" if spaced else f"{sign}{body}"
    return text


def restyle(rng: Random, latex: str) -> str:
    """The same formula with other spacing, \\left and \\right, and \\frac commands. Text stays unchanged."""
    parts, end = [], 0
    for opaque in _OPAQUE.finditer(latex):
        parts += [_restyle_tokens(rng, latex[end : opaque.start()]), opaque.group()]
        end = opaque.end()
    return "".join([*parts, _restyle_tokens(rng, latex[end:])])


def _restyle_tokens(rng: Random, latex: str) -> str:
    tokens = _TOKEN.findall(latex)
    pairs = _pairs(tokens) if r"\left" not in tokens and r"\right" not in tokens and rng.random() < 0.5 else set()
    spaces = rng.choice([[""], ["", "", " "], ["", "", "", r"\,", r"\;", r"\!", " "]])
    fractions = rng.choice([None, "\\frac", "\\dfrac", "\\tfrac"])
    out = ""
    for index, token in enumerate(tokens):
        if index in pairs:
            token = (r"\left" if token in _OPENING else r"\right") + token
        elif fractions and token in ("\\frac", "\\dfrac", "\\tfrac"):
            token = fractions
        out += token
        follows = tokens[index + 1] if index + 1 < len(tokens) else ""
        out += _gap(rng, spaces, token, follows)
    return out


def _gap(rng: Random, spaces: Sequence[str], token: str, follows: str) -> str:
    """A space without effect; none in command arguments and between digits and commas, where it could have one."""
    gap = rng.choice(spaces)
    if token.startswith("\\") and token[1:].isalpha():
        return " " if gap or (follows[:1].isalpha()) else ""
    if not follows or token in "^_\\'" or follows in "^_'!" or token == "," or follows == ",":
        return ""
    if token[:1].isdigit() and follows[:1].isdigit():
        return ""
    if gap.startswith("\\") and token not in _LOOSE and follows not in _LOOSE:
        return " "  # a thin space might become an argument: \frac 1\,2
    return gap


def _pairs(tokens: Sequence[str]) -> set[int]:
    """Indices of matching brackets, if all match; an interval's [ may be closed by )."""
    stack: list[int] = []
    found: set[int] = set()
    braces = 0
    for index, token in enumerate(tokens):
        braces += {"{": 1, "}": -1}.get(token, 0)
        if token in _OPENING and not (index and tokens[index - 1] == r"\sqrt"):
            stack.append(index)
        elif token in _CLOSING and stack:
            found |= {stack.pop(), index}
    return set() if stack or ("[" in "".join(tokens) and r"\sqrt" in tokens) else found


def wrap(rng: Random, latex: str) -> str:
    """The answer with delimiters or spacing that are not part of it."""
    return rng.choice(
        [
            "{}",
            "{}",
            "{}",
            "{}",
            " {} ",
            "${}$",
            "$ {} $",
            r"\({}\)",
            r"\[{}\]",
            "$${}$$",
            "{}.",
            r"\displaystyle {}",
            r"\,{}\,",
            "\n{}\n",
            "{{{}}}",
        ]
    ).format(latex)
