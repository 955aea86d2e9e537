"""Runs submissions against tests in sandboxes on this machine."""

import json
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

from rewards.programs.cases import Case, Language, Tests
from rewards.programs.compare import same_output, same_value
from rewards.programs.results import NOT_RUN, PASSED, Reason, TestResult, shorten, wrong_value
from rewards.programs.sandbox.box import Box
from rewards.programs.sandbox.inside import plain
from rewards.programs.sandbox.limits import Budget, Ended, Limits, SandboxDiedError, SandboxError, Stopped
from rewards.programs.sandbox.pool import Pool
from rewards.programs.sandbox.running import Running

_COMPILING = Limits(time_limit=30, memory_mb=2048, compiling=True)
_CHECKING = Limits(time_limit=30, memory_mb=2048)
_REASONS: dict[str, Reason] = {"timeout": "timeout", "memory": "memory", "output": "wrong output"}


class LocalBackend:
    """Runs submissions in boxes of one pool and trusted code (asserts, checkers) in boxes of another."""

    def __init__(self, submissions: Pool, checkers: Pool) -> None:
        self._submissions, self._checkers = submissions, checkers
        self.concurrency = submissions.size

    def unsupported(self, tests: Tests, language: Language) -> str | None:
        """Why these tests cannot run here; None if they can."""
        if language != "python" and tests.type != "stdin":
            return f"{tests.type} tests need language 'python'; {language!r} supports stdin tests only"
        if language == "cpp" and shutil.which("g++") is None:
            return "language 'cpp' needs g++ on this machine: install it, or set backend to a remote sandbox"
        return None

    def run(self, program: str, tests: Tests, language: Language, *, stop_early: bool) -> list[TestResult]:
        """One result per test, in order; with stop_early, tests after the first failure are not run."""
        try:
            found = self._results(program, tests, language, stop_early)
        except SandboxError:  # the kernel's OOM killer may hit a box, too
            try:
                found = self._results(program, tests, language, stop_early)
            except SandboxDiedError as error:  # twice: the program does it
                found = [TestResult("crashed", str(error))]
        return found + [NOT_RUN] * (len(tests) - len(found))

    def _results(self, program: str, tests: Tests, language: Language, stop_early: bool) -> list[TestResult]:
        with self._submissions.box() as box:
            return list(_Run(box, self._checkers, program, tests, language, stop_early).results())


