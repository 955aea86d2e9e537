"""One spelling for the many variants of LaTeX, Unicode and Markdown. Text in, text out, in linear time."""

import re

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
    "\\emptyset": "∅",
    "^\\circ": "°",
    "\\langle": "⟨",
    "\\rangle": "⟩",
    "\\ldots": "…",
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
_SPACES = "\u00a0\u2009\u3000"
_SIGNS = str.maketrans(
    {sign: f"{command} " for command, signs in _COMMANDS.items() for sign in signs}
    | {sign: plain for plain, signs in _PLAIN.items() for sign in signs}
    | dict.fromkeys(_SPACES, " ")
    | {"\u200b": ""}
)

_RUNS = [
    (re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+"), lambda m: f"^{{{m.group().translate(_SUPERSCRIPTS)}}}"),
    (re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋]+"), lambda m: f"_{{{m.group().translate(_SUBSCRIPTS)}}}"),
    (re.compile("|".join(_VULGAR)), lambda m: f" {_VULGAR[m.group()]} "),
    (re.compile("|".join(_CIRCLED)), lambda m: f",{_CIRCLED[m.group()]},"),
]
# \\text, \\frac and \\right whose backslash was turned into a control character by careless JSON or Python quoting.
_BROKEN = str.maketrans({"\t": r"\t", "\f": r"\f", "\r": r"\r", "\b": r"\b", "\v": r"\v", "\a": r"\a"})
_BROKEN_ESCAPE = re.compile(
    r"\\?(?:\t(?=ext|imes|frac|heta|an)|\f(?=rac)|\r(?=ight|ho)|\x08(?=inom|eta|ar|oxed|egin)|\x0b(?=ec)|\x07(?=lpha|pprox))"
)
_WRAPPERS = [("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"), ('"', '"')]
_FINAL = re.compile(r"(?:\\[,;:! ]|(?<!\\)[.,;:\s]|\\text\s*\{\s*[.,]\s*\}|(?<!\\)\\$)+$")
_CHOICE = re.compile(r"\(?([A-Za-z])[).:]")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
# Backslashes doubled by JSON quoting, before commands that never start a matrix row.
_DOUBLED = re.compile(r"(?<!\\)\\\\(?=(?:left|right|d?frac|sqrt|text|boxed|pi|cdot|leq?|geq?|times|infty)(?![a-z]))")
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
    r"\\[!]|\{,\}\s*(?:\\!)?\s*(?=[0-9])|(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))|(?<=[0-9]),\\!\s*(?=[0-9]{3})|(?<=[0-9])(?:st|nd|rd|th)(?![a-z])"
)
_SPACE = re.compile(r"(\\\\)|\\[,;:> ]|\\q?quad|\\enspace(?![a-zA-Z])|~|\\hspace\s*\{[^{}]*\}|\\label\s*\{[^{}]*\}")
_SYNONYMS = [
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])|(?<![a-zA-Z\\])rac(?=\{)"), r"\\frac"),
    (re.compile(r"\\leq(?:slant|q)?(?![a-zA-Z])|<=|=<"), r"\\le "),
    (re.compile(r"\\geq(?:slant|q)?(?![a-zA-Z])|>="), r"\\ge "),
    (re.compile(r"\\lt(?![a-zA-Z])"), "<"),
    (re.compile(r"\\gt(?![a-zA-Z])"), ">"),
    (re.compile(r"\\neq(?![a-zA-Z])|\\not\s*=|!="), r"\\ne "),
    (re.compile(r"\\colon(?![a-zA-Z])"), ":"),
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
    (re.compile(r"(?<=[0-9}])\s*([kc]?m|ft|mi)\s*/\s*(s|h|hr|min|sec)$"), r"\\text{ \1/\2}"),
    (re.compile(r"\*\*"), "^"),
]  # fmt: skip


def normalize(text: str) -> str:
    """The answer in the spelling that `parse` expects."""
    text = _BROKEN_ESCAPE.sub(lambda m: m.group()[-1].translate(_BROKEN), text).strip().translate(_FULL_WIDTH)
    text = _DOUBLED.sub(lambda _: "\\", text)
    for pattern, replacement in _RUNS:
        text = pattern.sub(replacement, text)
    text = unwrapped(text.translate(_SIGNS))
    if choice := _CHOICE.fullmatch(text):
        return choice.group(1)
    text = _BOX.sub("", text)
    text = _BRACED.sub(r"\\begin{cases}\2\\end{cases}", text)
    text = _THIN.sub("", _NOTHING.sub(" ", text))
    for pattern, replacement in _SYNONYMS:
        text = pattern.sub(replacement, text)
    return " ".join(_SPACE.sub(lambda match: match.group(1) or " ", text).split())


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
