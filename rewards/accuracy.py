"""Mathematical equivalence of the final answer and the gold one.

Left out: free text ("the answer is 18"), and units, percentages or multiple-choice letters beyond what math-verify
makes of them. Nothing in an answer is evaluated as code.
"""

import math
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from types import FrameType
from typing import Any

from rewards.text import Text, after_thinking, answer_text, completion_text

_MAX_LENGTH = 1000  # characters of an answer; real ones are far shorter
_NO_TIMEOUT = 3600  # math-verify's own limit is wall-clock time, in which a busy machine may do nothing
_CPU_SECONDS = 3.0  # for a parse or a comparison, which take milliseconds

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_SPACING = re.compile(r"\\[!,;: ]|\\left\b|\\right\b|~")
_AROUND_SYMBOLS = re.compile(r"\s*([^\w\s])\s*")
_WRAPPERS = (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = re.compile(rf"[+-]?{_INTEGER}(?:\.[0-9]+)?")
_FRACTION = re.compile(rf"([+-]?)(?:({_INTEGER})/({_INTEGER})|\\frac\{{({_INTEGER})\}}\{{({_INTEGER})\}})")
_LONG_NUMBER = re.compile(r"[0-9]{200}")
_POWER = re.compile(r"[0-9)}\]]\s*\^\s*(\{|[0-9]+)?")  # of what may be a number: x^{99999} stays a symbol
_BIG_FACTORIAL = re.compile(r"[0-9]{5}[\s)}]*!|\([^()]*\^[^()]*\)\s*!|binom[^!]*?(?:[0-9]{5}|\^)")
_MAX_DIGITS = 3e7  # of a power, by a rough upper bound: a second's work


def accuracy(
    prompts: Sequence[Text], completions: Sequence[Text], solution: Sequence[Any], **kwargs: Any
) -> list[float | None]:
    r"""1.0 if the final answer equals the gold one, else 0.0; None where the gold answer cannot be read.

    Final answer: the text of the last `<answer>`, or the last `\boxed{}` or `\fbox{}` (inside of `<answer>` where there
    is one), after the last `</think>`. An unclosed `<think>`, tag or box is no answer.
    solution: the gold answer, plain or LaTeX, or a text that ends in GSM8K's `#### 18` or holds MATH's `\boxed{18}`.
    Equality: the same text up to spacing; integers, decimals and fractions exactly; else math-verify
    (github.com/huggingface/Math-Verify). Must run in a main thread, because its time limit is a signal.
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
    content = _until_closed(text, match.end())
    return (content or "").strip() or None


def _until_closed(text: str, start: int) -> str | None:
    """What stands before the brace that closes one opened before `start`, within the longest answer."""
    depth = 1
    text = text[start : start + _MAX_LENGTH + 1]
    for brace in re.finditer(r"\\.|[{}]", text):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)  # an escaped \{ is text
        if depth == 0:
            return text[: brace.start()]
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

    expected_forms, given_forms = list(_parse(gold)), list(_parse(answer))
    try:
        with _cpu_limit(_CPU_SECONDS):
            return float(verify(expected_forms, given_forms, timeout_seconds=_NO_TIMEOUT))
    except _OutOfTime:  # cannot be shown to be equal
        return 0.0


def _normalize(text: str) -> str:
    text = text.strip().removesuffix(".")
    for opening, closing in _WRAPPERS:
        if len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)]
    text = text.replace("{,}", ",").replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    return _AROUND_SYMBOLS.sub(r"\1", _SPACING.sub(" ", text)).strip()


def _number(text: str) -> Fraction | None:
    """The value of an integer with or without thousands separators, a decimal or a fraction of integers."""
    if _LONG_NUMBER.search(text):
        return None
    if _DECIMAL.fullmatch(text):
        return Fraction(text.replace(",", ""))
    if match := _FRACTION.fullmatch(text):
        sign, *parts = match.groups()
        numerator, denominator = (int(part.replace(",", "")) for part in parts if part)
        return Fraction(int(f"{sign}1") * numerator, denominator) if denominator else None
    return None


def _is_huge(text: str) -> bool:
    """Whether the text may hold a number too large to compute.

    The time limit would end most of these, after seconds; but with gmpy2 installed one multiplication cannot be
    interrupted, and an overflow ends the process.
    """
    if _LONG_NUMBER.search(text) or _BIG_FACTORIAL.search(text):
        return True
    digits = max(map(len, re.findall("[0-9]+", text)), default=1)
    for power in _POWER.finditer(text):
        exponent = power.group(1) or ""
        if exponent == "{":
            exponent = _until_closed(text, power.end()) or text[power.end() :]
        if re.search(r"\^|!|binom|sum|prod", exponent):
            return True
        digits *= math.prod(int(n) for n in re.findall("[0-9]+", exponent) if n.strip("0"))
    return digits > _MAX_DIGITS


@lru_cache(maxsize=1024)
def _parse(text: str) -> tuple[Any, ...]:
    """math-verify's reading: an expression, if it finds one, and the text; nothing where it fails or takes too long."""
    if not text or len(text) > _MAX_LENGTH or _is_huge(text):
        return ()
    from math_verify import LatexExtractionConfig, parse

    config = LatexExtractionConfig(boxed_match_priority=0)
    boxed = f"\\boxed{{{text}}}"
    try:
        with _cpu_limit(_CPU_SECONDS):
            return tuple(parse(boxed, [config], extraction_mode="first_match", parsing_timeout=_NO_TIMEOUT))
    except _OutOfTime:
        return ()


class _OutOfTime(BaseException):
    """Not an Exception, so that the libraries in between let it through."""


@contextmanager
def _cpu_limit(seconds: float) -> Iterator[None]:
    """Raise _OutOfTime after `seconds` of computing. Time in which other programs had the processor does not count, so
    that a busy machine changes no verdict. Signals reach the main thread only: ValueError in any other."""

    def expire(signum: int, frame: FrameType | None) -> None:
        raise _OutOfTime

    previous = signal.signal(signal.SIGVTALRM, expire)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)