class _Run:
    """One submission in its box, and what its tests run elsewhere."""

    def __init__(
        self, box: Box, checkers: Pool, program: str, tests: Tests, language: Language, stop_early: bool
    ) -> None:
        assert tests.time_limit and tests.memory_mb and tests.total_time_limit
        self._box, self._checkers = box, checkers
        self._program, self._tests, self._language, self._stop_early = program, tests, language, stop_early
        budget = Budget(tests.total_time_limit)
        self._limits = Limits(time_limit=tests.time_limit, memory_mb=tests.memory_mb, budget=budget)
        self._checking = replace(_CHECKING, budget=Budget(tests.total_time_limit))

    def results(self) -> Iterator[TestResult]:
        kinds = {"stdin": self._scripts, "call": self._calls, "assert": self._asserts}
        return kinds[self._tests.type]()

    def _enough(self, result: TestResult) -> bool:
        return self._stop_early and not result.passed

    def _scripts(self) -> Iterator[TestResult]:
        box, limits = self._box, self._limits
        job: dict[str, Any] = {"mode": "script", "preamble": self._tests.preamble, "source": self._program}
        if self._language == "cpp":
            failure = _compile(box, self._program)
            if failure:
                yield failure
                return
            job = {"mode": "program", "argv": [f"{box.folder}/main"]}
        for case in self._tests.cases:
            if exceeded := limits.budget.exceeded:
                yield TestResult("timeout", exceeded)
                return
            limits = replace(limits, output_bytes=max(limits.output_bytes, 4 * len(case.output)))
            try:
                with Running(box, job, limits) as running:
                    running.feed(case.input.encode(errors="surrogatepass"), last=True)
                    ended = running.wait()
                result = self._grade_output(ended, case)
            except Stopped as stopped:
                result = TestResult(_REASONS[stopped.reason], stopped.detail)
            yield result
            if box.closed or self._enough(result):
                return

    def _grade_output(self, ended: Ended, case: Case) -> TestResult:
        if ended.status != 0:
            return _crash(ended)
        output = ended.stdout.decode(errors="replace")
        if self._tests.checker is not None:
            right, why = self._check(self._tests.checker, case.input, output, case.output)
        else:
            right, why = same_output(output, case.output, self._tests.tolerance), ""
        if right:
            return PASSED
        return TestResult("wrong output" if output.strip() else "no output", why or shorten(output))

    def _calls(self) -> Iterator[TestResult]:
        with ExitStack() as stack:
            try:
                size = 16 * sum(_length(case.output) for case in self._tests.cases)  # tuples take the most characters
                limits = replace(self._limits, output_bytes=max(self._limits.output_bytes, size))
                server = stack.enter_context(_serve(self._box, self._program, self._tests, limits))
            except _Failed as failed:
                yield failed.result
                return
            for case in self._tests.cases:
                positional, keywords = ([], case.input) if isinstance(case.input, dict) else (case.input, {})
                server.renew()
                try:
                    reply = server.ask("call", plain.dumps([self._tests.entry_point, list(positional), keywords]))
                except _Failed as failed:
                    yield failed.result
                    return
                result = self._grade_value(reply, case)
                yield result
                if self._enough(result):
                    return

    def _grade_value(self, reply: bytes, case: Case) -> TestResult:
        outcome, _, text = reply.partition(b" ")
        if outcome != b"value":
            return _error(*_read_error(text))
        why = ""
        try:
            got = plain.loads(text)
            if self._tests.checker is not None:
                right, why = self._check(self._tests.checker, case.input, got, case.output)
            else:
                right = any(same_value(got, wanted, self._tests.tolerance) for wanted in self._tests.right_values(case))
        except plain.NotPlainError as error:
            return TestResult("wrong output", str(error))
        return PASSED if right else TestResult("wrong output", why) if why else wrong_value(got)

    def _check(self, checker: str, given: Any, got: Any, wanted: Any) -> tuple[bool, str]:
        """The checker's decision, and why there is none: the output was too much for it, or of a form it cannot read.

        Raises ValueError if it does not load or decides nothing: it is part of the tests, not of the submission.
        """
        tests = Tests(type="call", entry_point="check", cases=[Case(input=[], output=True)])
        try:
            with self._checkers.box() as box, _serve(box, checker, tests, self._checking) as server:
                try:
                    reply = server.ask("call", plain.dumps(["check", [given, got, wanted], {}]))
                except _Failed as failed:
                    return False, f"the checker: {failed.result.detail}"
        except _Failed as failed:
            raise ValueError(f"the checker failed to start: {failed.result.detail}") from None
        outcome, _, text = reply.partition(b" ")
        if outcome != b"value":
            name, message = _read_error(text)
            return False, f"the checker raised {shorten(name)}: {shorten(message)}"
        if text not in (b"true", b"false"):
            raise ValueError(f"the checker returned {text[:100].decode()}. It must return True or False.")
        return text == b"true", ""

    def _asserts(self) -> Iterator[TestResult]:
        """The asserts run in a box of their own; each call they make travels to the submission's box and back."""
        tests = self._tests
        job = {"mode": "check", "reference": tests.reference, "setup": tests.setup, "stop_early": self._stop_early}
        job |= {"names": tests.names(), "modules": tests.modules(), "tests": list(tests.asserts)}
        job |= {"entry_point": tests.entry_point, "classes": tests.classes()}
        # Asserts may handle values of any size; they are parsed in the checker's box.
        limits = replace(self._limits, output_bytes=64 << 20)
        trusted = replace(limits, memory_mb=2048, budget=self._checking.budget)
        with ExitStack() as stack:
            try:
                server = stack.enter_context(_serve(self._box, self._program, tests, limits))
            except _Failed as failed:
                yield failed.result
                return
            checker = stack.enter_context(self._checkers.box())
            check = stack.enter_context(Running(checker, job, trusted, periods=len(tests) + 1))
            try:
                yield from _mediate(check, server)
                check.finish()
            except _Failed as failed:
                yield failed.result
            except Stopped as stopped:  # the asserts themselves: they compute with what the submission returned
                yield TestResult(_REASONS[stopped.reason], stopped.detail)


