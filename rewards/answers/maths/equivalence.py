"""The function run by the verifier's worker processes."""

import re
from functools import lru_cache

from rewards.answers.maths import limits
from rewards.answers.maths.comparing.compare import equal
from rewards.answers.maths.nodes import Node, Unreadable, is_single
from rewards.answers.maths.reading import relations
from rewards.answers.maths.reading.parse import parse
from rewards.answers.maths.reading.spelling.normalize import normalize
from rewards.answers.maths.reading.tokens import is_grouped

_DOT_GROUPED = re.compile(r"(?<![0-9,.])([1-9][0-9]{0,2}(?:\.[0-9]{3})+),([0-9]+)(?![0-9,.])")  # 1.234,56
# Not 1,234, which is a thousand, and not one of several: 1,2,3.
_DECIMAL_COMMA = re.compile(r"(?<![0-9,.])(?![1-9][0-9]{0,2},[0-9]{3}(?![0-9]))([0-9]+),([0-9]+)(?![0-9,.])")

Comparison = tuple[str, str]  # outcome ("right", "wrong", "unverifiable", "reference"), reason


def verify(pair: tuple[str, str | None]) -> Comparison:
    """Compare (reference answer, answer). An answer of None only checks whether the reference answer is readable.

    The outcome "reference" means it is not.
    """
    reference, answer = pair
    references = readings(reference)
    if isinstance(references, str):
        return "reference", references
    if answer is None:
        return "right", ""
    answers = readings(answer)
    if isinstance(answers, str):
        return "unverifiable", answers
    refused = ""
    for one in references:
        for other in (*answers, *_with_decimal_point(answer, one)):
            try:
                if equal(one, other):
                    return "right", ""
            except Unreadable as reason:
                refused = str(reason)
            except RecursionError:
                refused = "an expression nested too deeply to compute"
    return ("unverifiable", refused) if refused else ("wrong", "not equal")


def _with_decimal_point(answer: str, wanted: Node) -> tuple[Node, ...]:
    """The answer 3,5 as 3.5, if the reference answer is a single value and so 3,5 cannot be the list 3, 5."""
    if "," not in answer or "(" in answer or "[" in answer or not is_single(wanted):
        return ()
    plain = _DOT_GROUPED.sub(lambda match: f"{match[1].replace('.', '')}.{match[2]}", answer)
    plain = _DECIMAL_COMMA.sub(r"\1.\2", plain)
    found = readings(plain) if plain != answer else ()
    return () if isinstance(found, str) else tuple(node for node in found if is_single(node))


@lru_cache(maxsize=2048)
def readings(text: str) -> tuple[Node, ...] | str:
    """The one or two ways to read an answer (1,234 may be a number or a pair), or why it cannot be read."""
    if reason := limits.too_large(text):
        return reason
    plain = normalize(text)
    found: list[Node] = []
    refused = ""
    for grouped in (True, False) if is_grouped(plain) else (True,):
        try:
            found.append(parse(plain, grouped=grouped))
        except Unreadable as reason:
            refused = str(reason)
        except RecursionError:
            refused = "an expression nested too deeply to read"
    if (residues := relations.read_residues(plain)) is not None:
        found.append(residues)
    return tuple(found) or refused
