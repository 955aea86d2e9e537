"""The two graders on the same pairs, in batches with a progress bar: ours, and math-verify alone."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.progress import track

from rewards.answers.accuracy import judge
from rewards.answers.verdict import Verdict

T = TypeVar("T")


def ours(
    completions: Sequence[str], golds: Sequence[str], what: str, answer_in: str = "auto", batch: int = 256
) -> list[Verdict | None]:
    """Verdicts of rewards.accuracy; None where the gold is unreadable."""
    verdicts: list[Verdict | None] = []
    for start in progress(range(0, len(golds), batch), what):
        part = slice(start, start + batch)
        verdicts += judge(completions[part], golds[part], answer_in=answer_in)
    return verdicts


def is_right(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.outcome == "right"


def outcome(verdict: Verdict | None) -> str:
    """What a table says of a verdict: "right", "wrong (another value)", "gold unreadable"."""
    if verdict is None:
        return "gold unreadable"
    return verdict.outcome + (f" ({verdict.reason})" if verdict.reason else "")


def math_verify_alone(completion: str, gold: str) -> bool:
    """math-verify's own answer: default extraction from the completion, the gold read as LaTeX, boxed where it has no
    dollars or box of its own. Its time limits are its own (5 s each, by signal)."""
    from math_verify import parse, verify

    marked = any(mark in gold for mark in ("$", r"\boxed", r"\(", r"\["))
    return verify(parse(gold if marked else rf"\boxed{{{gold}}}"), parse(completion))


def baseline(completions: Sequence[str], golds: Sequence[str], what: str) -> list[bool]:
    pairs = list(zip(completions, golds, strict=True))
    return [math_verify_alone(c, g) for c, g in progress(pairs, what)]


def progress(items: Sequence[T], what: str) -> Iterable[T]:
    return track(items, description=f"{what:<32}")
