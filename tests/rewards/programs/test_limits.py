"""Limits of the code reward: what a submission may use in all, limits that are none, and boxes that stay warm."""

import pytest

from rewards import code
from rewards.programs.code import run_tests
from rewards.programs.datasets import mbpp_tests, read_tests
from rewards.programs.sandbox import pool
from rewards.runner.load import run_check

CALLS = {"type": "call", "entry_point": "f", "cases": [{"input": [i], "output": i} for i in range(5)]}
LINES = {"type": "stdin", "cases": [{"input": str(i), "output": str(i)} for i in range(5)]}
ASSERTS = {"type": "assert", "tests": [f"assert f({i}) == {i}" for i in range(5)]}
SLOW = """
import time
def f(x):
    end = time.process_time() + 0.25
    while time.process_time() < end: pass
    return x
"""


@pytest.mark.parametrize(
    ("source", "tests"),
    [(f"{SLOW}print(f(input()))", LINES), (SLOW, CALLS), (SLOW, ASSERTS)],
    ids=["stdin", "call", "assert"],
)
def test_all_tests_together_have_a_limit(source, tests):
    result = run_tests([source], [tests], code_in="text", time_limit=0.45, total_time_limit=0.65)[0]
    assert [test.reason for test in result.results] == ["passed", "passed", "timeout", "not run", "not run"]
    assert result.first_failure.detail == "more than 0.65 s in all tests together"


def test_programs_too_short_to_be_watched_count_too():
    tests = {**LINES, "cases": LINES["cases"] * 20, "time_limit": 0.05, "total_time_limit": 0.1}
    result = run_tests(["for _ in range(100_000): pass\nprint(input())"], [tests], code_in="text")[0]
    assert (result.results[0].reason, result.reason) == ("passed", "timeout")


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        ({"time_limit": 0}, "time_limit=0 is not a finite number above 0"),
        ({"time_limit": -1}, "time_limit=-1 is not a finite number above 0"),
        ({"time_limit": "5"}, "time_limit='5' is not a finite number above 0"),
        ({"total_time_limit": float("inf")}, "total_time_limit=inf is not a finite number above 0"),
        ({"memory_mb": 0}, "memory_mb=0 is not a whole number above 0"),
        ({"memory_mb": 0.5}, "memory_mb=0.5 is not a whole number above 0"),
    ],
)
def test_limits_that_are_none_are_errors_at_start(limits, error):
    with pytest.raises(ValueError, match=error):
        run_check(code, {"tests": LINES}, limits)
    with pytest.raises(ValueError, match=error):
        code(["q"], ["```python\nprint(3)\n```"], [LINES], **limits)
    with pytest.raises(ValueError, match=error):
        read_tests(LINES | limits)
    assert error in (run_check(code, {"tests": LINES | limits}, {}) or "")


def test_a_negative_tolerance_is_an_error():
    for tolerance in (-1, "0.1"):
        with pytest.raises(ValueError, match=f"tolerance={tolerance!r} is not a number of at least 0"):
            read_tests(LINES | {"tolerance": tolerance})


def test_a_program_that_fails_early_leaves_its_boxes_warm():
    level = pool.pool().level
    pools = [pool.pool(), pool.pool(level, allow_unsandboxed=True, role="checkers")]
    several = mbpp_tests(["assert f(1) == 2", "import time\ntime.sleep(9)"])
    for tests in (CALLS, several):
        run_tests(["def f(x): return 7"], [tests], code_in="text", stop_early=True)
        started = [one.started for one in pools]
        for _ in range(3):
            result = run_tests(["def f(x): return 7"], [tests], code_in="text", stop_early=True)[0]
            assert [test.reason for test in result.results][:2] == ["wrong output", "not run"]
        assert [one.started for one in pools] == started


def test_a_program_that_ends_its_sandbox_fails():
    """Here without one; in a sandbox it would need a hole in the kernel."""
    ends = "import os\nos.kill(os.getppid(), 9)"
    results = run_tests([ends, "print(input())"], [LINES] * 2, code_in="text", isolation="none", allow_unsandboxed=True)
    assert [result.reason for result in results] == ["crashed", "passed"]
    assert results[0].first_failure.detail == "a sandbox of level 'none' died during a run"


def test_a_process_may_have_a_name_that_is_not_text():
    source = "import ctypes, time\nctypes.CDLL(None).prctl(15, b'\\xff', 0, 0, 0)\ntime.sleep(0.3)\nprint(input())"
    assert run_tests([source], [LINES], code_in="text")[0].passed
