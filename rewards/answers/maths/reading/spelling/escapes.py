"""What programs did to a text on its way: broken and doubled backslashes, HTML. Text in, text out, in linear time."""

import html
import re

# \\text, \\frac and \\right whose backslash was turned into a control character by careless JSON or Python quoting.
_BROKEN = str.maketrans({"\t": r"\t", "\f": r"\f", "\r": r"\r", "\b": r"\b", "\v": r"\v", "\a": r"\a"})
_BROKEN_ESCAPE = re.compile(
    r"\\?(?:\t(?=ext|imes|frac|heta|an)|\f(?=rac)|\r(?=ight|ho)|\x08(?=inom|eta|ar|oxed|egin)|\x0b(?=ec)|\x07(?=lpha|pprox))"
)
# Backslashes doubled by JSON quoting, before commands that never start a matrix row without their own backslash.
_COMMAND = (
    r"(?:\\\\)+(?:left|right|[dtc]?frac|sqrt|text(?:bf|it|rm)?|math(?:rm|bf|bb|cal)|boxed|operatorname|overline|begin|end|pi"
    r"|alpha|beta|gamma|delta|theta|lambda|sigma|omega|[lc]?dots|cdot|times|div|pm|leq?|geq?|neq?|approx|equiv|infty"
    r"|in|cup|cap|emptyset|varnothing|setminus|sin|cos|tan|cot|sec|csc|arc(?:sin|cos|tan)|ln|log|exp|binom|pmod|circ"
    r"|degree|quad|displaystyle|angle|sum|int|forall)(?![a-zA-Z])"
)
_DOUBLED_COMMAND = re.compile(rf"(?<!\\){_COMMAND}")
_DOUBLED_SIGN = re.compile(r"(?<!\\)\\\\(?:[%$!]|,[0-9]|\{.*\\\\\}|\(.*\\\\\)$|\[.*\\\\\]$)", re.DOTALL)
_RUN = re.compile(r"\\+")
_MOST_DOUBLINGS = 3

_RAISED = [
    (re.compile(r"<sup>([^<>]{0,100})</sup>", re.IGNORECASE), r"^{\1}"),
    (re.compile(r"<sub>([^<>]{0,100})</sub>", re.IGNORECASE), r"_{\1}"),
    (re.compile(r"<(b|i|em|strong|u|p|span|div|mark|code|var|math)>([^<>]*)</\1>", re.IGNORECASE), r" \2 "),
    (re.compile(r"<br\s*/?>", re.IGNORECASE), " "),
]
_ENTITY = re.compile(r"&(?:[a-zA-Z]{2,10}|#[0-9]{2,5}|#x[0-9a-fA-F]{2,5});")


def undone(text: str) -> str:
    """The text as its author wrote it."""
    if "\\" in text or not text.isprintable():
        text = _single(_BROKEN_ESCAPE.sub(lambda m: m.group()[-1].translate(_BROKEN), text))
    if "<" in text:
        for pattern, replacement in _RAISED:
            text = pattern.sub(replacement, text)
    return _ENTITY.sub(lambda match: html.unescape(match.group()), text) if "&" in text else text


def _single(text: str) -> str:
    r"""\\frac as \frac. If every backslash is doubled, row breaks (\\\\) are, too; otherwise they stay."""
    for _ in range(_MOST_DOUBLINGS):
        if "\\\\" not in text:
            break
        if not (_DOUBLED_COMMAND.search(text) or _DOUBLED_SIGN.search(text)):
            break
        if all(len(run) % 2 == 0 for run in _RUN.findall(text)):
            text = text.replace("\\\\", "\\")
        else:
            return _DOUBLED_COMMAND.sub(lambda match: "\\" + match.group().lstrip("\\"), text)
    return text
