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
from rewards.programs.cases import Tests, program_in
from rewards.programs.datasets import read_tests, usual_columns
from rewards.programs.sandbox.limits import SandboxError
from rewards.runner.load import bind, check_options, load_function, required_columns
from rewards.runner.score import Rewards, RewardSpec
from rewards.text import answer_text, final_answer, reference_answer
from rollout.types import Group, Problem

accuracy = import_module("rewards.answers.accuracy")  # as `rewards.answers.accuracy` is the function

Verdicts = list[Verdict | None]

REWARD_WORKERS = 2  # processes for an ordinary reward function


class Grader(Protocol):
    """Grades one task's completions."""

    voting: Voting  # how cons@k compares answers
    finds_answers: bool  # whether it knows where a completion's answer is

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
    finds_answers = True

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
            programs = _programs(texts, tests, options)
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


def _programs(texts: Sequence[str], tests: Tests | str, options: Mapping[str, Any]) -> list[str | None]:
    """The programs that the code reward runs."""
    if options.get("code_in") == "text":
        return [*texts]
    names = [] if isinstance(tests, str) else tests.names()
    return [program_in(text, options.get("language", "python"), names) for text in texts]


def _of_program(verdict: Any, program: str | None) -> Verdict:
    failure = verdict.first_failure
    if failure.passed:
        return Verdict("right", "", program)
    return Verdict("wrong", f"{failure.reason}: {failure.detail}" if failure.detail else failure.reason, program)


class RewardGrader:
    """Ordinary reward functions, one of which decides: a completion is right if its value is above 0.5.

    Where a judge, a model or one's own function finds the answer is not known: completions have none, and no votes.
    """

    def __init__(self, rewards: Rewards, *, function: str, decides: str | None = None) -> None:
        self._rewards = rewards
        self._decides = decides or rewards.names[0]
        self._answers = _answers_of(function, rewards.options(self._decides))
        self.voting: Voting = _VOTING.get(function)
        self.finds_answers = self._answers is not None

    def grade(self, groups: Iterable[Group]) -> Iterator[Graded]:
        for scored in self._rewards.score(groups):
            group = scored.group
            texts = [group.completion_prefix + completion.text for completion in group.completions]
            answers = self._answers(texts, group.problem) if self._answers else [None] * len(texts)
            values = scored.breakdown[self._decides]
            verdicts = [self._verdict(*pair) for pair in zip(values, answers, strict=True)]
            yield Graded(group, verdicts, scored.breakdown)

    def reference_answer(self, problem: Problem) -> str | None:
        column = next(
            (problem.columns[name] for name in ("answer", "solution", "target") if name in problem.columns), None
        )
        return None if column is None else str(column)

    def unreadable(self, problem: Problem) -> str | None:
        return self._rewards.check(problem).get(self._decides)

    def close(self) -> None:
        self._rewards.close()

    def _verdict(self, value: float | None, answer: str | None) -> Verdict | None:
        if value is None:
            return None
        if value > 0.5:
            return Verdict("right", "", answer)
        is_missing = answer is None and self.finds_answers
        return Verdict("wrong", "no answer" if is_missing else f"{self._decides} is {value:g}", answer)


def _answers_of(
    function: str, options: Mapping[str, Any]
) -> Callable[[Sequence[str], Problem], list[str | None]] | None:
    """Finds completions' answers where the reward does; None if that is not known."""
    match function:
        case "code":
            return lambda texts, problem: _programs(texts, _tests(problem), options)
        case "accuracy" | "multiple_choice":
            return lambda texts, _: [final_answer(text, options.get("answer_in", "auto")) for text in texts]
        case "countdown" | "exact_match" | "reasoning_gym":
            return lambda texts, _: [answer_text(text) or None for text in texts]
    return None


def _same_choices(pairs: Sequence[tuple[str, str]]) -> list[bool]:
    return [same_choice(one, other) for one, other in pairs]


# By value, where all right answers have the same: the reference answer, the target number, a letter.
_VOTING: Mapping[str, Voting] = {
    "accuracy": accuracy.equal_answers,
    "countdown": accuracy.equal_answers,
    "multiple_choice": _same_choices,
    "exact_match": "text",
    "reasoning_gym": "text",
}


def _solution(problem: Problem) -> str:
    """The solution as text, "" if missing; a list of solutions, as in OlympiadBench, is joined into one answer."""
    solution = problem.columns["solution"]
    if solution is None:
        return ""
    return ", ".join(map(str, solution)) if isinstance(solution, list) else str(solution)
