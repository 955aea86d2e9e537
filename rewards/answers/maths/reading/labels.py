r"""Labels next to a value: the letter of an option, `(B) 420`, and the quantity before a sign, `|S| = 25`.

A quantity's name says whose value follows; an equation in one unknown, `2x = 25`, says that another value is meant.
"""

import re
from itertools import pairwise

from rewards.answers.maths.reading import words
from rewards.answers.maths.reading.scalar import Tokens, matching, symbol_name
from rewards.answers.maths.reading.tokens import FUNCTIONS, STYLES

# -- options

_STYLED = rf"\\(?:{STYLES})(?![a-zA-Z])"
_BEFORE = re.compile(rf"(?:(?:option|choice)\s+|{_STYLED}|[\s{{])*([(\[]?)(?:{_STYLED}|[\s{{])*", re.IGNORECASE)
_LETTER = re.compile(r"([A-J]|(?<=\()[a-e])[\s}]*([)\].:])[\s}]*")
_AFTER = re.compile(
    rf"\\(?:R|r|Longr|longr)ightarrow\s*[({{\s]*(?:{_STYLED}[{{\s]*)?\(?\s*([A-J])[\s)}}]*$"
    rf"|{_STYLED}\s*\{{\s*\(([A-J])\)\s*\}}$|\(\s*{_STYLED}\s*\{{([A-J])\}}\s*\)$|(?<=\s)\(([A-J])\)$"
)
_ANOTHER = re.compile(r"\([A-J]\)|(?<![A-Za-z\\])[A-J][).:](?=[\s}]|$)|\{\s*[A-J]\s*\}")
_CONTINUED = re.compile(
    r"[+*/^_=!<>,;&|)\]}]|-(?:\s|$)|(?:and|or|vs)(?![a-z])|\\(?:cdot|times|div|le|ge|ne|in|cup|cap|to|pm|mp)(?![a-z])"
    rf"|{_STYLED}\s*\{{\s*(?:and|or|vs|is|not)(?![a-z])"
)
_NUMERIC = re.compile(r"(?:[-+0-9.,/{}%\s]|\\(?:frac|sqrt|pi|circ)(?![a-zA-Z]))+")

_IN_WORDS = re.compile(rf"[a-zA-Z ]{{3,}}|{_STYLED}\s*\{{[^{{}}\\]*\}}")


def option(text: str) -> tuple[str, str] | None:
    r"""("B", "420") for \textbf{(B)} 420, (B) 420, B. 420, \text{(B) 420} and 420 \textbf{(B)}; None without both.

    (A)(B), (A)+3 and 420B are products and sums, and two labels are no answer.
    """
    found = _leading(text) or _final(text)
    return None if found is None or _ANOTHER.search(found[1]) else found


def _leading(text: str) -> tuple[str, str] | None:
    before = _BEFORE.match(text)
    assert before is not None
    label = _LETTER.match(text, before.end())
    if label is None:
        return None
    bracket, mark = before.group(1), label.group(2)
    if mark not in {"(": ")", "[": "]", "": ").:"}[bracket]:
        return None
    rest = text[label.end() :]
    head = text[: label.end()]
    styled = "\\" in head or "{" in head
    if not rest or _CONTINUED.match(rest) or not (styled or head.endswith(" ")):
        return None
    if mark == ":" and not (_NUMERIC.fullmatch(rest) or _IN_WORDS.fullmatch(rest)):  # a curve, C: x + y = 1
        return None
    if label.group(1).islower() and not re.match(r"-?[0-9]|\\frac|\\sqrt", rest):
        return None
    opened = head.count("{") - head.count("}")
    if opened < 0 or opened > 1:
        return None
    if opened:
        command = re.search(rf"({_STYLED})\s*\{{", head)
        rest = f"{command.group(1)}{{{rest}" if command else f"{{{rest}"
    return label.group(1), rest


def _final(text: str) -> tuple[str, str] | None:
    label = _AFTER.search(text)
    if label is None:
        return None
    value = text[: label.start()].strip()
    letter = next(group for group in label.groups() if group)
    styled = label.group(2) or label.group(3)  # otherwise P (A) and A \Rightarrow B would be options
    return (letter, value) if value and (styled or _NUMERIC.fullmatch(value)) else None


# -- quantities

_RESTATING = {
    "int",
    "iint",
    "oint",
    "lim",
    "sum",
    "prod",
    "gcd",
    "lcm",
    "det",
    "max",
    "min",
    "deg",
    "dim",
    "rank",
    "tr",
}
_OPERATORS = {"bbE", "bbP", "Pr", "Var", "Cov", "E", "dim", "rank", "tr", "det", "deg", "card", "ord"}
_FUNCTION_LETTERS = set("fghpquvFGHPQEDVNRSTMXY")
_SHORT_WORDS = {"so", "if", "we", "as", "by"}
_DECORATIONS = {"vec", "overline", "overrightarrow", "widehat"}
_JOINS = {"cup", "cap", "setminus", "times", "cdot"}
_CONSTANTS = {"e", "i"}


def restates(tokens: Tokens) -> bool:
    r"""Whether it is an operator that states a problem, as in \int_0^1 x\,dx = 1/2: the value is what follows."""
    return bool(tokens) and tokens[0].kind == "cmd" and tokens[0].text in _RESTATING


