"""Programs that pass hidden tests, run in a sandbox.

A submission never shares an interpreter, files, environment or pipe with the expected outputs: it receives inputs and
writes results as plain data, which another process compares. Its exit status and anything it claims count for nothing.
docs/sandbox.md describes the sandbox; `rewards.programs.datasets` lists the accepted formats of `tests`.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

from rewards.programs.cases import LIMITS, Case, Language, Tests, program_in, with_limits, wrong_limit
from rewards.programs.datasets import read_tests, tests_or_reasons
from rewards.programs.results import CodeResult, TestResult
from rewards.programs.sandbox.isolation import Level
from rewards.runner.load import checked_by
from rewards.text import Text, completion_text


class Backend(Protocol):
    """Where submissions run."""

    concurrency: int  # submissions at a time

    def unsupported(self, tests: Tests, language: Language) -> str | None: ...

    def run(self, program: str, tests: Tests, language: Language, *, stop_early: bool) -> list[TestResult]: ...


def _check(columns: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    if wrong := wrong_limit(**{name: options[name] for name in LIMITS if name in options}):
        raise ValueError(f"reward 'code': {wrong}. Correct the option.")
    where = {"backend": "local", "isolation": None, "allow_unsandboxed": False, **options}
    runner = _backend(where["backend"], where["isolation"], where["allow_unsandboxed"])
    [tests] = tests_or_reasons([""], {name: [value] for name, value in columns.items()})
    if isinstance(tests, str):
        return tests
    return runner.unsupported(tests, options.get("language", "python")) or _fault_of_checker(runner, tests)


def _fault_of_checker(runner: Backend, tests: Tests) -> str | None:
    """Why the checker must be wrong: it does not accept the first expected output, if there is one."""
    case = tests.cases[0] if tests.cases else None
    if tests.checker is None or case is None or case.output in ("", None):
        return None
    call = Case(input=[case.input, case.output, case.output], output=True)
    one = Tests(type="call", entry_point="check", cases=[call])
    [result] = runner.run(tests.checker, with_limits(one, 30, 30, 2048), "python", stop_early=True)
    return None if result.passed else f"the checker does not accept the expected output: {result.detail}"


@checked_by(_check)
def code(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    tests: Sequence[Any] | None = None,
    *,
    language: Language = "python",
    scoring: Literal["all", "fraction"] = "all",
    time_limit: float = 5.0,
    total_time_limit: float = 60.0,
    memory_mb: int = 512,
    code_in: Literal["block", "text"] = "block",
    backend: str = "local",
    isolation: Level | None = None,
    allow_unsandboxed: bool = False,
    log_metric: Callable[[str, float], None] | None = None,
    log_extra: Callable[[str, list[str]], None] | None = None,
    all_columns: Mapping[str, Sequence[Any]] | None = None,
    completion_prefix: str = "",
    **kwargs: Any,
) -> list[float | None]:
    """1.0 if the program in a completion passes every test, else 0.0; with scoring="fraction", the share that passes.

    None if the problem's tests cannot be read, or run with this language and backend.

    Args:
        tests: per completion, {"type": "stdin" | "call" | "assert", "cases": […], …} or its JSON; see docs/rewards.md.
            Without it, the columns of a known dataset are used: HumanEval, LeetCodeDataset, MBPP, MBPP+, APPS, TACO,
            CodeContests, LiveCodeBench.
        time_limit, memory_mb: CPU seconds per test and MiB, where the tests set none. Idling is limited to two seconds
            more. Waiting for a CPU does not count, so a busy machine changes no result.
        total_time_limit: CPU and idle seconds of all tests of a program together, where the tests set none, but no less
            than time_limit. Their own code, such as a checker, may take as many again.
        code_in: "block", the last fenced block in the language after thinking, preferably one that defines what the
            tests call; "text", the whole completion.
        backend: "local", or a remote sandbox: "piston+http://host:2000", "sandboxfusion+http://host:8080".
        isolation: a level from docs/sandbox.md; None, the strongest this machine supports.
        allow_unsandboxed: if no level works, run submissions with all the rights of this process.
        all_columns: the dataset's columns, a value per completion; needed for CodeContests, whose column time_limit is
            not this function's option. None: the other keyword arguments.

    Metrics: the shares code/no_code and code/timeout. The samples' column code/verdict says why a program failed.

    Raises ValueError for columns of no known dataset and a machine without a sandbox.
    """
    if all_columns is None:
        all_columns = kwargs if tests is None else {"tests": tests}
    runner = _backend(backend, isolation, allow_unsandboxed)
    problems = [_supported(runner, found, language) for found in tests_or_reasons(prompts, all_columns)]
    readable = {i: problem for i, problem in enumerate(problems) if isinstance(problem, Tests)}
    results = run_tests(
        [completion_text(completions[i], completion_prefix) for i in readable],
        list(readable.values()),
        language=language,
        time_limit=time_limit,
        total_time_limit=total_time_limit,
        memory_mb=memory_mb,
        code_in=code_in,
        backend=backend,
        isolation=isolation,
        allow_unsandboxed=allow_unsandboxed,
        stop_early=scoring == "all",
    )
    if log_metric is not None and results:
        for name, reason in (("no_code", "no code"), ("timeout", "timeout")):
            log_metric(f"code/{name}", sum(result.reason == reason for result in results) / len(results))
    if log_extra is not None:
        failures = {i: result.first_failure for i, result in zip(readable, results, strict=True)}
        verdicts = {i: ": ".join(filter(None, (f.reason, f.detail))) for i, f in failures.items()}
        log_extra("code/verdict", [verdicts.get(i, f"tests unreadable: {why}") for i, why in enumerate(problems)])
    values = {
        i: result.fraction if scoring == "fraction" else float(result.passed)
        for i, result in zip(readable, results, strict=True)
    }
    return [values.get(i) for i in range(len(completions))]


def _supported(runner: Backend, tests: Tests | str, language: Language) -> Tests | str:
    return tests if isinstance(tests, str) else runner.unsupported(tests, language) or tests


def run_tests(
    completions: Sequence[str],
    tests: Sequence[Any],
    *,
    language: Language = "python",
    time_limit: float = 5.0,
    total_time_limit: float = 60.0,
    memory_mb: int = 512,
    code_in: Literal["block", "text"] = "block",
    backend: str = "local",
    isolation: Level | None = None,
    allow_unsandboxed: bool = False,
    stop_early: bool = False,
) -> list[CodeResult]:
    """Each completion's results, test by test. Arguments as for `code`.

    stop_early: skip the tests after the first failure. A timeout or a crash ends the submission in any case.

    Raises ValueError for tests that cannot be read, or run with this language and backend.
    """
    if wrong := wrong_limit(time_limit=time_limit, total_time_limit=total_time_limit, memory_mb=memory_mb):
        raise ValueError(f"{wrong}. Correct the option.")
    runner = _backend(backend, isolation, allow_unsandboxed)
    read: dict[int, Tests] = {}  # a group shares its tests
    names: dict[int, list[str]] = {}

    jobs: dict[tuple[str, int], list[int]] = {}  # identical programs in a group run once
    for index, (completion, raw) in enumerate(zip(completions, tests, strict=True)):
        if id(raw) not in read:
            read[id(raw)] = with_limits(read_tests(raw), time_limit, total_time_limit, memory_mb)
            names[id(raw)] = read[id(raw)].names()
            if reason := runner.unsupported(read[id(raw)], language):
                raise ValueError(f"{reason}.")
        program = completion if code_in == "text" else program_in(completion, language, names[id(raw)])
        if program is not None:
            jobs.setdefault((program, id(raw)), []).append(index)
    results = [CodeResult([])] * len(completions)
    with ThreadPoolExecutor(max(1, min(runner.concurrency, len(jobs)))) as threads:
        run = threads.map(lambda job: runner.run(job[0], read[job[1]], language, stop_early=stop_early), jobs)
        for indices, outcome in zip(jobs.values(), run, strict=True):
            for index in indices:
                results[index] = CodeResult(outcome)
    return results


def _backend(backend: str, isolation: Level | None, allow_unsandboxed: bool) -> Backend:
    if backend == "local":
        from rewards.programs.sandbox.local import LocalBackend
        from rewards.programs.sandbox.pool import pool

        submissions = pool(isolation, allow_unsandboxed=allow_unsandboxed)
        return LocalBackend(submissions, pool(submissions.level, allow_unsandboxed=True, role="checkers"))
    from rewards.programs.sandbox.remote import remote_backend

    return remote_backend(backend)
