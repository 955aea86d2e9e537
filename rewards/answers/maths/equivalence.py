"""The function that the verifier's worker processes run."""

from functools import lru_cache

from rewards.answers.maths import limits
from rewards.answers.maths.comparing.compare import equal
from rewards.answers.maths.nodes import Node, Unreadable
from rewards.answers.maths.reading.normalize import normalize
from rewards.answers.maths.reading.parse import parse
from rewards.answers.maths.reading.tokens import is_grouped

Judgement = tuple[str, str]  # outcome ("right", "wrong", "unverifiable", "gold"), reason


def judge(pair: tuple[str, str | None]) -> Judgement:
    """Of (gold, answer). "gold": the gold cannot be read; an answer of None asks for that alone."""
    gold, answer = pair
    golds = readings(gold)
    if isinstance(golds, str):
        return "gold", golds
    if answer is None:
        return "right", ""
    answers = readings(answer)
    if isinstance(answers, str):
        return "unverifiable", answers
    refused = ""
    for one in golds:
        for other in answers:
            try:
                if equal(one, other):
                    return "right", ""
            except Unreadable as reason:
                refused = str(reason)
            except RecursionError:
                refused = "an expression too deep to compute"
    return ("unverifiable", refused) if refused else ("wrong", "not equal")


@lru_cache(maxsize=2048)
def readings(text: str) -> tuple[Node, ...] | str:
    """The one or two ways to read an answer (1,234 may be a number or a pair), or why there is none."""
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
            refused = "an expression too deep to read"
    return tuple(found) or refused
