"""Words in answers: texts, units, and words that may be dropped."""

import re

from rewards.answers.maths.nodes import Node, Op, Sym, Text, Union
from rewards.answers.maths.reading.tokens import Token

# Words that change the meaning of the value next to them: such an answer is not read as the value.
_QUALIFIERS = {
    *("not", "no", "never", "except", "less", "more", "least", "most", "greater", "than", "under", "over", "between"),
    *("false", "incorrect", "wrong", "isn't", "cannot", "unless", "without", "approximately less", "maybe", "either"),
    *("mod", "modulo", "base", "minus", "plus", "times", "half", "twice", "double", "dozen", "hundred", "thousand"),
    *("million", "billion", "trillion", "squared", "cubed", "factorial", "repeating", "recurring"),
}
# After a value, these do, too; before it, some carry no meaning.
_RESERVATIONS = {"but", "if", "otherwise", "or", "perhaps", "wait", "instead", "approximately", "about"}
# Words before a value that carry no meaning.
_LEADING = {
    *("the", "answer", "is", "are", "only", "final", "value", "of", "equals", "thus", "therefore", "so", "hence", "a"),
    *("approximately", "about", "total", "exactly", "we", "get", "have", "for", "all", "option", "choice", "result"),
    *("day", "year", "step", "room", "each", "day", "number", "area", "sum", "length", "case"),
    *(
        "答",
        "答案",
        "答案是",
        "答案为",
        "是",
        "为",
        "约",
        "约为",
        "共",
        "共有",
        "所以",
        "因此",
        "答え",
        "答えは",
        "정답",
        "정답은",
    ),
}
_SHORT_WORDS = {"no", "is", "of", "to", "in", "at", "it"}
_QUANTIFIERS = {"for", "where", "with"}
_UNIVERSAL = re.compile("for (?:all|every|any|each)(?![a-z])", re.IGNORECASE)
_MEMBERSHIP = {"in", "le", "ge", "ne", "<", ">"}
_ARTICLES = {"the", "a", "an", "is", "are", "it", "of", "and"}
_EVERYTHING = {"all real numbers", "real numbers", "all reals", "every real number"}
_INFINITELY = {"infinitely many", "infinite", "infinity", "infinitely many solutions", "infinitely"}
_NOTHING = {"no solution", "no solutions", "none", "empty set", "no real solutions", "no such", "does not exist", "dne"}
_UNITS = {
    "m": ["m", "meter", "meters", "metre", "metres"],
    "cm": ["cm", "centimeter", "centimeters", "centimetre", "centimetres"],
    "mm": ["mm", "millimeter", "millimeters"],
    "km": ["km", "kilometer", "kilometers", "kilometre", "kilometres"],
    "ft": ["ft", "foot", "feet"],
    "in": ["inch", "inches"],
    "yd": ["yd", "yard", "yards"],
    "mi": ["mi", "mile", "miles"],
    "g": ["g", "gram", "grams"],
    "kg": ["kg", "kilogram", "kilograms"],
    "lb": ["lb", "lbs", "pound", "pounds"],
    "s": ["s", "sec", "second", "seconds"],
    "min": ["min", "minute", "minutes", "mins"],
    "am": ["am", "a.m"],
    "pm": ["pm", "p.m"],
    "h": ["h", "hr", "hrs", "hour", "hours"],
    "day": ["day", "days"],
    "week": ["week", "weeks"],
    "month": ["month", "months"],
    "year": ["year", "years", "yrs"],
    "dollar": ["dollar", "dollars", "usd"],
    "cent": ["cent", "cents"],
    "euro": ["euro", "euros"],
    "yuan": ["yuan"],
    "deg": ["degree", "degrees", "deg"],
    "%": ["percent", "percentage", "pct"],
    "l": ["l", "liter", "liters", "litre", "litres"],
    "ml": ["ml", "milliliter", "milliliters"],
    "mi/h": ["mph"],
    "km/h": ["kph", "kmph"],
    "rad": ["rad", "radian", "radians"],
}
_EASTERN = {
    "m": "米 メートル 미터",
    "cm": "厘米 センチ 센티미터",
    "mm": "毫米",
    "km": "千米 公里 キロ 킬로미터",
    "m2": "平方米 ㎡",
    "cm2": "平方厘米",
    "km2": "平方千米 平方公里",
    "m3": "立方米",
    "cm3": "立方厘米",
    "g": "克 グラム 그램",
    "kg": "千克 公斤 キログラム 킬로그램",
    "s": "秒 秒钟 초",
    "min": "分钟 分間",
    "h": "小时 時間 시간",
    "day": "天 日",
    "week": "周 星期 週間 주",
    "month": "个月 か月 개월",
    "year": "年 岁 歳 살",
    "yuan": "元 元钱 块钱 人民币",
    "jiao": "角",
    "yen": "円",
    "won": "원",
    "deg": "度 도",
    "l": "升 リットル 리터",
    "ml": "毫升",
}
# In words after a number, these change its meaning: 以上 or more, 左右 about, 不 not, 半 half, 万 ten thousand.
_EASTERN_QUALIFIERS = set("不非没沒未错錯误誤以上下左右至超多少余餘约約几幾或半成万亿千百十零另外无無负負")
_EAST = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af㎡]+")
_CANONICAL = {spelling: unit for unit, spellings in _UNITS.items() for spelling in spellings}
_CANONICAL |= {spelling: unit for unit, spellings in _EASTERN.items() for spelling in spellings.split()}
_VOWEL = re.compile("[aeiouAEIOU\u00c0-\uffff]")


