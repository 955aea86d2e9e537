"""Both graders on the same pairs, in batches with a progress bar: ours, and math-verify by itself."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.progress import track

from rewards.answers.accuracy import verify
from rewards.answers.verdict import Verdict

T = TypeVar("T")


def ours(
    completions: Sequence[str], references: Sequence[str], what: str, answer_in: str = "auto", batch: int = 256
) -> list[Verdict | None]:
    """Verdicts of rewards.answers.accuracy; None if the reference answer is unreadable."""
    verdicts: list[Verdict | None] = []
    for start in progress(range(0, len(references), batch), what):
        part = slice(start, start + batch)
        verdicts += verify(completions[part], references[part], answer_in=answer_in)
    return verdicts


def is_right(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.outcome == "right"


def outcome(verdict: Verdict | None) -> str:
    """A verdict as shown in tables: "right", "wrong (not equal)", "reference unreadable"."""
    if verdict is None:
        return "reference unreadable"
    return verdict.outcome + (f" ({verdict.reason})" if verdict.reason else "")


def math_verify_alone(completion: str, reference: str) -> bool:
    """math-verify's decision, with its default extraction from the completion and its own time limits (5 s by signal).

    The reference answer is read as LaTeX, put into a box if it has neither dollars nor a box.
    """
    from math_verify import parse, verify

    marked = any(mark in reference for mark in ("$", r"\boxed", r"\(", r"\["))
    return verify(parse(reference if marked else rf"\boxed{{{reference}}}"), parse(completion))


def baseline(completions: Sequence[str], references: Sequence[str], what: str) -> list[bool]:
    pairs = list(zip(completions, references, strict=True))
    return [math_verify_alone(c, g) for c, g in progress(pairs, what)]


def progress(items: Sequence[T], what: str) -> Iterable[T]:
    return track(items, description=f"{what:<32}")
