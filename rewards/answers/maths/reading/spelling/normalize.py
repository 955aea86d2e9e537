"""One spelling for the many variants of LaTeX, Unicode and Markdown. Text in, text out, in linear time."""

import re

from rewards.answers.maths.reading.spelling.escapes import undone
from rewards.answers.maths.reading.spelling.numerals import plain_numerals

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-")
_CIRCLED = {chr(0x2460 + i): str(i + 1) for i in range(20)}  # ①, ②, …
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅙": "1/6", "⅛": "1/8"}
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_COMMANDS = {
    "\\times": "×",
    "\\div": "÷",
    "\\cdot": "·∙⋅",
    "\\le": "≤⩽",
    "\\ge": "≥⩾",
    "\\ne": "≠",
    "\\approx": "≈",
    "\\infty": "∞",
    "\\sqrt": "√",
    "\\cup": "∪",
    "\\cap": "∩",
    "\\in": "∈",
    "\\equiv": "≡",
    "\\pm": "±",
    "\\forall": "∀",
    "\\emptyset": "∅",
    "^\\circ": "°",
    "\\langle": "⟨",
    "\\rangle": "⟩",
    "\\mathbb{R}": "ℝ",
    "\\alpha": "α",
    "\\beta": "β",
    "\\gamma": "γ",
    "\\delta": "δ",
    "\\epsilon": "εϵ",
    "\\zeta": "ζ",
    "\\eta": "η",
    "\\theta": "θ",
    "\\kappa": "κ",
    "\\lambda": "λ",
    "\\mu": "μµ",
    "\\nu": "ν",
    "\\xi": "ξ",
    "\\pi": "π",
    "\\rho": "ρ",
    "\\sigma": "σ",
    "\\tau": "τ",
    "\\phi": "φϕ",
    "\\chi": "χ",
    "\\psi": "ψ",
    "\\omega": "ω",
    "\\Delta": "Δ∆",
    "\\Omega": "Ω",
}
_PLAIN = {
    "-": "−–—‐‑",
    "*": "∗",
    "'": "′’‘",
    '"': "“”",
    ",": "，、",
    ";": "；",
    ":": "：∶",
    ".": "。",
    "|": "∣",
    "/": "⁄∕",
}
_SPACES = "\u00a0\u2002\u2003\u2005\u2007\u2009\u200a\u202f\u3000"
_SIGNS = str.maketrans(
    {sign: f"{command} " for command, signs in _COMMANDS.items() for sign in signs}
    | {sign: plain for plain, signs in _PLAIN.items() for sign in signs}
    | dict.fromkeys(_SPACES, " ")
    | {"\u200b": ""}
)

