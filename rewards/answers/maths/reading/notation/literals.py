r"""Single numbers from tokens: decimals, repeating decimals, numbers in a base, times of day.

0.\dot{1}\dot{6}, 0.(6), 0.1\overline{6}; 110_2, 110_{\text{two}}, 110 base 2; 07:15:00. Values with operations are in
`scalar`, numbers in words in `numerals`.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from rewards.answers.maths.nodes import Based, Clock, Node, Num, Op, Seq, Unreadable
from rewards.answers.maths.reading.tokens import Token, Tokens

_BASES = """two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen""".split()  # noqa: SIM905
_DIGITS = re.compile(r"[0-9A-Z]+(?:\.[0-9A-Z]+)?")
_HALVES = {"am": "am", "pm": "pm", "noon": "pm", "midnight": "am"}


def number(text: str) -> Num:
    """The value of digits, with a decimal point or an exponent."""
    mantissa, _, exponent = text.lower().partition("e")
    value = Fraction(mantissa)
    places = len(mantissa.partition(".")[2]) if "." in mantissa else None
    if exponent:
        if abs(int(exponent)) > 400:
            raise Unreadable("an exponent larger than 400")
        value *= Fraction(10) ** int(exponent)
    return Num(value, places)


# -- repeating decimals


def repeating(start: Num, tokens: Tokens) -> tuple[Num, Tokens]:
    """The repeating decimal whose digits before the period were just read, and the tokens after it."""
    rest = tokens
    if start.places is None and start.value.denominator == 1 and rest[:1] and rest[0].kind == ".":
        start, rest = Num(start.value, 0), rest[1:]
    if start.places is None or not rest:
        return start, tokens
    if rest[0].kind == "(" and start.places == 0:
        period = "".join(token.text for token in rest[1:2])
        if len(rest) < 3 or rest[2].kind != ")" or not period.isdigit():
            raise Unreadable("a decimal point without digits")
        return _with_period(start, period), rest[3:]
    name = rest[0].text if rest[0].kind == "cmd" else ""
    if name in ("overline", "bar"):
        digits, rest = _digits(rest[1:])
        return _with_period(start, digits), rest
    if name == "dot":
        return _dotted(start, rest)
    if start.places == 0:
        raise Unreadable("a decimal point without digits")
    return start, tokens


def whole_repeating(tokens: Tokens) -> Num | None:
    """0.1(6), which inside an expression is a product."""
    kinds = [token.kind for token in tokens]
    if kinds != ["num", "(", "num", ")"] or tokens[1].spaced or not tokens[2].text.isdigit():
        return None
    start = number(tokens[0].text)
    return _with_period(start, tokens[2].text) if start.places else None


def _dotted(start: Num, rest: Tokens) -> tuple[Num, Tokens]:
    r"""\dot{1}4285\dot{7}: from the first to the last dot; one dot, one digit."""
    first, rest = _digits(rest[1:])
    between, tail = first[1:], rest
    if tail and tail[0].kind == "num" and tail[0].text.isdigit() and not tail[0].spaced:
        between, tail = between + tail[0].text, tail[1:]
    if tail and tail[0][:2] == ("cmd", "dot"):
        last, tail = _digits(tail[1:])
        if len(last) != 1:
            raise Unreadable("dots over several digits")
        return _with_period(start, first[0] + between + last), tail
    if tail is not rest:
        raise Unreadable("digits after a repeating one")
    return _with_period(start, first), rest


def _digits(tokens: Tokens) -> tuple[str, Tokens]:
    """The digits in braces or without, and the tokens after them."""
    inside, rest = tokens[:1], tokens[1:]
    if inside and inside[0].kind == "{":
        end = next((i for i, token in enumerate(tokens) if token.kind == "}"), 0)
        inside, rest = tokens[1:end], tokens[end + 1 :]
    digits = "".join(token.text for token in inside)
    if not digits.isdigit():
        raise Unreadable("a repeating decimal without digits")
    return digits, rest


def _with_period(start: Num, period: str) -> Num:
    return Num(start.value + Fraction(int(period), (10 ** len(period) - 1) * 10 ** (start.places or 0)))


# -- numbers in a base


def based(tokens: Tokens) -> Based | Num | None:
    r"""1011_2, -2A_{16}, 0.011_2, (1011)_2, 110_{\text{two}}, 110 base 2; in base ten, a number."""
    if not tokens:
        return None
    if tokens[0].kind == "-" and (inner := based(tokens[1:])) is not None:
        return Num(-inner.value, inner.places) if isinstance(inner, Num) else Based(f"-{inner.digits}", inner.base)
    place = next((i for i, token in enumerate(tokens) if i and (token.kind == "_" or _says_base(token))), 0)
    if not place:
        return None
    digits, said = tokens[:place], tokens[place:]
    if digits[-1].kind == "(" and said[-1].kind == ")":  # 110 (base 2)
        digits, said = digits[:-1], said[:-1]
    base = _base([token for token in said if token.kind not in ("_", "{", "}", "(", ")")])
    if digits[-1:] and digits[-1].text == "in":
        digits = digits[:-1]
    if len(digits) > 2 and digits[0].kind == "(" and digits[-1].kind == ")":
        digits = digits[1:-1]
    text = "".join(token.text for token in digits).upper()
    if base is None or not text.isascii() or not _DIGITS.fullmatch(text) or not any(t.kind == "num" for t in digits):
        return None
    if any(int(digit, 36) >= base for digit in text.replace(".", "")):
        return None
    return number(text) if base == 10 else Based(text, base)


def _says_base(token: Token) -> bool:
    return token.kind in ("word", "text") and token.text.lower().split()[0] in ("base", "in") and "base" in token.text


def _base(tokens: Tokens) -> int | None:
    words = [word for token in tokens for word in token.text.lower().strip("()").split()]
    words = words[1:] if words[:1] == ["in"] else words
    words = words[1:] if words[:1] == ["base"] else words
    if len(words) != 1:
        return None
    if words[0] in _BASES:
        return _BASES.index(words[0]) + 2
    return int(words[0]) if words[0].isdigit() and len(words[0]) <= 2 else None


# -- times of day


def clock(tokens: Tokens, words: str = "") -> Clock | None:
    """07:15:00, 7:05, 00:30, and with am or pm also 7:15 and 7; None for 7:15 alone, which may be a ratio."""
    parts = [token.text for token in tokens[::2]]
    if any(token.kind != (":" if i % 2 else "num") for i, token in enumerate(tokens)) or len(tokens) % 2 == 0:
        return None
    half = _HALVES.get(words.lower().replace(".", "").replace(" ", ""), "")
    if words and not half:
        return None
    padded = [len(part) == 2 and part.startswith("0") for part in parts]
    if not half and not (len(parts) > 1 and any(padded)):
        return None
    read = time_of_day(parts, half)
    return read if read is None or half or not padded[0] else Clock(read.seconds, "24h")


def time_of_day(parts: Sequence[str], half: str = "") -> Clock | None:
    """The time with hours, minutes and seconds of two digits each; None if it is not one."""
    if len(parts) > 3 or not all(part.isdigit() and len(part) == 2 and int(part) < 60 for part in parts[1:]):
        return None
    if not parts[0].isdigit() or len(parts[0]) > 2 or int(parts[0]) > (12 if half else 24):
        return None
    hours, minutes, seconds = (int(part) for part in [*parts, "0", "0"][:3])
    if half:
        hours = hours % 12 + (12 if half == "pm" else 0)
    elif not 1 <= hours <= 12:
        half = "24h"
    return Clock(3600 * (hours % 24) + 60 * minutes + seconds, half)


def as_time(ratio: Node) -> Clock | None:
    """7:15, read as a ratio, as the time it may be; the minutes' two digits are known from their value only above 9."""
    match ratio:
        case Op("ratio", parts) | Seq("ratio", parts):
            pass
        case _:
            return None
    values = [int(part.value) for part in parts if isinstance(part, Num) and part == Num(Fraction(int(part.value)))]
    if len(values) < len(parts):
        return None
    if len(values) < 2 or not all(0 <= value < 60 for value in values) or any(value < 10 for value in values[1:]):
        return None
    return time_of_day([str(values[0]), *(f"{value:02d}" for value in values[1:])])
