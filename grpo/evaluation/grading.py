"""Graders: whether an answer is right, and why.

`accuracy` and `code` return a verdict with its reason and the extracted answer; any other reward function returns a
number, and more than 0.5 counts as right. Grading overlaps generation: the two verifiers have their own processes,
awaited in threads, and reward functions run in the worker processes of `rewards.runner.score`.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from queue import SimpleQueue
from typing import Any, Protocol

from grpo.evaluation.results.graded import Graded
from grpo.evaluation.results.summary import Voting
from rewards.answers.multiple_choice import same_choice
from rewards.answers.verdict import Verdict
from rewards.programs.cases import Tests
from rewards.programs.datasets import read_tests, usual_columns
from rewards.programs.sandbox.limits import SandboxError
from rewards.runner.load import bind, check_options, load_function, required_columns
from rewards.runner.score import Rewards, RewardSpec
from rewards.text import final_answer, reference_answer
from rollout.types import Group, Problem

accuracy = import_module("rewards.answers.accuracy")  # as `rewards.answers.accuracy` is the function

Verdicts = list[Verdict | None]

REWARD_WORKERS = 2  # processes for an ordinary reward function


class Grader(Protocol):
    """Grades one task's completions."""

    voting: Voting  # how cons@k compares answers

    def grade(self, groups: Iterable[Group]) -> Iterator[Graded]:
        """Yield groups as they are graded, in no particular order."""
        ...

    def reference_answer(self, problem: Problem) -> str | None:
        """The problem's reference answer, if it is a short text."""
        ...

    def unreadable(self, problem: Problem) -> str | None:
        """Why this problem cannot be graded; None if it can."""
        ...

    def close(self) -> None: ...


def build_grader(reward: str, options: Mapping[str, Any]) -> Grader:
    """The grader for a task's `reward` and `options`.

    Raises:
        ValueError: the options do not fit, or programs have no sandbox here.
    """
    if reward in ("accuracy", "code"):
        check_options(reward, load_function(reward), options)
    if reward == "accuracy":
        return MathGrader(dict(options))
    if reward == "code":
        return CodeGrader(dict(options))
    return RewardGrader(
        Rewards([RewardSpec(function=reward, options=dict(options))], num_workers=REWARD_WORKERS), function=reward
    )


def check_columns(task: str, reward: str, options: Mapping[str, Any], columns: Iterable[str]) -> None:
    """ValueError unless a task has the columns its reward reads."""
    present = list(columns)
    function, options = bind(reward, load_function(reward), options)
    for column in required_columns(function, options):
        if column not in present:
            raise ValueError(
                f"task {task!r}: its reward {reward!r} needs a column {column!r}, which is missing. Columns: "
                f"{', '.join(present)}. Map one of them: columns: {{{column}: …}}."
            )


class _VerifierGrader:
    """Calls a verifier, f(completions, problem) -> verdicts, for each group as it arrives, in waiting threads."""

    name: str
    voting: Voting

    def __init__(self, verify: Callable[[list[str], Problem], Verdicts], workers: int) -> None:
        self._verify = verify
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="grading")

    def grade(self, groups: Iterable[Group]) -> Iterator[Graded]:
        done: SimpleQueue[tuple[Group, Future[Verdicts]]] = SimpleQueue()
        waiting = 0
        for group in groups:
            texts = [group.completion_prefix + completion.text for completion in group.completions]
            future = self._threads.submit(self._verify, texts, group.problem)
            future.add_done_callback(lambda future, group=group: done.put((group, future)))
            waiting += 1
            while not done.empty():
                yield self._graded(*done.get())
                waiting -= 1
        for _ in range(waiting):
            yield self._graded(*done.get())

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _graded(self, group: Group, future: Future[Verdicts]) -> Graded:
        verdicts = future.result()
        return Graded(group, verdicts, {self.name: [None if v is None else v.reward for v in verdicts]})