def multiplies(letter: str, bracket: Tokens) -> bool:
    """Whether a letter before a bracket is a factor, as in n(n + 1), and no function, as in f(f(1))."""
    return any(token.text == letter and after.kind != "(" for token, after in pairwise(bracket))


def is_name(tokens: Tokens) -> bool:
    """Whether the tokens only name quantities: AB, |S|, E[X], [ABC], f(1) + f(2), A ∪ B, f^{-1}(3)."""
    found = _quantities(tokens)
    if not found or not all(found.values()):
        return False
    return len(found) > 1 or _is_one(tokens)


def is_quantity(tokens: Tokens) -> bool:
    """Whether it is an expression in several unknowns, a^2 + b^2 or p + q, whose value may be asked for."""
    return len(_quantities(tokens)) > 1


def _is_one(tokens: Tokens) -> bool:
    """Whether the tokens are a single name, neither a multiple nor a power of one."""
    end = _one(tokens, 0)
    return end is not None and end[0] == len(tokens)


def _quantities(tokens: Tokens) -> dict[str, bool]:
    """The distinct quantities in it, and whether each is a name such as AB or f(1) instead of a letter."""
    found: dict[str, bool] = {}
    i = 0
    while i < len(tokens):
        token = tokens[i]
        if (one := _one(tokens, i)) is not None:
            found["".join(t.text for t in tokens[i : one[0]])] = one[1]
            i = one[0]
        elif words.is_word(token) or token.text in _SHORT_WORDS:
            return {}
        elif token.kind == "word" and token.text not in FUNCTIONS:
            found |= {letter: False for letter in token.text if letter not in _CONSTANTS}
            i += 1
        else:
            i += 1
    return found


def _one(tokens: Tokens, i: int) -> tuple[int, bool] | None:
    """The end of the quantity at i, and whether it is more than a letter; None if there is none."""
    token = tokens[i]
    if token.kind == "word" and 1 < len(token.text) < 4 and token.text.isupper():
        return i + 1, True  # a segment or triangle
    if token.kind == "|" and (close := _closing_bar(tokens, i)) is not None and _is_object(tokens[i + 1 : close]):
        return close + 1, True
    if token.kind == "[" and tokens[i + 1 : i + 2] and tokens[i + 1].text.isupper() and matching(tokens, i) == i + 2:
        return i + 3, True  # the area [ABC]
    if token.kind == "#" or token.text == "\\#":
        after = _one(tokens, i + 1) if i + 1 < len(tokens) else None
        return None if after is None else (after[0], True)
    if token.text in _OPERATORS and token.kind in ("cmd", "word", "text", "roman"):
        return _applied(tokens, i + 1) or _to_letter(tokens, i + 1)
    read = symbol_name(tokens[i:])
    if read is None or read[0] in _CONSTANTS:
        return None
    end = len(tokens) - len(read[1])
    after = _after_inverse(tokens, end)
    if token.text in _FUNCTION_LETTERS or token.kind == "roman":
        applied = _applied(tokens, after)
        if applied is not None and not multiplies(token.text, tokens[after : applied[0]]):
            return applied
    if token.text.isupper() and after > end:
        return after, True  # A^{-1}, A^T
    if token.text == "sigma" and [t.text for t in tokens[end : end + 2]] == ["^", "2"]:
        return end + 2, True  # the variance
    return end, token.text in _DECORATIONS


def _applied(tokens: Tokens, i: int) -> tuple[int, bool] | None:
    """The end of the bracketed argument at i."""
    if i < len(tokens) and tokens[i].kind in ("(", "[") and (close := matching(tokens, i)) > i + 1:
        return close + 1, True
    return None


def _to_letter(tokens: Tokens, i: int) -> tuple[int, bool] | None:
    """The end of an argument without brackets."""
    if i < len(tokens) and (read := symbol_name(tokens[i:])) is not None:
        return len(tokens) - len(read[1]), True  # det A
    return None


def _after_inverse(tokens: Tokens, i: int) -> int:
    """The place after ^{-1}, ^T or a derivative's ^{(3)} at i, or i."""
    if i + 1 >= len(tokens) or tokens[i].kind != "^":
        return i
    end = matching(tokens, i + 1) + 1 if tokens[i + 1].kind == "{" else i + 2
    exponent = "".join(t.text for t in tokens[i + 1 : end] if t.kind not in "{}")
    return end if re.fullmatch(r"-1|T|top|\([0-9]+\)", exponent) else i


def _closing_bar(tokens: Tokens, i: int) -> int | None:
    return next((j for j in range(i + 1, len(tokens)) if tokens[j].kind == "|"), None)


def _is_object(tokens: Tokens) -> bool:
    """Whether it is a set, a segment, a vector or a complex number: |A \\cup B|, |AB|, |\\vec{a}|, |z|."""
    if not tokens:
        return False
    kept = [t for t in tokens if not (t.kind == "cmd" and t.text in _JOINS)]
    if len(kept) < len(tokens) or len(tokens) == 1:
        return bool(kept) and all(t.text.isupper() or (len(tokens) == 1 and t.text in ("z", "v")) for t in kept)
    read = symbol_name(tokens)
    return read is not None and not read[1] and (tokens[0].kind == "cmd" or tokens[0].text.isupper())
