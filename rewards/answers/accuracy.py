r"""Mathematical equivalence of the final answer and the reference answer.

`rewards.answers.maths` defines what equals what. Plain numbers are compared here; everything else runs in worker
processes with limits on CPU time and memory, because answers are untrusted input. Nothing in them is ever evaluated as
code, and nothing depends on signals or threads.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from rewards.answers.verdict import Verdict
from rewards.runner.load import checked_by
from rewards.runner.workers import WorkerError, WorkerPool
from rewards.text import (
    MAX_ANSWER,
    AnswerIn,
    Text,
    completion_text,
    final_answer,
    reference_answer,
    reference_text,
)

_CPU_SECONDS = 2  # per comparison; most take about a millisecond
_MEMORY_MB = 2048
_MAX_WORKERS = 4

_INTEGER = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]{1,300})"
_NUMBER = re.compile(rf"[+-]?{_INTEGER}(\.[0-9]{{1,300}})?")
_FRACTION = re.compile(rf"([+-]?)(?:({_INTEGER})/({_INTEGER})|\\d?frac\{{({_INTEGER})\}}\{{({_INTEGER})\}})")


def _check_columns(columns: Mapping[str, Any]) -> str | None:
    solution = reference_text(columns["solution"])
    return "no reference answer" if solution is None else check_reference(solution)


@checked_by(_check_columns)
def accuracy(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    solution: Sequence[Any],
    *,
    answer_in: AnswerIn = "auto",
    log_metric: Callable[[str, float], None] | None = None,
    log_extra: Callable[[str, list[str]], None] | None = None,
    completion_prefix: str = "",
    **kwargs: Any,
) -> list[float | None]:
    r"""1.0 if the final answer equals the reference answer, else 0.0; None if the reference answer is unreadable.

    solution: the reference answer, plain or LaTeX, or a text that ends in GSM8K's `#### 18` or has MATH's `\boxed{18}`.
    answer_in: where to look for the answer; see `rewards.text.final_answer`.
    An answer that no rule can read or compute scores 0.0 and is counted in the metric accuracy/unverifiable. The
    samples' column accuracy/verdict says why an answer is not right.
    """
    texts = [completion_text(completion, completion_prefix) for completion in completions]
    known = {i: text for i, reference in enumerate(solution) if (text := reference_text(reference)) is not None}
    verdicts: list[Verdict | None] = [None] * len(texts)
    found = verify([texts[i] for i in known], list(known.values()), answer_in=answer_in)
    for i, verdict in zip(known, found, strict=True):
        verdicts[i] = verdict
    if log_metric is not None and verdicts:
        for outcome in ("unverifiable", "no_answer"):
            log_metric(f"accuracy/{outcome}", sum(_is(verdict, outcome) for verdict in verdicts) / len(verdicts))
    if log_extra is not None:
        log_extra(
            "accuracy/verdict",
            ["reference answer unreadable" if verdict is None else str(verdict) for verdict in verdicts],
        )
    return [None if verdict is None else verdict.reward for verdict in verdicts]


def verify(
    completions: Sequence[str], references: Sequence[str], *, answer_in: AnswerIn = "auto"
) -> list[Verdict | None]:
    """A verdict per completion, None if its reference answer cannot be read. Identical pairs are compared once."""
    answers = [final_answer(completion, answer_in) for completion in completions]
    pairs = [(reference_answer(reference), answer) for reference, answer in zip(references, answers, strict=True)]
    comparisons = _comparisons(pairs)
    return [_verdict(answer, *comparison) for answer, comparison in zip(answers, comparisons, strict=True)]


def equal_answers(pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """For each pair, whether both answers have the same value; unreadable answers equal only the same text."""
    comparisons = _comparisons(list(pairs))
    return [one == other or outcome == "right" for (one, other), (outcome, _) in zip(pairs, comparisons, strict=True)]


def check_reference(solution: str) -> str | None:
    """Why this reference answer is unreadable; None if it can be read."""
    [(outcome, reason)] = _comparisons([(reference_answer(solution), None)])
    return reason if outcome == "reference" else None


def _is(verdict: Verdict | None, outcome: str) -> bool:
    if verdict is None:
        return False
    return verdict.answer is None if outcome == "no_answer" else verdict.outcome == outcome


def _verdict(answer: str | None, outcome: str, reason: str) -> Verdict | None:
    if outcome == "reference":
        return None
    if answer is None:
        return Verdict("wrong", "no answer", None)
    assert outcome in ("right", "wrong", "unverifiable")
    return Verdict(outcome, reason, answer)


# -- comparisons: (outcome, reason), cached by pair of texts

_known: dict[tuple[str, str | None], tuple[str, str]] = {}
_MAX_KNOWN = 20_000


def _comparisons(pairs: list[tuple[str, str | None]]) -> list[tuple[str, str]]:
    unknown: dict[tuple[str, str | None], None] = {}
    found: dict[tuple[str, str | None], tuple[str, str]] = {}
    for pair in dict.fromkeys(pairs):
        comparison = _known.get(pair) or _quickly(*pair)
        if comparison is None:
            unknown[pair] = None
        else:
            found[pair] = comparison
    if unknown:
        for pair, result in zip(unknown, _pool().map(list(unknown)), strict=True):
            found[pair] = ("unverifiable", result.reason) if isinstance(result, WorkerError) else result
            if len(_known) >= _MAX_KNOWN:
                _known.clear()
            _known[pair] = found[pair]
    return [found[pair] for pair in pairs]


def _quickly(reference: str, answer: str | None) -> tuple[str, str] | None:
    """The comparison of two plain numbers, or of a text that is too long; None for everything else."""
    if len(reference) > MAX_ANSWER:
        return "reference", f"longer than {MAX_ANSWER} characters"
    expected = _number(reference)
    if answer is None:
        return None if expected is None else ("right", "")
    if len(answer) > MAX_ANSWER:
        return "unverifiable", f"longer than {MAX_ANSWER} characters"
    if expected is None or (given := _number(answer)) is None:
        return None
    if expected == given:
        return "right", ""
    return None if "." in reference else ("wrong", "not equal")  # the reference answer may be rounded


@lru_cache(maxsize=8192)
def _number(text: str) -> Fraction | None:
    """The value of an integer with or without thousands separators, a decimal or a fraction of integers."""
    text = text.strip().strip("$").removesuffix(".")
    if _NUMBER.fullmatch(text):
        return Fraction(text.replace(",", ""))
    if match := _FRACTION.fullmatch(text):
        sign, *parts = match.groups()
        numerator, denominator = (int(part.replace(",", "")) for part in parts if part)
        return Fraction(int(f"{sign}1") * numerator, denominator) if denominator else None
    return None


@lru_cache(maxsize=1)
def _pool() -> WorkerPool:
    """The workers of this process."""
    workers = min(len(os.sched_getaffinity(0)), _MAX_WORKERS)
    return WorkerPool(
        "rewards.answers.maths.equivalence:verify",
        cpu_seconds=_CPU_SECONDS,
        memory_mb=_MEMORY_MB,
        timeout=15 * _CPU_SECONDS,
        max_workers=workers,
    )