class _Failed(Exception):  # noqa: N818
    """The submission's process has ended."""

    def __init__(self, result: TestResult) -> None:
        self.result = result


class _Server:
    """A submission that answers calls."""

    def __init__(self, running: Running, nonces: Iterator[str]) -> None:
        self._running, self._nonces = running, nonces
        self.renew = running.renew

    def ask(self, operation: str, arguments: str) -> bytes:
        """The reply to one request (format: inside/modes.py), without the nonce. Raises _Failed if none comes."""
        nonce = next(self._nonces)
        request = {"nonce": nonce, "operation": operation, "arguments": arguments}
        self._running.feed(json.dumps(request).encode() + b"\n")
        return self.expect(f"{nonce} ".encode())

    def expect(self, beginning: bytes) -> bytes:
        """The next line, without the given beginning."""
        try:
            line = self._running.line()
            if line is None:
                ended = self._running.wait()
                raise _Failed(_crash(ended) if ended.status else TestResult("no output", "exited before the test"))
        except Stopped as stopped:
            raise _Failed(TestResult(_REASONS[stopped.reason], stopped.detail)) from None
        if not line.startswith(beginning):
            raise _Failed(TestResult("wrong output", "wrote to the result channel"))
        return line[len(beginning) :]


@contextmanager
def _serve(box: Box, program: str, tests: Tests, limits: Limits) -> Iterator[_Server]:
    job = {"mode": "serve", "preamble": tests.preamble, "source": program, "classes": tests.classes()}
    with Running(box, job, limits, periods=len(tests) + 1) as running:
        server = _Server(running, iter(lambda: secrets.token_hex(8), ""))
        server.expect(b"ready")
        yield server
        with suppress(Stopped):
            running.finish()


def _mediate(check: Running, server: _Server) -> Iterator[TestResult]:
    """Relay requests and replies between the asserts and the submission."""
    while (line := check.line()) is not None:
        message = json.loads(line)
        if "operation" in message:
            check.feed(server.ask(message["operation"], message["arguments"]) + b"\n")
        elif "begin" in message:
            server.renew()
            check.renew()
        elif "test" in message:
            if "error" not in message:
                yield PASSED
            elif message["error"] == "AssertionError":
                yield TestResult("wrong output", shorten(message["message"]))
            else:
                yield _error(message["error"], message["message"])
        else:
            assert message["done"]
            return
    ended = check.wait()
    raise _Failed(TestResult("crashed", f"test setup failed: {_last_line(ended.stderr)}"))


def _compile(box: Box, program: str) -> TestResult | None:
    argv = [shutil.which("g++") or "g++", "-x", "c++", "-std=c++17", "-O2", "-o", f"{box.folder}/main", "-"]
    try:
        with Running(box, {"mode": "compile", "argv": argv}, _COMPILING) as running:
            running.feed(program.encode(errors="replace"), last=True)
            ended = running.wait()
    except Stopped as stopped:
        return TestResult(_REASONS[stopped.reason], f"compiling: {stopped.detail}")
    errors = [line for line in ended.stderr.splitlines() if "error" in line]
    if ended.status == 0:
        return None
    return TestResult("crashed", f"compilation failed: {shorten(errors[0] if errors else '')}")


def _crash(ended: Ended) -> TestResult:
    last = _last_line(ended.stderr)
    if ended.status == -24:  # SIGXCPU
        return TestResult("timeout", "out of CPU time")
    if "MemoryError" in last or "bad_alloc" in ended.stderr:
        return TestResult("memory", last)
    return TestResult("crashed", last or f"status {ended.status}")


def _read_error(text: bytes) -> tuple[str, str]:
    """Name and message of the exception."""
    try:
        name, message = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return "an error", "that cannot be read"
    return name, message


def _error(name: str, message: str) -> TestResult:
    return TestResult("memory" if name == "MemoryError" else "crashed", f"{shorten(name)}: {shorten(message)}")


def _length(value: Any) -> int:
    try:
        return len(repr(value))
    except ValueError:  # an integer with more digits than Python prints
        return 0


def _last_line(text: str) -> str:
    lines: Sequence[str] = text.strip().splitlines()
    return shorten(lines[-1]) if lines else ""
