"""The tokenizer for normalized answers, and what brackets and letters span."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from rewards.answers.maths.limits import MAX_TOKENS
from rewards.answers.maths.nodes import Unreadable


class Token(NamedTuple):
    """kind: "num", "sym" (a letter), "word" (several letters), "text" (in \\text{…}), "cmd" (a command's name), or the
    sign itself: "(", "[", "{", "\\{", "|", "+", "^", ",", "=", …"""

    kind: str
    text: str
    spaced: bool  # preceded by white space


# Commands whose argument is text or a name, without their backslash.
STYLES = (
    "text|textbf|textit|textrm|textnormal|textsf|mbox|hbox|mathrm|mathbf|mathit|mathsf|boldsymbol|bm|emph|underline"
)
_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<num>[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+(?![a-zA-Z0-9]))?|\.[0-9]+)"
    rf"|(?P<textcmd>\\(?:{STYLES}|mathcal|mathbb)(?![a-zA-Z]))"
    r"|\\(?P<cmd>[a-zA-Z]+)"
    r"|(?P<escaped>\\\\|\\[{}|_#&])"
    r"|(?P<word>(?:or|and)(?=[A-Z])|[a-zA-Z\u00c0-\u024f\u0400-\u04ff]+|(?<![\u3040-\u9fff])(?:或者?|和|与|及|以及)(?![\u3040-\u9fff])"
    r"|[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af㎡]+)"
    r"|(?P<sign>[-+*/^_()\[\]{}|,;:<>='!%&?.\"])"
)  # fmt: skip
_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_NUMBER = re.compile(r"[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?")

FUNCTIONS = {
    *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "arccot", "sinh", "cosh", "tanh", "coth"),
    *("arcsec", "arccsc", "sech", "csch", "arcsinh", "arccosh", "arctanh"),
    *(
        "ln",
        "log",
        "lg",
        "exp",
        "sqrt",
        "gcd",
        "lcm",
        "max",
        "min",
        "abs",
        "floor",
        "ceil",
        "det",
        "arg",
        "deg",
        "cbrt",
    ),
}
Tokens = list[Token]
OPENING = {"(", "[", "{", "\\{", "langle", "lceil", "lfloor"}
CLOSING = {")", "]", "}", "\\}", "rangle", "rceil", "rfloor"}
_GREEK = {
    *("alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota", "kappa"),
    *("lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "varphi", "chi", "psi", "omega", "Gamma"),
    *("Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega", "ell", "hbar"),
}
_DECORATIONS = {"overline", "vec", "hat", "bar", "tilde", "widehat", "overrightarrow", "dot"}
_ACCENTS = {"varepsilon": "epsilon", "vartheta": "theta", "varphi": "phi"}
# Functions as other countries abbreviate them, or as they stand in \\text and \\operatorname.
_ABROAD = {
    **{
        "tg": "tan",
        "ctg": "cot",
        "cotg": "cot",
        "cotan": "cot",
        "cosec": "csc",
        "sh": "sinh",
        "ch": "cosh",
        "th": "tanh",
    },
    **{"arctg": "arctan", "arcctg": "arccot", "arcotg": "arccot", "arccosec": "arccsc", "cth": "coth"},
    **{"asin": "arcsin", "acos": "arccos", "atan": "arctan", "arsinh": "arcsinh", "arcosh": "arccosh"},
    **{"artanh": "arctanh", "asinh": "arcsinh", "acosh": "arccosh", "atanh": "arctanh"},
}
_WORDS = {"infinity": "infty", "inf": "infty", "oo": "infty", "infinite": "infty", "pi": "pi", "theta": "theta"}
CONNECTIVES = {"and": "and", "or": "or", "或": "or", "或者": "or"} | dict.fromkeys(("和", "与", "及", "以及"), "and")
_PLAIN_FUNCTIONS = FUNCTIONS - {"sqrt", "gcd", "lcm", "max", "min", "abs", "floor", "ceil", "det", "arg", "deg", "cbrt"}
_APPLIED = re.compile(r"\s*[({\[|\\^_a-zA-Z0-9]")


def tokenize(text: str, *, grouped: bool = True) -> list[Token]:
    """The tokens of a normalized text. grouped: 1,234 is one number; otherwise it is 1 and 234."""
    tokens = list(_tokens(text, grouped))
    if len(tokens) > MAX_TOKENS:
        raise Unreadable(f"more than {MAX_TOKENS} tokens")
    return tokens


def _tokens(text: str, grouped: bool) -> Iterator[Token]:
    position, spaced, depth = 0, False, 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise Unreadable(f"unsupported character {text[position]!r}")
        kind, value = match.lastgroup or "", match.group()
        position = match.end()
        if kind == "space":
            spaced = True
            continue
        if kind == "num":
            # Inside brackets, commas separate: (1,234) is a pair.
            if "," in value and (depth or not grouped):
                first = value.index(",")
                position -= len(value) - first
                value = value[:first]
            yield Token("num", value.replace(",", ""), spaced)
        elif kind == "textcmd":
            inside, position = _argument(text, position)
            name = inside.strip(" .")
            name = name if len(name) == 2 and name.endswith("h") else _ABROAD.get(name, name)  # 7\\text{th}
            if name in _PLAIN_FUNCTIONS and _APPLIED.match(text, position):  # \text{sin}(x)
                yield Token("cmd", name, spaced)
            else:
                yield from _text(value[1:], inside, spaced)
        elif kind == "cmd":
            yield _command(match.group("cmd"), spaced)
        elif kind == "word":
            yield _word(value, spaced)
        else:
            if value in ("(", "[", "\\{"):
                depth += 1
            elif value in (")", "]", "\\}"):
                depth -= 1
            yield Token("|" if value == "\\|" else value, value, spaced)
        spaced = False


def _argument(text: str, position: int) -> tuple[str, int]:
    """The braced argument or single character at the position, and where it ends."""
    while position < len(text) and text[position] == " ":
        position += 1
    if position >= len(text) or text[position] != "{":
        return text[position : position + 1], position + 1
    depth, start = 0, position
    while position < len(text):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        position += 1
        if depth == 0:
            return text[start + 1 : position - 1], position
    raise Unreadable("an unclosed brace")


def _text(command: str, inside: str, spaced: bool) -> Iterator[Token]:
    stripped = inside.strip()
    if command == "mathbb":
        yield Token("cmd", f"bb{stripped}", spaced)
        return
    plain = stripped.strip("().")
    if len(plain) <= 1 or not any(letter.isalpha() for letter in plain) or command.startswith(("math", "bo", "bm")):
        # \text{E}, \mathrm{e}, \text{(C)}, \text{13}: read the content as mathematics; units in \mathrm stay words.
        for token in _tokens(stripped, True):
            kind = "roman" if token.kind == "sym" and token.text not in "ei" else token.kind
            yield Token(kind, token.text, token.spaced or spaced)
        return
    for part in re.split(r"(,|;|\band\b|\bor\b)", stripped.replace("$", " ")):
        part = part.strip()
        if part in ("and", "or") or part in (",", ";"):
            yield Token(part, part, True)
        elif part:
            yield from _plain(part)


def _plain(words: str) -> Iterator[Token]:
    """The words in \\text{…}; numbers among them stay numbers, 4:30 stays a time."""
    for part in re.split(r"([0-9]+(?:\.[0-9]+)?|:)", words):
        if part == ":":
            yield Token(":", ":", False)
        elif _NUMBER.fullmatch(part):
            yield Token("num", part, True)
        elif part.strip():
            yield Token("text", part.strip(), True)


def _command(name: str, spaced: bool) -> Token:
    if name in ("land", "wedge", "lor", "vee"):
        word = "and" if name in ("land", "wedge") else "or"
        return Token(word, word, spaced)
    return Token("cmd", _ABROAD.get(name, name), spaced)


def _word(value: str, spaced: bool) -> Token:
    if value in CONNECTIVES:
        return Token(CONNECTIVES[value], CONNECTIVES[value], spaced)
    if len(value) > 4 and value in _ABROAD:
        return Token("cmd", _ABROAD[value], spaced)
    if value in FUNCTIONS:
        return Token("cmd", value, spaced)
    if value.lower() in _WORDS:
        return Token("cmd", _WORDS[value.lower()], spaced)
    return Token("sym" if len(value) == 1 and value < "\u3000" else "word", value, spaced)


def is_grouped(text: str) -> bool:
    """Whether a comma in the text may be either a thousands separator or a list separator."""
    return _GROUPED.search(text) is not None


# -- brackets and letters


def matching(tokens: Tokens, start: int) -> int:
    """Index of the token that closes the bracket at start, or -1. Intervals may mix ( and ]."""
    depth = 0
    for i in range(start, len(tokens)):
        name = tokens[i].text if tokens[i].kind == "cmd" else tokens[i].kind
        if name in OPENING:
            depth += 1
        elif name in CLOSING:
            depth -= 1
        if depth == 0:
            return i if i > start else -1
    return -1


def symbol_name(tokens: Tokens) -> tuple[str, Tokens] | None:
    """The letter at the start with its subscript and primes, and the tokens after it; None without a letter."""
    if not tokens:
        return None
    first, rest = tokens[0], tokens[1:]
    if first.kind in ("sym", "roman"):
        name = first.text
    elif first.kind == "cmd" and first.text in _GREEK:
        name = _ACCENTS.get(first.text, first.text)
    elif first.kind == "cmd" and first.text in _DECORATIONS and rest:
        end = matching(rest, 0) if rest[0].kind == "{" else 0
        name = f"{first.text}({''.join(token.text for token in rest[: end + 1] if token.kind not in '{}')})"
        rest = rest[end + 1 :]
    else:
        return None
    while rest:
        if rest[0].kind == "_" and len(rest) > 1:
            end = matching(rest, 1) if rest[1].kind == "{" else 1
            name += "_" + "".join(token.text for token in rest[1 : end + 1] if token.kind not in "{}")
            rest = rest[end + 1 :]
        elif rest[0].kind == "'":
            name += "'"
            rest = rest[1:]
        else:
            break
    return name, rest