class MathGrader(_VerifierGrader):
    """rewards.answers.accuracy: mathematical equivalence with the column `solution`."""

    name = "accuracy"
    voting: Voting = staticmethod(accuracy.equal_answers)

    def __init__(self, options: dict[str, Any]) -> None:
        def verify(texts: list[str], problem: Problem) -> Verdicts:
            return accuracy.verify(texts, [_solution(problem)] * len(texts), **options)

        super().__init__(verify, workers=2)

    def reference_answer(self, problem: Problem) -> str | None:
        return reference_answer(_solution(problem))

    def unreadable(self, problem: Problem) -> str | None:
        return accuracy.check_reference(_solution(problem))


class CodeGrader(_VerifierGrader):
    """rewards.programs.code: the program passes the problem's tests in a sandbox. No cons@k for programs."""

    name = "code"
    voting: Voting = None

    def __init__(self, options: dict[str, Any]) -> None:
        code = import_module("rewards.programs.code")  # as above; and only here, as it needs a sandbox
        _check_sandbox(options)
        used = {name: value for name, value in options.items() if name != "scoring"}  # a verdict is all or nothing

        def verify(texts: list[str], problem: Problem) -> Verdicts:
            tests = _tests(problem)
            if isinstance(tests, str):
                return [None] * len(texts)
            verdicts = code.run_tests(texts, [tests] * len(texts), stop_early=True, **used)
            names = tests.names()
            programs = [code.program_in(text, options.get("language", "python"), names) for text in texts]
            return [_of_program(verdict, program) for verdict, program in zip(verdicts, programs, strict=True)]

        super().__init__(verify, workers=len(os.sched_getaffinity(0)))

    def reference_answer(self, problem: Problem) -> str | None:  # noqa: ARG002
        return None

    def unreadable(self, problem: Problem) -> str | None:
        tests = _tests(problem)
        return tests if isinstance(tests, str) else None


def _check_sandbox(options: Mapping[str, Any]) -> None:
    """Start a sandbox, before completions are sampled that none could run."""
    if options.get("backend", "local") != "local":
        return
    from rewards.programs.sandbox.pool import pool

    try:
        with pool(options.get("isolation"), allow_unsandboxed=options.get("allow_unsandboxed", False)).box():
            pass
    except SandboxError as error:
        raise ValueError(
            f"isolation={options['isolation']!r}: {error}. Leave it out for the strongest level that this machine has."
        ) from error


def _tests(problem: Problem) -> Tests | str:
    """Tests from the column `tests`, or from a known dataset's own columns; if they cannot be read, why."""
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
    """Ordinary reward functions, one of which decides: a completion is right if its value is above 0.5."""

    def __init__(self, rewards: Rewards, *, function: str, decides: str | None = None) -> None:
        self._rewards = rewards
        self._decides = decides or rewards.names[0]
        self.voting: Voting = _VOTING.get(function, "text")

    def grade(self, groups: Iterable[Group]) -> Iterator[Graded]:
        for scored in self._rewards.score(groups):
            verdicts = [
                self._verdict(value, scored.group.completion_prefix + completion.text)
                for value, completion in zip(scored.breakdown[self._decides], scored.group.completions, strict=True)
            ]
            yield Graded(scored.group, verdicts, scored.breakdown)

    def reference_answer(self, problem: Problem) -> str | None:
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


# Rewards whose right answers all have the same value: the reference answer, the target number, a letter.
_VOTING: Mapping[str, Voting] = {
    "accuracy": accuracy.equal_answers,
    "countdown": accuracy.equal_answers,
    "multiple_choice": _same_choices,
}


def _solution(problem: Problem) -> str:
    """The solution as text, "" if missing; a list of solutions, as in OlympiadBench, is joined into one answer."""
    solution = problem.columns["solution"]
    if solution is None:
        return ""
    return ", ".join(map(str, solution)) if isinstance(solution, list) else str(solution)