def is_word(token: Token) -> bool:
    """Whether letters form a word or a name (`odd`, `Paolo`), not a product of variables (`xy`)."""
    if token.kind == "text" or _EAST.match(token.text):
        return True
    short = len(token.text) < 3 and token.text.lower() not in _SHORT_WORDS
    return token.kind == "word" and not short and (len(token.text) > 3 or _VOWEL.search(token.text) is not None)


def is_unit(token: Token) -> bool:
    """Whether a token may follow a number as its unit."""
    if token.kind == "roman":
        return True
    if _EAST.match(token.text):
        return token.text in _CANONICAL or not _EASTERN_QUALIFIERS & set(token.text)
    if token.kind == "word" and token.text.lower() in _CANONICAL:
        return True
    return is_word(token) and (token.kind == "text" or len(token.text) > 3 or token.spaced)


def is_known_unit(said: str) -> bool:
    """Whether words are a unit, or what Chinese, Japanese and Korean put after a number: 3 cm, 25元, 5个."""
    eastern = _EAST.fullmatch(said) is not None and not _EASTERN_QUALIFIERS & set(said)
    return eastern or unit(said) is not None


def is_eastern(said: str) -> bool:
    """Whether it begins with a Chinese, Japanese or Korean letter."""
    return _EAST.match(said) is not None


def without_quantifier(tokens: list[Token]) -> list[Token]:
    """The tokens without a final `for all x > 0`, `where k is an integer`, `(n \\in \\mathbb{Z})`."""
    for i in range(1, len(tokens)):
        begins = tokens[i].kind in ("text", "word") and tokens[i].text.lower().split()[0] in _QUANTIFIERS
        if begins or tokens[i][:2] == ("cmd", "forall"):
            return tokens[:i]
        if tokens[i].kind == "(" and tokens[-1].kind == ")" and any(t[:2] == ("cmd", "in") for t in tokens[i:]):
            return tokens[:i] if all(t.kind not in (",", "=") for t in tokens[i:]) else tokens
    return tokens


def without_domain(tokens: list[Token]) -> list[Token]:
    """The tokens without `, for all x > 0` at the end or `for all x in ℝ,` in front, where commas separate them."""
    for i in range(1, len(tokens) - 1):
        if (
            tokens[i].kind == ","
            and _is_universal(tokens[i + 1 :])
            and all(t.kind not in ("=", ";") for t in tokens[i:])
        ):
            tokens = tokens[:i]
            break
    if not _is_universal(tokens):
        return tokens
    ends = [i for i, token in enumerate(tokens) if token.kind in (",", ":")]
    for end in ends:  # for all x, y > 0, …
        if any(token.text in _MEMBERSHIP for token in tokens[:end]):
            return tokens[end + 1 :]
    return tokens[ends[0] + 1 :] if ends else tokens


def _is_universal(tokens: list[Token]) -> bool:
    """Whether tokens begin with ∀ or `for all`."""
    if tokens[:1] and tokens[0].kind in ("word", "text"):
        return _UNIVERSAL.match(" ".join(token.text for token in tokens[:2])) is not None
    return tokens[:1] != [] and tokens[0][:2] == ("cmd", "forall")


