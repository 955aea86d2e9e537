"""Who compares two answers: a function of one's own, or a model behind an endpoint."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from grpo.recipe.errors import RefusedError
from grpo.recipe.stages.preference import JudgeEndpoint
from grpo.stages.rejection.candidates import question
from rewards.models.judge import check_endpoint, compare
from rollout.support.loading import load_object
from rollout.types import Problem

FIXED = ("prompt", "first", "second")  # the judge's own arguments; everything else is a column

# (problem, first answer, second answer, number of the comparison) -> -1 to 1, or None for an unreadable reply
Judge = Callable[[Problem, str, str, int], float | None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to a problem."""

    problem: Problem
    first: str
    second: str


def load_judge(judge: str | JudgeEndpoint) -> Judge:
    """Raises ValueError if there is no such function."""
    if isinstance(judge, JudgeEndpoint):
        options = judge.model_dump(exclude={"max_concurrency"})
        return lambda problem, first, second, draw: compare(question(problem), first, second, draw=draw, **options)
    function = load_object(judge, kind="judge")

    def ask(problem: Problem, first: str, second: str, draw: int) -> float:  # noqa: ARG001
        score = function(question(problem), first, second, **problem.columns)
        if not isinstance(score, int | float) or not -1 <= score <= 1:  # NaN is neither
            raise RefusedError(
                f"judge {judge!r} returned {score!r} for problem {problem.id!r}: a score lies between -1 and 1. "
                "Scale what it returns."
            )
        return float(score)

    return ask


def check_judge(judge: str | JudgeEndpoint, columns: Mapping[str, Any]) -> None:
    """ValueError unless a judge's function finds the columns it needs, or its endpoint answers."""
    if isinstance(judge, JudgeEndpoint):
        check_endpoint("judge", **judge.model_dump(exclude={"max_concurrency", "criteria"}))
        return
    parameters = inspect.signature(load_object(judge, kind="judge")).parameters.values()
    needed = [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if missing := [name for name in needed if name not in (*FIXED, *columns)]:
        raise RefusedError(
            f"judge {judge!r} needs the column {missing[0]!r}, and the problems have {', '.join(columns) or 'none'}. "
            f"Map it: data.columns: {{{missing[0]}: …}}."
        )
    if taken := [name for name in columns if name in FIXED]:
        raise RefusedError(f"column {taken[0]!r} has the name of an argument of the judge. Rename it in data.columns.")
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise RefusedError(f"judge {judge!r} has no **columns, and it gets every column of a problem. Add it.")


def mean_scores(
    judge: Judge, comparisons: Sequence[Comparison], num_comparisons: int, max_concurrency: int
) -> list[float | None]:
    """Each pair's mean over `num_comparisons`, every second one with the answers swapped: judges have a position bias.

    None if a reply was unreadable.
    """

    def ask(one: tuple[Comparison, int]) -> float | None:
        pair, number = one
        draw, swapped = divmod(number, 2)
        if not swapped:
            return judge(pair.problem, pair.first, pair.second, draw)
        score = judge(pair.problem, pair.second, pair.first, draw)
        return None if score is None else -score

    asked = [(pair, number) for pair in comparisons for number in range(num_comparisons)]
    scores = list(_map(ask, asked, max_concurrency))
    rows = [scores[start : start + num_comparisons] for start in range(0, len(scores), num_comparisons)]
    return [None if None in row else sum(s for s in row if s is not None) / num_comparisons for row in rows]


def _map(function: Callable[..., Any], items: Iterable[Any], max_concurrency: int) -> Iterable[Any]:
    if max_concurrency == 1:
        return map(function, items)
    with ThreadPoolExecutor(max_concurrency) as threads:
        return list(threads.map(function, items))
