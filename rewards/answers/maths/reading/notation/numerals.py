"""Numbers in words, English and Chinese: twenty-five, two thirds, 2.5 million, 25万, 三分之二. Tokens in and out.

A word is read as a number only where a whole value stands, alone or before a unit, never inside a sentence.
"""

import re
from decimal import Decimal

from rewards.answers.maths.reading.tokens import Token
from rewards.answers.maths.reading.words import is_known_unit

_SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_UNITS = {word: n for n, word in enumerate(f"{_SMALL} seventeen eighteen nineteen".split())}
_TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {"half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7}
_PARTS |= {"eighth": 8, "ninth": 9, "tenth": 10}
_PARTS |= {f"{word}s": n for word, n in _PARTS.items() if n > 2}
_MINUS = {"minus", "negative"}
_NUMBER_WORDS = {*_UNITS, *_TENS, *_SCALES, *_PARTS, *_MINUS, "hundred", "and", "a", "an"}
_FIRST = _NUMBER_WORDS - {"and", "hundred", "thousand", "million"} - set(_PARTS) | {"half"}

_DIGITS = {sign: n for n, sign in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_PLACES = {"十": 10, "百": 100, "千": 1000}
_MYRIADS = {"万": 10**4, "亿": 10**8}
_CHINESE = re.compile("[零〇一二两三四五六七八九十百千万亿分之]+")

_ENDS = {",", "and", "or", ";", ")", "}", "]", "\\}", "%", "="}
_STARTS = {",", "and", "or", ";", "(", "{", "[", "\\{", "=", ":"}
_MAX_WORDS = 24


def spelled(tokens: list[Token]) -> list[Token]:
    """The tokens with numbers instead of number words."""
    if not any(token.kind in ("word", "text") for token in tokens):
        return tokens
    out: list[Token] = []
    i = 0
    while i < len(tokens):
        found = _scaled(tokens, i) if tokens[i].kind == "num" else _in_words(tokens, i)
        if found is None:
            out.append(tokens[i])
            i += 1
        else:
            new, i = found
            out += new
    return out


def _scaled(tokens: list[Token], i: int) -> tuple[list[Token], int] | None:
    """2.5 million dollars, 25万元."""
    if i + 1 == len(tokens) or tokens[i + 1].kind not in ("word", "text") or not _begins(tokens, i):
        return None
    said = tokens[i + 1].text
    first, _, rest = said.lower().partition(" ")
    scale = _SCALES.get(first) or (100 if first == "hundred" else None)
    if scale is None and said[0] in _MYRIADS:
        scale, rest = _MYRIADS[said[0]], said[1:]
    if scale is None or "e" in tokens[i].text.lower() or not _ends(tokens, i + 2, rest):
        return None
    digits = format((Decimal(tokens[i].text) * scale).normalize(), "f")
    return [Token("num", digits, tokens[i].spaced), *_unit(rest)], i + 2


def _in_words(tokens: list[Token], i: int) -> tuple[list[Token], int] | None:
    """The longest number in words from here on, if it is a whole value."""
    a_part = tokens[i].text == "a" and i + 1 < len(tokens) and tokens[i + 1].text in {*_PARTS, *_SCALES, "hundred"}
    if not (tokens[i].kind in ("word", "text") or a_part) or not _begins(tokens, i):
        return None
    if _CHINESE.match(tokens[i].text):
        return _in_chinese(tokens, i)
    if re.split("[ -]", tokens[i].text.lower(), maxsplit=1)[0] not in _FIRST:
        return None
    said: list[str] = []
    end, rest = i, ""
    while end < len(tokens) and tokens[end].kind in ("word", "text", "-", "and", "sym") and len(said) < _MAX_WORDS:
        new = tokens[end].text.lower().replace("-", " ").split()
        count = next((n for n, word in enumerate(new) if word not in _NUMBER_WORDS), len(new))
        said += new[:count]
        if count == 0 and new:
            break
        end += 1
        if count < len(new):
            rest = " ".join(new[count:])
            break
    if said[-1:] == ["and"]:  # two and x
        said, end = said[:-1], end - 1
    value = _fraction(said)
    if value is None or not _ends(tokens, end, rest):
        return None
    sign, top, bottom = value
    number = [Token("num", str(top), tokens[i].spaced)]
    if bottom != 1:
        number = [Token("cmd", "frac", True), *_braced(top), *_braced(bottom)]
    return [*([Token("-", "-", True)] if sign < 0 else []), *number, *_unit(rest)], end


def _begins(tokens: list[Token], i: int) -> bool:
    """Whether a value may begin here."""
    before = tokens[i - 1].kind if i else ","
    return before in _STARTS or (before == "-" and (i == 1 or tokens[i - 2].kind in _STARTS))


def _ends(tokens: list[Token], i: int, rest: str) -> bool:
    """Whether the value ends here or a known unit follows, the only one."""
    if rest:
        return is_known_unit(rest) and (i == len(tokens) or tokens[i].kind in _ENDS)
    if i == len(tokens) or tokens[i].kind in _ENDS:
        return True
    unit = tokens[i].kind in ("word", "text", "roman") and is_known_unit(tokens[i].text)
    return unit and (i + 1 == len(tokens) or tokens[i + 1].kind in _ENDS | {"^"})


def _unit(rest: str) -> list[Token]:
    return [Token("text", rest, True)] if rest else []


def _braced(number: int) -> list[Token]:
    return [Token("{", "{", False), Token("num", str(number), False), Token("}", "}", False)]


def _fraction(said: list[str]) -> tuple[int, int, int] | None:
    """(sign, numerator, denominator) of minus two thirds, three and a half."""
    sign = 1
    if said[:1] and said[0] in _MINUS:
        sign, said = -1, said[1:]
    if said[-1:] and said[-1] in _PARTS:
        bottom = _PARTS[said[-1]]
        whole, part = [], said[:-1]
        if "and" in part:
            place = len(part) - 1 - part[::-1].index("and")
            whole, part = part[:place], part[place + 1 :]
        top = 1 if part in (["a"], ["an"]) or (not part and bottom == 2) else _cardinal(part)
        more = 0 if not whole else _cardinal(whole)
        return None if top is None or more is None or (whole and top >= bottom) else (sign, more * bottom + top, bottom)
    top = _cardinal(said)
    return None if top is None else (sign, top, 1)


def _cardinal(said: list[str]) -> int | None:
    """The value of one hundred and five thousand two hundred; None if the words are not one number."""
    if said[:1] == ["a"] and len(said) > 1 and (said[1] in _SCALES or said[1] == "hundred"):
        said = ["one", *said[1:]]
    total, group, last = 0, None, 10**15  # last: the size of the previous word
    size = 10**15  # of the last scale
    for i, word in enumerate(said):
        if word == "and":
            if i == 0 or i + 1 == len(said) or last not in (100, *_SCALES.values()):
                return None
        elif word in _UNITS:
            room = last > 20 or (last == 20 and 0 < _UNITS[word] < 10)
            if not room or (group is not None and _UNITS[word] == 0):
                return None
            group, last = (group or 0) + _UNITS[word], 1
        elif word in _TENS:
            if last <= 20:
                return None
            group, last = (group or 0) + _TENS[word], 20
        elif word == "hundred":
            if group is None or not 0 < group < 100 or last >= 100:
                return None
            group, last = group * 100, 100
        elif word in _SCALES:
            if not group or _SCALES[word] >= size:
                return None
            total, group, last, size = total + group * _SCALES[word], None, _SCALES[word], _SCALES[word]
        else:
            return None
    return None if not said or (group is None and not total) else total + (group or 0)


def _in_chinese(tokens: list[Token], i: int) -> tuple[list[Token], int] | None:
    """三分之二, 二十五元."""
    match = _CHINESE.match(tokens[i].text)
    assert match is not None
    said, rest = match.group(), tokens[i].text[match.end() :]
    if said.endswith("分") and not rest:  # 五分: minutes or points
        said, rest = said[:-1], "分"
    bottom, divided, top = said.partition("分之")
    values = [_chinese(part) for part in ((top, bottom) if divided else (said,))]
    if None in values or values[-1] == 0 or not _ends(tokens, i + 1, rest):
        return None
    number = [Token("num", str(values[0]), tokens[i].spaced)]
    if divided:
        number = [Token("cmd", "frac", True), *(token for value in values for token in _braced(value or 0))]
    return [*number, *_unit(rest)], i + 1


def _chinese(said: str) -> int | None:
    """二十五 is 25, 三万零二百 is 30200; None if it is not one number."""
    total = section = 0
    digit: int | None = None
    last, myriad = 10**4, 10**9
    for sign in said:
        if sign in _DIGITS:
            if digit not in (None, 0):
                return None
            digit = _DIGITS[sign]
        elif sign in _PLACES:
            if _PLACES[sign] >= last or digit == 0 or (digit is None and (sign != "十" or section)):
                return None
            last = _PLACES[sign]
            section, digit = section + (1 if digit is None else digit) * last, None
        elif sign in _MYRIADS:
            section += digit or 0
            if not section or _MYRIADS[sign] >= myriad:
                return None
            myriad = _MYRIADS[sign]
            total, section, digit, last = total + section * myriad, 0, None, 10**4
        else:
            return None
    if digit and last > 10 and (section or total) and said[-2] not in "零〇":
        return None  # 二百五 is 250 in speech
    return total + section + (digit or 0) if said else None
