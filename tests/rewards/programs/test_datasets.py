"""Public datasets' tests, graded as their own harnesses do."""

import json

import pytest

from rewards.programs.cases import Case
from rewards.programs.code import run_tests
from rewards.programs.datasets import read_tests

WRAPPED = {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[1], [2]]}
LIST = {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[1], [2, 3]]}
KEYS = {"fn_name": "f", "inputs": [[{"1": 5}]], "outputs": [{"5": {"-6": 1}}]}
LINES = {"fn_name": "f", "inputs": ["[1, 2]\n3"], "outputs": ["[6]"]}
LONG = {"testtype": "functional", "input": "1", "output": "1" + "0" * 5000, "metadata": {"func_name": "f"}}


def reason(source, tests):
    return run_tests([source], [tests], code_in="text")[0].reason


@pytest.mark.parametrize(
    ("source", "tests", "expected"),
    [
        ("def f(x): return [x]", {"fn_name": "f", "inputs": [[2]], "outputs": [[2]]}, "passed"),
        ("def f(x): return [x]", WRAPPED, "passed"),
        ("def f(x): return x", WRAPPED, "passed"),
        ("def f(x): return [[x]]", WRAPPED, "wrong output"),
        ("def f(x): return [x] * 2", WRAPPED, "wrong output"),
        ("def f(x): return [1] if x == 1 else [2, 3]", LIST, "passed"),
        ("def f(x): return 1 if x == 1 else [2, 3]", LIST, "wrong output"),
        ("def f(x): return {x[1]: {-6: 1}}", KEYS, "passed"),
        ("def f(x): return {str(x[1]): {'-6': 1}}", KEYS, "passed"),
        ("def f(x): return {5.0: {-6: 1}}", KEYS, "wrong output"),
        ("def f(x): return {6: {-6: 1}}", KEYS, "wrong output"),
        ("def f(a, b): return [sum(a) + b]", LINES, "passed"),
        ("def f(a, b): return sum(a) + b", LINES, "wrong output"),
        ("def f(x): return 10**5000", [LONG], "passed"),
        ("def f(x): return 10**5000 + 1", [LONG], "wrong output"),
    ],
)
def test_functions_are_graded_by_value(source, tests, expected):
    assert reason(source, tests) == reason(source, json.dumps(tests)) == expected


def test_apps_arguments_regain_their_integer_keys():
    inputs = [[{"1": 2, "-3": {"4": 5}}, {"a": 1, "2": 3}, "7"], [{}, {"01": 1}, {}]]
    tests = read_tests({"fn_name": "f", "inputs": inputs, "outputs": [1, {"1": 2}]})
    assert tests.cases == [
        Case(input=[{1: 2, -3: {"4": 5}}, {"a": 1, "2": 3}, "7"], output=1),
        Case(input=[{}, {1: 1}, {}], output={"1": 2}),
    ]


@pytest.mark.parametrize("inputs", [[5], ["5 6"], [None]])
def test_arguments_that_are_no_list_are_refused(inputs):
    with pytest.raises(ValueError, match=r"Drop this problem|neither a dict nor JSON"):
        read_tests({"fn_name": "f", "inputs": inputs, "outputs": [1]})


def test_call_tests_need_arguments():
    with pytest.raises(ValueError, match="call tests need a list or dict of arguments"):
        read_tests({"type": "call", "entry_point": "f", "cases": [{"input": 1, "output": 2}]})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("print(10**40_000)", "passed"),
        ("print('\\n \\n', 10**40_000, '\\n\\n')", "passed"),
        ("print(10**40_000, '\\n\\n', 1)", "wrong output"),
        ("print(10**60_000)", "crashed"),
    ],
)
def test_livecodebench_prints_long_integers_and_strips_both_sides(source, expected):
    tests = [{"input": "", "output": "\n1" + "0" * 40_000, "testtype": "stdin"}]
    assert reason(source, tests) == expected
