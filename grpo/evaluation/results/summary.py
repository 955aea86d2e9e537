"""From sample rows to metrics."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal, Protocol

from grpo.evaluation.results.estimators import clustered_interval, consensus, mean, pass_at_k, percentile
from grpo.report.records import Row
from rollout.types import Problem

# How cons@k decides that two answers are the same: a function that compares pairs by value (all right answers are then
# one answer), "text" for equal strings, None for no cons@k.
Voting = Callable[[Sequence[tuple[str, str]]], list[bool]] | Literal["text"] | None


def by_problem(rows: Iterable[Row]) -> list[list[Row]]:
    """Group rows by problem: problems in order of first appearance, samples sorted."""
    problems: dict[str, list[Row]] = {}
    for row in rows:
        problems.setdefault(row["problem_id"], []).append(row)
    return [sorted(samples, key=lambda row: row["sample"]) for samples in problems.values()]


def summarize(problems: Sequence[Sequence[Row]], voting: Voting, *, finds_answers: bool = True) -> dict[str, float]:
    """A task's metrics; finds_answers: whether the grader knows where a completion's answer is.

    {
        "pass@1": 0.84, "pass@1_low": 0.81, "pass@1_high": 0.87,  # mean share of right samples, 95% confidence interval
        "pass@2": 0.91,              # also 4, 8, …: at least one of k samples is right, unbiased
        "cons@8": 0.88,              # majority vote; needs two or more samples with answers
        "truncated_ratio": 0.01,     # share of samples truncated at the token budget
        "no_answer_ratio": 0.02,     # share of samples that are not right and have no answer; only if finds_answers
        "unverifiable_ratio": 0.0,   # share of samples shown neither right nor wrong; counted as wrong
        "mean_length": 41.5, "p95_length": 88,  # tokens
        "num_problems": 512, "num_samples": 8,
        "num_unreadable": 0,         # problems that cannot be graded: excluded from the metrics above
        "rewards/format/mean": 1.0,  # for each reward, over the samples it applies to
    }
    """
    graded = [samples for samples in problems if any(row["verdict"] is not None for row in samples)]
    metrics: dict[str, float] = {"num_problems": len(problems), "num_unreadable": len(problems) - len(graded)}
    if not graded:
        return metrics
    right = right_of(graded)
    num_samples = min(map(len, right))
    passes = {
        f"pass@{k}": mean(pass_at_k(len(row), sum(row), k) for row in right)
        for k in (2**i for i in range(num_samples.bit_length()))
    }
    low, high = clustered_interval([mean(row) for row in right])
    metrics = {"pass@1": passes.pop("pass@1"), "pass@1_low": low, "pass@1_high": high, **passes}
    rows = [row for samples in graded for row in samples]
    if voting is not None and num_samples > 1 and any(row["answer"] is not None for row in rows):
        first = [samples[:num_samples] for samples in graded]
        classes = answer_classes(first, voting)
        metrics[f"cons@{num_samples}"] = mean(map(consensus, classes, right_of(first)))
    lengths = [row["num_tokens"] for row in rows]
    metrics |= {
        "truncated_ratio": mean(row["finish_reason"] == "length" for row in rows),
        "unverifiable_ratio": mean(row["verdict"] == "unverifiable" for row in rows),
        "mean_length": mean(lengths),
        "p95_length": percentile(lengths, 0.95),
        "num_problems": len(problems),
        "num_samples": num_samples,
        "num_unreadable": len(problems) - len(graded),
    }
    if finds_answers:
        metrics["no_answer_ratio"] = mean(row["answer"] is None and row["verdict"] != "right" for row in rows)
    for name in rows[0]["rewards"]:
        if applicable := [row["rewards"][name] for row in rows if row["rewards"][name] is not None]:
            metrics[f"rewards/{name}/mean"] = mean(applicable)
    return metrics


def right_of(problems: Sequence[Sequence[Row]]) -> list[list[bool]]:
    return [[row["verdict"] == "right" for row in samples] for samples in problems]


def answer_classes(
    problems: Sequence[Sequence[Row]], voting: Callable[[Sequence[tuple[str, str]]], list[bool]] | Literal["text"]
) -> list[list[int | None]]:
    """Number each sample's answer, equal answers with equal numbers; None: no answer.

    When comparing by value, right answers all equal the reference answer, so only the others are compared with each
    other, all problems' pairs in one call.
    """
    if voting == "text":
        texts = [list(dict.fromkeys(row["answer"] for row in samples)) for samples in problems]
        return [
            [None if row["answer"] is None else known.index(row["answer"]) for row in samples]
            for samples, known in zip(problems, texts, strict=True)
        ]
    others = [list(dict.fromkeys(row["answer"] for row in samples if _votes(row))) for samples in problems]
    pairs = [pair for answers in others for pair in combinations(answers, 2)]
    same = {pair for pair, is_same in zip(pairs, voting(pairs), strict=True) if is_same} if pairs else set()
    classes = []
    for samples, answers in zip(problems, others, strict=True):
        number: dict[Any, int] = {}
        for index, answer in enumerate(answers):
            like = next((a for a in answers[:index] if (a, answer) in same), None)
            number[answer] = index + 1 if like is None else number[like]
        classes.append([_class(row, number) for row in samples])
    return classes


def _votes(row: Row) -> bool:
    return row["answer"] is not None and row["verdict"] != "right"


def _class(row: Row, number: dict[Any, int]) -> int | None:
    if row["answer"] is None:
        return None
    return 0 if row["verdict"] == "right" else number[row["answer"]]


def tabulate(
    problems: Sequence[Sequence[Row]], column: dict[str, Any], voting: Voting, *, finds_answers: bool = True
) -> dict[str, dict[str, float]]:
    """Metrics for each value of a column: {"1": {"pass@1": …}, "2": …}; column: problem id -> value or list."""
    values = {str(column[samples[0]["problem_id"]]): column[samples[0]["problem_id"]] for samples in problems}
    order = sorted(values, key=lambda text: (str(type(values[text])), values[text]))
    parts = {text: [s for s in problems if str(column[s[0]["problem_id"]]) == text] for text in order}
    return {text: summarize(part, voting, finds_answers=finds_answers) for text, part in parts.items()}


class Answers(Protocol):
    """What a summary asks of a grader (grpo/evaluation/grading.py)."""

    voting: Voting
    finds_answers: bool

    def unreadable(self, problem: Problem) -> str | None: ...


def summarize_task(
    rows: Sequence[Row],
    problems: Mapping[str, Problem],
    *,
    groups: Sequence[str],
    grader: Answers,
) -> dict[str, Any]:
    """Metrics, metrics by group, and the problems that cannot be graded: part of a task's entry in `Results`."""
    samples = by_problem(rows)
    columns = {group: {key: problem.columns[group] for key, problem in problems.items()} for group in groups}
    ungraded = [s[0]["problem_id"] for s in samples if all(row["verdict"] is None for row in s)]
    return {
        "metrics": summarize(samples, grader.voting, finds_answers=grader.finds_answers),
        "groups": {
            group: tabulate(samples, column, grader.voting, finds_answers=grader.finds_answers)
            for group, column in columns.items()
        },
        "unreadable": {key: grader.unreadable(problems[key]) or "the reward does not apply" for key in ungraded},
    }