_RUNS = [
    (re.compile("(?<=[0-9])(?:ˢᵗ|ⁿᵈ|ʳᵈ|ᵗʰ)"), lambda _: ""),
    (re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+"), lambda m: f"^{{{m.group().translate(_SUPERSCRIPTS)}}}"),
    (re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋]+"), lambda m: f"_{{{m.group().translate(_SUBSCRIPTS)}}}"),
    (re.compile("|".join(_VULGAR)), lambda m: f" {_VULGAR[m.group()]} "),
    (re.compile("(?:[0-9]\u0305)+"), lambda m: rf"\overline{{{m.group().replace(chr(0x305), '')}}}"),
    (re.compile("([0-9])\u0307"), r"\\dot{\1}"),
    (re.compile("|".join(_CIRCLED)), lambda m: f",{_CIRCLED[m.group()]},"),
    (re.compile("…"), r"\\ldots "),
]
# Notations of numbers, each with a part that it contains.
_NUMBERS = [
    # 0.1666… and 0.1616...: a period written three times
    (
        (r"dots", "..."),
        re.compile(r"(?<![0-9.])([0-9]+\.[0-9]*?)([0-9]{1,6}?)\2{2,}\s*(?:\.\.\.|\\[lc]?dots(?![a-zA-Z]))"),
        r"\1\\overline{\2}",
    ),
    (("{,}",), re.compile(r"([0-9]+)((?:\{,\}\s*(?:\\!)?\s*[0-9]+)+)"), lambda m: _with_braced_commas(*m.groups())),
    ((",0",), re.compile(r"(?<![0-9,.])([0-9]+),(0[0-9]+)(?![0-9,.])"), lambda m: _with_padded_decimals(*m.groups())),
    (
        (".m", ".M", ". m", ". M"),
        re.compile(r"(?<=[0-9])((?:\s|~|\\[ ,]|\\[a-z]+\s*\{)*)([AaPp])\.\s?[Mm]\.?(?![a-zA-Z])"),
        r"\1 \2m",
    ),
    (("clock",), re.compile(r"(?<=[0-9])(?:\s|~|\\[ ,]|\\text\{)*\s*o['’]clock\}?"), ":00"),
]
_WRAPPERS = [("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"), ('"', '"')]
_FINAL = re.compile(r"(?:\\[,;:! ]|(?<!\\)[.,;:\s]|\\text\s*\{\s*[.,]\s*\}|(?<!\\)\\$)+$")
_CHOICE = re.compile(r"\(?([A-Za-z])[).:]")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
# A large brace before an array makes it a list of cases.
_BRACED = re.compile(
    r"\\left\s*\\(?:\{|lbrace)\s*\\begin\s*\{(array|aligned|matrix|gathered)\}(?:\s*\{[lcr| ]*\})?"
    r"((?:(?!\\begin).)*?)\\end\s*\{\1\}\s*\\right\s*(?:\.|$)",
    re.DOTALL,
)
# Spacing, sizes and styles that do not change the meaning.
_NOTHING = re.compile(
    r"\\(?:left|right|middle|bigl|bigr|Bigl|Bigr|biggl|biggr|Biggl|Biggr|big|Big|bigg|Bigg|displaystyle|textstyle|"
    r"limits|nolimits|mathstrut|phantom|large|Large|small|normalsize|strut|rm|bf|it)(?![a-zA-Z])\.?"
)
_THIN = re.compile(
    r"\\[!]|(?<=[0-9])(?<![\^_][0-9])(?<![\^_][0-9]{2})\\,(?=[0-9]{3}(?![0-9/]))"
    r"|(?<=[0-9]),\\!\s*(?=[0-9]{3})|(?<=[0-9])(?:st|nd|rd|th)(?![a-z])"
)
_SPACE = re.compile(
    r"(\\\\)|\\[,;:> ]|\\q?quad|\\(?:enspace|(?:thin|med|thick)space)(?![a-zA-Z])|~"
    r"|\\hspace\s*\{[^{}]*\}|\\label\s*\{[^{}]*\}"
)
_SYNONYMS = [
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])|(?<![a-zA-Z\\])rac(?=\{)"), r"\\frac"),
    (re.compile(r"\\leq(?:slant|q)?(?![a-zA-Z])|<=|=<"), r"\\le "),
    (re.compile(r"\\geq(?:slant|q)?(?![a-zA-Z])|>="), r"\\ge "),
    (re.compile(r"\\lt(?![a-zA-Z])"), "<"),
    (re.compile(r"\\gt(?![a-zA-Z])"), ">"),
    (re.compile(r"\\neq(?![a-zA-Z])|\\not\s*=|!="), r"\\ne "),
    (re.compile(r"\\colon(?![a-zA-Z])"), ":"),
    (re.compile(r"\\(?:overset|stackrel)\s*\{\s*(?:\.|\\cdot|\\bullet)\s*\}"), r"\\dot"),
    (re.compile(r"\\(?:text)?color\s*\{[a-zA-Z!0-9]*\}"), ""),
    (re.compile(r"\^\s*(?:\{\s*\\prime\s*\}|\\prime(?![a-zA-Z]))"), "'"),
    (re.compile(r"\\(?:lbrace)(?![a-zA-Z])"), r"\\{"),
    (re.compile(r"\\(?:rbrace)(?![a-zA-Z])"), r"\\}"),
    (re.compile(r"\\(?:lbrack)(?![a-zA-Z])"), "["),
    (re.compile(r"\\(?:rbrack)(?![a-zA-Z])"), "]"),
    (re.compile(r"\\(?:lvert|rvert|vert)(?![a-zA-Z])|\\mid(?![a-zA-Z])"), "|"),
    (re.compile(r"\\(?:cupdot|uplus|bigcup)(?![a-zA-Z])"), r"\\cup "),
    (re.compile(r"\\(?:varnothing|O)(?![a-zA-Z])"), r"\\emptyset "),
    (
        re.compile(
            r"\^\s*\{\s*\\(?:circ|degree|textcirc)\s*\}|\^?\s*\\(?:circ|textcirc)(?![a-zA-Z])"
            r"|\^?\s*\\(?:text)?degree(?![a-zA-Z])"
        ),
        r"\\circ ",
    ),
    (re.compile(r"\\(?:%|textpercent)"), "%"),
    (re.compile(r"\\(?:\$|textdollar|pounds|euro)|[$€£¥]"), " "),
    (re.compile(r"\\(?:operatorname|mathop)\*?\s*\{\s*([a-zA-Z]+)\s*\}"), r"\\\1 "),
    (re.compile(r"\\(?:triangle|angle|measuredangle)(?![a-zA-Z])"), " "),
    (re.compile(r"(?<=[0-9}])\s*([kc]?m|ft|mi)\s*/\s*(s|h|hr|min|sec)(?=\}*$)"), r"\\text{ \1/\2}"),
    (re.compile(r"(?<![A-Za-z0-9)])(?<![A-Za-z0-9)] )\*\*(?=\S)([^*]+)(?<=\S)\*\*(?![A-Za-z0-9(])"), r"\1"),  # emphasis
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<![\w.^\\])([0-9]+(?:\.[0-9]+)?)\s*[xX]\s*(?=10\s*\^)"), r"\1 \\times "),  # 6.02 x 10^{23}
]  # fmt: skip


