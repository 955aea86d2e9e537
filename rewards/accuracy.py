"""Mathematical equivalence of the final answer and the gold one.

Left out: free text ("the answer is 18"), and units, percentages or multiple-choice letters beyond what math-verify
makes of them. Nothing in an answer is evaluated as code.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from rewards.text import Text, after_thinking, answer_text, completion_text

_MAX_LENGTH = 1000  # characters of an answer; real ones are far shorter
_TIMEOUT = 3  # seconds for each parse and comparison, which take milliseconds

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_SPACING = re.compile(r"\\[!,;: ]|\\left\b|\\right\b|~")
_AROUND_SYMBOLS = re.compile(r"\s*([^\w\s])\s*")
_WRAPPERS = (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = re.compile(rf"[+-]?{_INTEGER}(?:\.[0-9]+)?")
_FRACTION = re.compile(rf"([+-]?)(?:({_INTEGER})/({_INTEGER})|\\frac\{{({_INTEGER})\}}\{{({_INTEGER})\}})")
# Numbers that would fill the memory before a timeout fires: powers of powers, exponents of six digits.
_HUGE = re.compile(r"\^[\s{(]*[+-]?[0-9]+[\s})]*(?:\^|(?<=[0-9]{6}))|[0-9]{200}")


def accuracy(
    prompts: Sequence[Text], completions: Sequence[Text], solution: Sequence[Any], **kwargs: Any
) -> list[float | None]:
    r"""1.0 if the final answer equals the gold one, else 0.0; None where the gold answer cannot be read.

    Final answer: the text of the last `<answer>`, or the last `\boxed{}` or `\fbox{}` (inside of `<answer>` where there
    is one), after the last `</think>`. An unclosed `<think>`, tag or box is no answer.
    solution: the gold answer, plain or LaTeX, or a text that ends in GSM8K's `#### 18` or holds MATH's `\boxed{18}`.
    Equality: the same text up to spacing; integers, decimals and fractions exactly; else math-verify
    (github.com/huggingface/Math-Verify). Must run in a main thread, because math-verify's time limits are signals.
    """
    return [
        None if gold is None else _verdict(gold_answer(str(gold)), final_answer(completion_text(completion)))
        for completion, gold in zip(completions, solution, strict=True)
    ]


def final_answer(completion: str) -> str | None:
    """What a completion gives as its answer, or None. Any string will do."""
    rest = after_thinking(completion)
    if rest is None:
        return None
    if "<answer>" not in rest:
        return last_box(rest)
    answer = answer_text(completion)
    return last_box(answer) if answer is not None and _BOX.search(answer) else answer


def last_box(text: str) -> str | None:
    r"""The content of the last `\boxed{}` or `\fbox{}`; None when it is empty or never closed."""
    start = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    match = _BOX.match(text, start) if start >= 0 else None
    if match is None:
        return None
    depth, position = 1, match.end()
    for brace in re.finditer(r"\\.|[{}]", text[position : position + _MAX_LENGTH + 1]):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)  # an escaped \{ is text
        if depth == 0:
            return text[position : position + brace.start()].strip() or None
    return None


def gold_answer(solution: str) -> str:
    r"""The answer within a solution: its last `\boxed{}`, what follows GSM8K's last `####`, or all of it."""
    return last_box(solution) or solution.rpartition("####")[2].strip()


@lru_cache(maxsize=4096)  # equal answers within a group are compared once
def _verdict(gold: str, answer: str | None) -> float | None:
    gold = _normalize(gold)
    expected = _number(gold)
    if expected is None and not _parse(gold):
        return None
    if answer is None or len(answer) > _MAX_LENGTH:
        return 0.0
    answer = _normalize(answer)
    if answer == gold:
        return 1.0
    given = _number(answer)
    if expected is not None and given is not None:
        return float(given == expected)
    from math_verify import verify

    return float(verify(list(_parse(gold)), list(_parse(answer)), timeout_seconds=_TIMEOUT))


def _normalize(text: str) -> str:
    text = text.strip().removesuffix(".")
    for opening, closing in _WRAPPERS:
        if len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)]
    text = text.replace("{,}", ",").replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    return _AROUND_SYMBOLS.sub(r"\1", _SPACING.sub(" ", text)).strip()


def _number(text: str) -> Fraction | None:
    """The value of an integer with or without thousands separators, a decimal or a fraction of integers."""
    if _HUGE.search(text):
        return None
    if _DECIMAL.fullmatch(text):
        return Fraction(text.replace(",", ""))
    if match := _FRACTION.fullmatch(text):
        sign, *parts = match.groups()
        numerator, denominator = (int(part.replace(",", "")) for part in parts if part)
        return Fraction(int(f"{sign}1") * numerator, denominator) if denominator else None
    return None


@lru_cache(maxsize=1024)
def _parse(text: str) -> tuple[Any, ...]:
    """math-verify's reading: an expression, if it finds one, and the text; nothing where it fails or takes too long."""
    if not text or len(text) > _MAX_LENGTH or _HUGE.search(text):
        return ()
    from math_verify import LatexExtractionConfig, parse

    config = LatexExtractionConfig(boxed_match_priority=0)
    return tuple(parse(f"\\boxed{{{text}}}", [config], extraction_mode="first_match", parsing_timeout=_TIMEOUT))
