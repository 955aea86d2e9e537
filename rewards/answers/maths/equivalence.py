"""The function run by the verifier's worker processes."""

from functools import lru_cache

from rewards.answers.maths import limits
from rewards.answers.maths.comparing.compare import equal
from rewards.answers.maths.nodes import Node, Unreadable
from rewards.answers.maths.reading import relations
from rewards.answers.maths.reading.normalize import normalize
from rewards.answers.maths.reading.parse import parse
from rewards.answers.maths.reading.tokens import is_grouped

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
        for other in answers:
            try:
                if equal(one, other):
                    return "right", ""
            except Unreadable as reason:
                refused = str(reason)
            except RecursionError:
                refused = "an expression nested too deeply to compute"
    return ("unverifiable", refused) if refused else ("wrong", "not equal")


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
