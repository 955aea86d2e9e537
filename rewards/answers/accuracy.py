r"""Mathematical equivalence of the final answer and the gold one.

`rewards.answers.maths` says what equals what. Plain numbers and equal texts are decided here; everything else in worker
processes with limits on computing time and memory, because an answer is hostile input. Nothing in it is ever
evaluated as code, and nothing depends on signals or threads.
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
from rewards.text import MAX_ANSWER, AnswerIn, Text, completion_text, final_answer, gold_answer

_CPU_SECONDS = 2  # for one comparison, which takes a millisecond
_MEMORY_MB = 2048
_MAX_WORKERS = 4

_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,300})"
_NUMBER = re.compile(rf"[+-]?{_INTEGER}(\.[0-9]{{1,300}})?")
_FRACTION = re.compile(rf"([+-]?)(?:({_INTEGER})/({_INTEGER})|\\d?frac\{{({_INTEGER})\}}\{{({_INTEGER})\}})")


def _check_columns(columns: Mapping[str, Any]) -> str | None:
    solution = columns["solution"]
    return "no gold" if solution is None else check_gold(str(solution))


@checked_by(_check_columns)
def accuracy(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    solution: Sequence[Any],
    *,
    answer_in: AnswerIn = "auto",
    log_metric: Callable[[str, float], None] | None = None,
    log_extra: Callable[[str, list[str]], None] | None = None,
    **kwargs: Any,
) -> list[float | None]:
    r"""1.0 if the final answer equals the gold one, else 0.0; None where the gold cannot be read.

    solution: the gold answer, plain or LaTeX, or a text that ends in GSM8K's `#### 18` or holds MATH's `\boxed{18}`.
    answer_in: where the answer may stand; see `rewards.text.final_answer`.
    An answer that no rule can read or compute is worth 0.0 and counted apart, in the metric accuracy/unverifiable. Why
    an answer is not right is in the samples' column accuracy/verdict.
    """
    texts = [completion_text(completion) for completion in completions]
    known = [i for i, gold in enumerate(solution) if gold is not None]
    verdicts: list[Verdict | None] = [None] * len(texts)
    judged = judge([texts[i] for i in known], [str(solution[i]) for i in known], answer_in=answer_in)
    for i, verdict in zip(known, judged, strict=True):
        verdicts[i] = verdict
    if log_metric is not None and verdicts:
        for outcome in ("unverifiable", "no_answer"):
            log_metric(f"accuracy/{outcome}", sum(_is(verdict, outcome) for verdict in verdicts) / len(verdicts))
    if log_extra is not None:
        log_extra("accuracy/verdict", ["gold unreadable" if verdict is None else str(verdict) for verdict in verdicts])
    return [None if verdict is None else verdict.reward for verdict in verdicts]


def judge(completions: Sequence[str], golds: Sequence[str], *, answer_in: AnswerIn = "auto") -> list[Verdict | None]:
    """A verdict for each completion, None where its gold cannot be read. Equal pairs are compared once."""
    answers = [final_answer(completion, answer_in) for completion in completions]
    pairs = [(gold_answer(gold), answer) for gold, answer in zip(golds, answers, strict=True)]
    judgements = _judgements(pairs)
    return [_verdict(answer, *judgement) for answer, judgement in zip(answers, judgements, strict=True)]


def equal_answers(pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether two answers are the same value, for each pair; answers that cannot be read equal only their own text."""
    judgements = _judgements(list(pairs))
    return [one == other or outcome == "right" for (one, other), (outcome, _) in zip(pairs, judgements, strict=True)]


def check_gold(solution: str) -> str | None:
    """Why no rule can read this gold; None where one can."""
    [(outcome, reason)] = _judgements([(gold_answer(solution), None)])
    return reason if outcome == "gold" else None


def _is(verdict: Verdict | None, outcome: str) -> bool:
    if verdict is None:
        return False
    return verdict.answer is None if outcome == "no_answer" else verdict.outcome == outcome


def _verdict(answer: str | None, outcome: str, reason: str) -> Verdict | None:
    if outcome == "gold":
        return None
    if answer is None:
        return Verdict("wrong", "no answer", None)
    assert outcome in ("right", "wrong", "unverifiable")
    return Verdict(outcome, reason, answer)


# -- judgements: (outcome, reason), remembered by the pair of texts

_known: dict[tuple[str, str | None], tuple[str, str]] = {}
_MAX_KNOWN = 20_000


def _judgements(pairs: list[tuple[str, str | None]]) -> list[tuple[str, str]]:
    unknown: dict[tuple[str, str | None], None] = {}
    found: dict[tuple[str, str | None], tuple[str, str]] = {}
    for pair in dict.fromkeys(pairs):
        judgement = _known.get(pair) or _at_sight(*pair)
        if judgement is None:
            unknown[pair] = None
        else:
            found[pair] = judgement
    if unknown:
        for pair, result in zip(unknown, _pool().map(list(unknown)), strict=True):
            found[pair] = ("unverifiable", result.reason) if isinstance(result, WorkerError) else result
            if len(_known) >= _MAX_KNOWN:
                _known.clear()
            _known[pair] = found[pair]
    return [found[pair] for pair in pairs]


def _at_sight(gold: str, answer: str | None) -> tuple[str, str] | None:
    """A judgement that needs no reading, of two numbers or of too long a text; None for all else."""
    if len(gold) > MAX_ANSWER:
        return "gold", f"longer than {MAX_ANSWER} characters"
    expected = _number(gold)
    if answer is None:
        return None if expected is None else ("right", "")
    if len(answer) > MAX_ANSWER:
        return "unverifiable", f"longer than {MAX_ANSWER} characters"
    if expected is None or (given := _number(answer)) is None:
        return None
    if expected == given:
        return "right", ""
    return None if "." in gold else ("wrong", "not equal")  # a decimal may be rounded


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
        "rewards.answers.maths.equivalence:judge",
        cpu_seconds=_CPU_SECONDS,
        memory_mb=_MEMORY_MB,
        timeout=15 * _CPU_SECONDS,
        max_workers=workers,
    )
