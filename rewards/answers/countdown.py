"""Countdown: an expression that uses all the given numbers and equals the target."""

import ast
import operator
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from rewards.runner.load import checked_by
from rewards.text import Text, answer_text, completion_text, reference_text

_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_ALPHABET = re.compile(r"[0-9+\-*/() ]{1,200}")  # ASCII digits only, and short enough for any parser
_WHOLE = re.compile(r"-?[0-9]{1,300}")


def _check(columns: Mapping[str, Any]) -> str | None:
    if _whole(columns["target"]) is None:
        return f"target {str(columns['target'])[:40]!r} is not a whole number"
    if _numbers(columns["numbers"]) is None:
        return f"numbers {str(columns['numbers'])[:40]!r} is not a list of whole numbers"
    return None


@checked_by(_check)
def countdown(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    numbers: Sequence[Any],
    target: Sequence[Any],
    *,
    completion_prefix: str = "",
    **kwargs: Any,
) -> list[float | None]:
    """1.0 if `<answer>` holds an expression of + - * / ( ) that equals `target`, else 0.0.

    Each of `numbers` must be used exactly once; arithmetic is exact: 8/3*3 is 8. Whole numbers may be given as text or
    floats; None if a problem's are not whole numbers.
    The rules are TinyZero's (github.com/Jiayi-Pan/TinyZero), without its eval.
    """
    problems = [(_numbers(given), _whole(goal)) for given, goal in zip(numbers, target, strict=True)]
    return [
        None
        if given is None or goal is None
        else float(_is_solution(answer_text(completion_text(completion, completion_prefix)), given, goal))
        for completion, (given, goal) in zip(completions, problems, strict=True)
    ]


def _whole(value: Any) -> int | None:
    """The whole number that a column holds as a number or text."""
    text = reference_text(value) if not isinstance(value, bool) else None
    return int(text) if text and _WHOLE.fullmatch(text) else None


def _numbers(values: Any) -> list[int] | None:
    if values is None or isinstance(values, str) or not hasattr(values, "__iter__"):
        return None
    numbers = [number for value in values if (number := _whole(value)) is not None]
    return numbers if numbers and len(numbers) == len(list(values)) else None


def _is_solution(answer: str | None, numbers: list[int], target: int) -> bool:
    if answer is None or not _ALPHABET.fullmatch(answer):
        return False
    try:
        expression = ast.parse(answer.strip(), mode="eval").body
    except (SyntaxError, MemoryError, RecursionError):  # all ast.parse can raise on short text in that alphabet
        return False
    used: list[int] = []
    return _value(expression, used) == target and sorted(used) == sorted(numbers)


def _value(node: ast.expr, used: list[int]) -> Fraction | None:
    """The value; None for a division by zero and anything but numbers and the four operations (-3, 2**3, 7//2)."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    if not isinstance(node, ast.BinOp) or type(node.op) not in _OPERATIONS:
        return None
    left, right = _value(node.left, used), _value(node.right, used)
    if left is None or right is None or (isinstance(node.op, ast.Div) and right == 0):
        return None
    return _OPERATIONS[type(node.op)](left, right)
