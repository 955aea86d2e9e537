"""Who says whether an answer is right, and why.

`accuracy` and `code` have judges, which give a verdict with its reason and the answer they read; any other reward
function gives a number, of which more than 0.5 is right. Grading runs beside generation: judges have processes of their
own and are waited for in threads, reward functions run in the worker processes of `rewards.runner.score`.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from queue import SimpleQueue
from typing import Any, Protocol

from grpo.evaluation.results.summary import Voting
from rewards.answers.multiple_choice import same_choice
from rewards.answers.verdict import Verdict
from rewards.programs.cases import Tests
from rewards.programs.datasets import read_tests, usual_columns
from rewards.runner.load import bind, load_function, required_columns
from rewards.runner.score import Rewards, RewardSpec
from rewards.text import final_answer, gold_answer
from rollout.types import Group, Problem

accuracy = import_module("rewards.answers.accuracy")  # the package's own name `accuracy` is the function

Judged = Future[list[Verdict | None]]

REWARD_WORKERS = 2  # processes of an ordinary reward function


@dataclass(frozen=True, slots=True)
class Graded:
    """A group with one verdict per completion; None: the gold answer cannot be read, or the reward does not apply.

    Graded(group, [Verdict("wrong", "2 is not 3", "2")], {"accuracy": [0.0]})
    """

    group: Group
    verdicts: list[Verdict | None]
    rewards: dict[str, list[float | None]]


class Grader(Protocol):
    """Judges the completions of one task."""

    voting: Voting  # how answers are counted against each other

    def grade(self, groups: Iterable[Group]) -> Iterator[Graded]:
        """Yield groups as they are judged, in no particular order."""
        ...

    def gold(self, problem: Problem) -> str | None:
        """The right answer as a short text, where there is such a thing."""
        ...

    def unreadable(self, problem: Problem) -> str | None:
        """Why this problem cannot be judged at all; None: it can."""
        ...

    def close(self) -> None: ...


def build_grader(reward: str, options: Mapping[str, Any]) -> Grader:
    """The grader of a task: its `reward` with its `options`."""
    if reward == "accuracy":
        return MathGrader(dict(options))
    if reward == "code":
        return CodeGrader(dict(options))
    return RewardGrader(
        Rewards([RewardSpec(function=reward, options=dict(options))], num_workers=REWARD_WORKERS), function=reward
    )


def check_columns(task: str, reward: str, options: Mapping[str, Any], columns: Iterable[str]) -> None:
    """ValueError unless a task has the columns that its reward reads."""
    present = list(columns)
    function, options = bind(reward, load_function(reward), options)
    for column in required_columns(function, options):
        if column not in present:
            raise ValueError(
                f"task {task!r}: its reward {reward!r} reads the column {column!r}, and there is none. The columns "
                f"are: {', '.join(present)}. Name the one that holds it: columns: {{{column}: …}}."
            )


class _JudgeGrader:
    """Runs a judge, f(completions, problem) -> verdicts, on groups as they come, in threads that wait for it."""

    name: str
    voting: Voting

    def __init__(self, judge: Callable[[list[str], Problem], list[Verdict | None]], workers: int) -> None:
        self._judge = judge
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="grading")

    def grade(self, groups: Iterable[Group]) -> Iterator[Graded]:
        done: SimpleQueue[tuple[Group, Judged]] = SimpleQueue()
        waiting = 0
        for group in groups:
            texts = [completion.text for completion in group.completions]
            future = self._threads.submit(self._judge, texts, group.problem)
            future.add_done_callback(lambda judged, group=group: done.put((group, judged)))
            waiting += 1
            while not done.empty():
                yield self._graded(*done.get())
                waiting -= 1
        for _ in range(waiting):
            yield self._graded(*done.get())

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _graded(self, group: Group, judged: Judged) -> Graded:
        verdicts = judged.result()
        return Graded(group, verdicts, {self.name: [None if v is None else v.reward for v in verdicts]})


class MathGrader(_JudgeGrader):
    """rewards.answers.accuracy: mathematical equivalence with the column `solution`."""

    name = "accuracy"
    voting: Voting = staticmethod(accuracy.equal_answers)

    def __init__(self, options: dict[str, Any]) -> None:
        def judge(texts: list[str], problem: Problem) -> list[Verdict | None]:
            return accuracy.verify(texts, [_solution(problem)] * len(texts), **options)

        super().__init__(judge, workers=2)

    def gold(self, problem: Problem) -> str | None:
        return gold_answer(_solution(problem))

    def unreadable(self, problem: Problem) -> str | None:
        return accuracy.check_reference(_solution(problem))


class CodeGrader(_JudgeGrader):
    """rewards.programs.code: the program passes the problem's tests, in a sandbox. Programs do not vote."""

    name = "code"
    voting: Voting = None

    def __init__(self, options: dict[str, Any]) -> None:
        code = import_module("rewards.programs.code")  # as above, and it needs a machine with a sandbox

        def judge(texts: list[str], problem: Problem) -> list[Verdict | None]:
            tests = _tests(problem)
            if isinstance(tests, str):
                return [None] * len(texts)
            verdicts = code.run_tests(texts, [tests] * len(texts), stop_early=True, **options)
            programs = [code.last_block(text, options.get("language", "python")) for text in texts]
            return [_of_program(verdict, program) for verdict, program in zip(verdicts, programs, strict=True)]

        super().__init__(judge, workers=len(os.sched_getaffinity(0)))

    def gold(self, problem: Problem) -> str | None:  # noqa: ARG002
        return None

    def unreadable(self, problem: Problem) -> str | None:
        tests = _tests(problem)
        return tests if isinstance(tests, str) else None


