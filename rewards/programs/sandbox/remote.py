"""Sandboxes behind HTTP: the same results from a service that runs one program per request.

    remote_backend("piston+http://localhost:2000")          POST /api/v2/execute
    remote_backend("sandboxfusion+http://localhost:8080")   POST /run_code

A request carries a program and its input, the response its output; expected outputs never leave this process. For call
tests, a short driver around the submission reads all calls from stdin and prints the results, each line marked with a
nonce. Not supported: assert tests, which need a dialogue; session-based services (E2B).
"""

import json
import math
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from rewards.programs.cases import Case, Language, Tests
from rewards.programs.compare import same_output, same_value
from rewards.programs.results import NOT_RUN, PASSED, Reason, TestResult, wrong_value
from rewards.programs.sandbox.inside import plain, script
from rewards.programs.sandbox.limits import SandboxError
from rollout.support.http import RequestFailedError, request_json

_RETRIES = 4
_CALLER = """
import sys, types as _types
_plain = _types.ModuleType("plain")
exec({plain!r}, _plain.__dict__)
def _run():
    import json
    real, sys.stdout = sys.stdout, open("/dev/null", "w")
    module = sys.modules["submission"] = _types.ModuleType("submission")
    namespace = module.__dict__
    for part in ({preamble!r}, {source!r}):
        exec(compile(part, "main.py", "exec", dont_inherit=True), namespace)
    for line in sys.stdin:
        name, positional, keywords = _plain.loads(line)
        try:
            owner, _, method = name.rpartition(".")
            kind = namespace.get(owner or "Solution")
            function = getattr(kind(), method) if hasattr(kind, method) else namespace[name]
            reply = {{"value": _plain.dumps(function(*positional, **keywords))}}
        except BaseException as error:
            reply = {{"error": type(error).__name__, "message": str(error)[:300]}}
        print({nonce!r} + json.dumps(reply), file=real, flush=True)
_run()
"""
# Compiled apart: a program may begin with `from __future__ import` or a byte order mark.
_AFTER_PREAMBLE = """
for _part in ({preamble!r}, {source!r}):
    exec(compile(_part, "main.py", "exec", dont_inherit=True))
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A service's report on one run: Outcome("3\\n", "", failed=None)."""

    stdout: str
    stderr: str
    failed: Reason | None  # "timeout", "memory", "crashed"


def remote_backend(address: str) -> "RemoteBackend":
    """The client for piston+URL or sandboxfusion+URL."""
    kind, _, url = address.partition("+")
    if kind not in _SERVICES or not url.startswith(("http://", "https://")):
        raise ValueError(
            f"backend {address!r} is neither 'local' nor a remote sandbox such as piston+http://localhost:2000 or "
            f"sandboxfusion+http://localhost:8080. Services: {', '.join(_SERVICES)}."
        )
    return RemoteBackend(_SERVICES[kind](url.rstrip("/")))


class Service(ABC):
    """One kind of API."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client()

    @abstractmethod
    def execute(self, source: str, stdin: str, language: Language, time_limit: float, memory_mb: int) -> Outcome:
        """Run a program once. SandboxError when the service cannot."""

    def _post(self, path: str, body: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Send JSON, get JSON. Busy and broken connections are tried again, after 0.5, 1 and 2 s; then SandboxError."""
        try:
            return request_json(
                self._client,
                "POST",
                self.url + path,
                body=body,
                timeout=timeout,
                attempts=_RETRIES,
                first_wait=0.5,
                retried_statuses={429, *range(500, 600)},
            )
        except RequestFailedError as error:
            raise SandboxError(f"{error}. Is the service up, and not overloaded?") from error


