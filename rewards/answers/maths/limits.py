"""Bounds on untrusted text, checked before it is read."""

import re

MAX_LENGTH = 1000  # characters in an answer; real ones are far shorter
MAX_DEPTH = 40  # nested brackets
MAX_DIGITS = 400  # in one number
MAX_TOKENS = 600

_BRACKETS = re.compile(r"[({\[]|[)}\]]")
_LONG_NUMBER = re.compile(rf"[0-9][0-9,]{{{MAX_DIGITS}}}")


def too_large(text: str) -> str | None:
    """Why the text is rejected unread, or None."""
    if len(text) > MAX_LENGTH:
        return f"longer than {MAX_LENGTH} characters"
    if _LONG_NUMBER.search(text):
        return f"a number with more than {MAX_DIGITS} digits"
    depth = deepest = 0
    for bracket in _BRACKETS.finditer(text):
        depth += 1 if bracket.group() in "({[" else -1
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        return f"brackets nested more than {MAX_DEPTH} deep"
    return None