def _tests(problem: Problem) -> Tests | str:
    """The column `tests`, or what the columns of the usual sets say; where they cannot be read, why not."""
    try:
        if "tests" in problem.columns:
            return read_tests(problem.columns["tests"])
        return usual_columns([problem.prompt], {name: [value] for name, value in problem.columns.items()})[0]
    except ValueError as error:
        return str(error)


def _of_program(verdict: Any, program: str | None) -> Verdict:
    failure = verdict.first_failure
    if failure.passed:
        return Verdict("right", "", program)
    return Verdict("wrong", f"{failure.reason}: {failure.detail}" if failure.detail else failure.reason, program)


class RewardGrader:
    """Ordinary reward functions, of which one decides: a completion is right where it gives more than 0.5."""

    def __init__(self, rewards: Rewards, *, function: str, decides: str | None = None) -> None:
        self._rewards = rewards
        self._decides = decides or rewards.names[0]
        self.voting: Voting = _VOTING.get(function, "text")

    def grade(self, groups: Iterable[Group]) -> Iterator[Graded]:
        for scored in self._rewards.score(groups):
            verdicts = [
                self._verdict(value, completion.text)
                for value, completion in zip(scored.breakdown[self._decides], scored.group.completions, strict=True)
            ]
            yield Graded(scored.group, verdicts, scored.breakdown)

    def gold(self, problem: Problem) -> str | None:
        column = next(
            (problem.columns[name] for name in ("answer", "solution", "target") if name in problem.columns), None
        )
        return None if column is None else str(column)

    def unreadable(self, problem: Problem) -> str | None:
        return self._rewards.check(problem).get(self._decides)

    def close(self) -> None:
        self._rewards.close()

    def _verdict(self, value: float | None, text: str) -> Verdict | None:
        if value is None:
            return None
        answer = final_answer(text)
        if value > 0.5:
            return Verdict("right", "", answer)
        return Verdict("wrong", "no answer" if answer is None else f"{self._decides} is {value:g}", answer)


def _same_choices(pairs: Sequence[tuple[str, str]]) -> list[bool]:
    return [same_choice(one, other) for one, other in pairs]


# Rewards of which all right answers have one value: the gold, the target number, a letter.
_VOTING: Mapping[str, Voting] = {
    "accuracy": accuracy.equal_answers,
    "countdown": accuracy.equal_answers,
    "multiple_choice": _same_choices,
}


def _solution(problem: Problem) -> str:
    """The gold text, "" where there is none; of several, as OlympiadBench lists them, all, as one list."""
    solution = problem.columns["solution"]
    if solution is None:
        return ""
    return ", ".join(map(str, solution)) if isinstance(solution, list) else str(solution)