class RemoteBackend:
    """Runs stdin and call tests at a service. Its time limits are wall time, as services measure it."""

    concurrency = 8

    def __init__(self, service: Service) -> None:
        self._service = service

    def unsupported(self, tests: Tests, language: Language) -> str | None:
        """Why these tests cannot run there; None if they can."""
        if tests.type == "assert" or tests.checker is not None:
            return "assert tests and checkers need backend 'local': a remote run cannot talk to a check"
        if language != "python" and tests.type != "stdin":
            return f"{tests.type} tests need language 'python'; {language!r} supports stdin tests only"
        return None

    def run(self, program: str, tests: Tests, language: Language, *, stop_early: bool) -> list[TestResult]:
        one_by_one = self._calls(program, tests) if tests.type == "call" else self._scripts(program, tests, language)
        found: list[TestResult] = []
        for result in one_by_one:
            found.append(result)
            if stop_early and not result.passed:
                break
        return found + [NOT_RUN] * (len(tests) - len(found))

    def _scripts(self, program: str, tests: Tests, language: Language) -> Iterator[TestResult]:
        source = program
        if tests.preamble and language == "python":
            source = _AFTER_PREAMBLE.format(preamble=tests.preamble, source=script.encode(program))
        for case in tests.cases:
            outcome = self._execute(source, case.input, language, tests)
            if outcome.failed:
                yield TestResult(outcome.failed, outcome.stderr.strip()[-200:])
            elif same_output(outcome.stdout, case.output, tests.tolerance):
                yield PASSED
            else:
                yield TestResult("wrong output" if outcome.stdout.strip() else "no output", outcome.stdout[:200])

    def _calls(self, program: str, tests: Tests) -> Iterator[TestResult]:
        nonce = secrets.token_hex(8)
        source = _CALLER.format(
            plain=Path(plain.__file__).read_text(encoding="utf-8"),
            preamble=tests.preamble,
            source=script.encode(program),
            nonce=nonce,
        )
        calls = [
            plain.dumps(
                [tests.entry_point, [], c.input]
                if isinstance(c.input, dict)
                else [tests.entry_point, list(c.input), {}]
            )
            for c in tests.cases
        ]
        outcome = self._execute(source, "\n".join(calls) + "\n", "python", tests)
        replies = [line.removeprefix(nonce) for line in outcome.stdout.splitlines() if line.startswith(nonce)]
        for case, reply in zip(tests.cases, replies, strict=False):
            yield _grade_value(reply, case, tests)
        if len(replies) < len(tests.cases):
            yield TestResult(outcome.failed or "no output", outcome.stderr.strip()[-200:])

    def _execute(self, source: str, stdin: str, language: Language, tests: Tests) -> Outcome:
        assert tests.time_limit and tests.total_time_limit and tests.memory_mb
        time_limit = tests.time_limit
        if tests.type == "call":  # all of them
            time_limit = min(time_limit * len(tests), tests.total_time_limit)
        return self._service.execute(source, stdin, language, time_limit, tests.memory_mb)


def _grade_value(reply: str, case: Case, tests: Tests) -> TestResult:
    try:
        message = json.loads(reply)
        if "error" in message:
            reason = "memory" if message["error"] == "MemoryError" else "crashed"
            return TestResult(reason, f"{message['error']}: {message['message']}")
        got = plain.loads(message["value"])
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        return TestResult("wrong output", f"not a plain value: {error}"[:200])
    right = any(same_value(got, wanted, tests.tolerance) for wanted in tests.right_values(case))
    return PASSED if right else wrong_value(got)


class Piston(Service):
    """https://github.com/engineer-man/piston: times in ms, memory in bytes, `signal` SIGKILL beyond a limit."""

    def execute(self, source: str, stdin: str, language: Language, time_limit: float, memory_mb: int) -> Outcome:
        request = {
            "language": {"python": "python", "cpp": "c++"}[language],
            "version": "*",
            "files": [{"name": {"python": "main.py", "cpp": "main.cpp"}[language], "content": source}],
            "stdin": stdin,
            "compile_timeout": 30_000,
            "run_timeout": math.ceil(time_limit * 1000),
            "run_memory_limit": memory_mb << 20,
        }
        answer = self._post("/api/v2/execute", request, time_limit + 40)
        compiled = answer.get("compile") or {}
        if compiled.get("code", 0) != 0:
            return Outcome("", f"compilation failed: {compiled.get('stderr', '')}", "crashed")
        run = answer["run"]
        return Outcome(
            run["stdout"], run["stderr"], _failure(run["code"], run.get("signal"), run.get("status"), run["stderr"])
        )


def _failure(code: int | None, signal: str | None, status: str | None, stderr: str) -> Reason | None:
    if code == 0 and not signal:
        return None
    if "MemoryError" in stderr or "bad_alloc" in stderr:
        return "memory"
    return "timeout" if signal == "SIGKILL" or status == "TO" else "crashed"


class SandboxFusion(Service):
    """https://github.com/bytedance/SandboxFusion: times in seconds, statuses by name."""

    def execute(self, source: str, stdin: str, language: Language, time_limit: float, memory_mb: int) -> Outcome:
        request = {
            "code": source,
            "language": language,
            "stdin": stdin,
            "compile_timeout": 30,
            "run_timeout": time_limit,
            "memory_limit_MB": memory_mb,
        }
        answer = self._post("/run_code", request, time_limit + 40)
        if answer["status"] == "SandboxError":
            raise SandboxError(f"{self.url} failed: {answer.get('message')}")
        run = answer.get("run_result")
        if run is None:
            return Outcome(
                "", f"compilation failed: {(answer.get('compile_result') or {}).get('stderr', '')}", "crashed"
            )
        stdout, stderr = run.get("stdout") or "", run.get("stderr") or ""
        if run["status"] == "TimeLimitExceeded":
            return Outcome(stdout, stderr, "timeout")
        return Outcome(stdout, stderr, _failure(run.get("return_code"), None, None, stderr))


_SERVICES: Mapping[str, type[Service]] = {"piston": Piston, "sandboxfusion": SandboxFusion}
