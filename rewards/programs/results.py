"""Results of running tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Reason = Literal[
    "passed",
    "wrong output",
    "no output",
    "crashed",
    "timeout",
    "memory",
    "not run",  # the submission ended in an earlier test
    "no code",
]


@dataclass(frozen=True, slots=True)
class TestResult:
    """TestResult("crashed", "ZeroDivisionError: division by zero")."""

    reason: Reason
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.reason == "passed"


def wrong_value(value: object) -> TestResult:
    try:
        return TestResult("wrong output", shorten(repr(value)))
    except ValueError:  # an integer with more digits than Python prints
        return TestResult("wrong output", f"a {type(value).__name__} containing a number of more than 4300 digits")


def shorten(text: object) -> str:
    """At most 200 printable characters; "" for anything but text."""
    if not isinstance(text, str):
        return ""
    short = text if len(text) <= 200 else f"{text[:200]}…"
    return short.encode(errors="replace").decode()


PASSED = TestResult("passed")
NOT_RUN = TestResult("not run")


@dataclass(frozen=True, slots=True)
class CodeResult:
    """One completion's test results.

    CodeResult([TestResult("passed"), TestResult("timeout", "more than 5 s of CPU time")])
    """

    results: Sequence[TestResult]  # one per test; empty if the completion has no code

    @property
    def passed(self) -> bool:
        return bool(self.results) and all(result.passed for result in self.results)

    @property
    def fraction(self) -> float:
        """Share of tests passed, 0 to 1."""
        return sum(result.passed for result in self.results) / len(self.results) if self.results else 0.0

    @property
    def first_failure(self) -> TestResult:
        """The first test that failed; TestResult("passed") if none did."""
        return next((result for result in self.results if not result.passed), PASSED) if self.results else NO_CODE

    @property
    def reason(self) -> Reason:
        return self.first_failure.reason


NO_CODE = TestResult("no code")