def leading(tokens: list[Token]) -> tuple[list[Token], str]:
    """The tokens after meaningless leading words, and those words."""
    count = 0
    for token in tokens:
        said = token.text.lower().split()
        if (
            token.kind not in ("word", "text")
            or not said
            or not all(word.strip(".,:") in _LEADING | _QUALIFIERS for word in said)
        ):
            break
        count += 1
    if count and count < len(tokens) and tokens[count].kind in (":", "="):
        return tokens[count + 1 :], _join(tokens[:count])
    return tokens[count:], _join(tokens[:count])


def trailing(tokens: list[Token]) -> tuple[list[Token], str]:
    """The tokens before a unit or a remark, and the words of that: `5 cm^{2}`, `7 stuffed goats`."""
    depth = 0
    for i, token in enumerate(tokens):
        depth += (token.kind in ("(", "[", "{", "\\{")) - (token.kind in (")", "]", "}", "\\}"))
        if i and depth == 0 and is_unit(tokens[i]) and _ends_in_words(tokens[i:]) and _may_end(tokens[i - 1]):
            return tokens[:i], _join(tokens[i:])
    return tokens, ""


def _may_end(token: Token) -> bool:
    """Whether a value may end here."""
    return token.kind in ("num", "sym", ")", "]", "}", "\\}", "!", "%", "cmd") and token.text not in ("frac", "sqrt")


def _ends_in_words(tokens: list[Token]) -> bool:
    allowed = {"text", "word", "roman", "^", "{", "}", "/", ".", "(", ")", "num", "'", "-"}
    if any(token.kind not in allowed and token.text not in ("cdot", "A", "B", "C", "a", "x", "n") for token in tokens):
        return False
    # A number among words is the unit's exponent.
    return all(token.kind != "num" or tokens[i - 1].kind in ("^", "{", "-") for i, token in enumerate(tokens))


def qualifier(said: str) -> str | None:
    """A word that changes the meaning of the value next to it, or None."""
    return _first_of(_QUALIFIERS, said)


def reservation(said: str) -> str | None:
    """A word that changes the meaning of the value before it, or None: `5, but maybe 6`, `5 approximately`."""
    return _first_of(_QUALIFIERS | _RESERVATIONS, said)


def _first_of(words: set[str], said: str) -> str | None:
    return next((word for word in re.split(r"[^a-z']+", said.lower()) if word in words), None)


def text(said: str) -> Node:
    """A text answer in lower case, without articles and punctuation; `infinitely many` is ∞."""
    said = re.sub(r"[^\w\s%+'-]", " ", said.lower())
    plain = " ".join(said.split())
    if plain in _INFINITELY:
        return Op("∞")
    if plain in _EVERYTHING:
        return Sym("ℝ")
    if plain in _NOTHING:
        return Union(())
    words = [word for word in plain.split() if word not in _ARTICLES]
    return Text(" ".join(words) or plain)


def unit(said: str) -> str | None:
    """The unit in canonical spelling: `square centimeters` and `cm^2` are cm2; None if unknown."""
    said = said.lower().replace("{", "").replace("}", "").replace("^", "").strip(" .")
    power = ""
    for name, digit in (("square ", "2"), ("sq ", "2"), ("cubic ", "3")):
        if said.startswith(name):
            said, power = said.removeprefix(name), digit
    if said[-1:].isdigit():
        said, power = said[:-1].strip(), said[-1]
    parts = [part.strip() for part in re.split(r"/|\bper\b", said)]
    known = [_CANONICAL.get(part) for part in parts]
    return "/".join(name for name in known if name) + power if all(known) else None


def with_power(said: str) -> str:
    """`square cm` for `cm squared`; other words as they are."""
    match = re.fullmatch(r"([a-z]+) (squared|cubed)\W*", said.lower())
    if match is None or match[1] not in _CANONICAL.keys() | {"unit", "units"}:
        return said
    return f"{'square' if match[2] == 'squared' else 'cubic'} {match[1]}"


def remark(tokens: list[Token]) -> int | None:
    """The index at which a remark of four or more words begins, after the value; or None."""
    for i in range(1, len(tokens)):
        if tokens[i].kind == "text" and len(tokens[i].text.split()) > 3 and _may_end(tokens[i - 1]):
            return i
    return None


def _join(tokens: list[Token]) -> str:
    return " ".join(token.text for token in tokens)