def normalize(text: str) -> str:
    """The answer in the spelling that `parse` expects."""
    text = undone(text).strip().translate(_FULL_WIDTH)
    if not text.isascii():
        for pattern, replacement in _RUNS:
            text = pattern.sub(replacement, text)
    for parts, pattern, replacement in _NUMBERS:
        if any(part in text for part in parts):
            text = pattern.sub(replacement, text)
    text = unwrapped(text.translate(_SIGNS))
    if choice := _CHOICE.fullmatch(text):
        return choice.group(1)
    text = _BOX.sub("", text)
    text = _BRACED.sub(r"\\begin{cases}\2\\end{cases}", text)
    text = _THIN.sub("", _NOTHING.sub(" ", text))
    for pattern, replacement in _SYNONYMS:
        text = pattern.sub(replacement, text)
    return plain_numerals(" ".join(_SPACE.sub(lambda match: match.group(1) or " ", text).split()))


def _with_braced_commas(first: str, rest: str) -> str:
    """3{,}14 with its decimal point, 10{,}000 without its separator; 3{,}141 counts as thousands."""
    groups = re.findall("[0-9]+", rest)
    if first[0] != "0" and len(first) <= 3 and all(len(group) == 3 for group in groups):
        return first + "".join(groups)
    return f"{first}.{groups[0]}" if len(groups) == 1 else first + rest


def _with_padded_decimals(whole: str, digits: str) -> str:
    """3,05 with a decimal point: neither a list nor a thousand."""
    grouped = len(digits) == 3 and len(whole) <= 3 and whole[0] != "0"
    return f"{whole},{digits}" if grouped else f"{whole}.{digits}"


def unwrapped(text: str) -> str:
    """The text without enclosing math delimiters, emphasis, quotes and final punctuation."""
    before = None
    while before != text:
        before = text
        text = _FINAL.sub("", text.strip())
        for opening, closing in _WRAPPERS:
            inside = text[len(opening) : len(text) - len(closing)]
            wrapped = text.startswith(opening) and text.endswith(closing) and len(text) > len(opening + closing)
            if wrapped and opening not in inside and closing not in inside:
                text = inside
    return text
