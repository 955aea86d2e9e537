"""The code reward: which program is run, what passes, and what cannot be forged."""

import json
import threading

import pytest

from rewards import code
from rewards.programs.cases import program_in
from rewards.programs.code import run_tests
from rewards.programs.datasets import humaneval_tests, mbpp_tests, read_tests
from rewards.programs.sandbox.limits import Limits
from rewards.runner.load import run_check

ADD = {"type": "call", "entry_point": "f", "cases": [{"input": [1], "output": 2}, {"input": [5], "output": 6}]}
LINES_OF_ONE = {"type": "call", "entry_point": "f", "cases": [{"input": [1], "output": 2}]}
LINES = {"type": "stdin", "cases": [{"input": "4\n1 2\n", "output": "YES\n1\n2\n3\n"}]}


def block(source, language="python"):
    return f"```{language}\n{source}\n```"


def reason(source, tests, **options):
    return run_tests([source], [tests], code_in="text", **{"time_limit": 1.0, "memory_mb": 256} | options)[0].reason


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```python\nx = 1\n```\n```python\nx = 2\n```", "x = 2\n"),
        ("```py\nx = 1\n```\nIt prints\n```\n1\n```", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```json\n{}\n```", None),
        ("<think>\n```python\nx = 1\n```\n</think>\nI am done.", None),
        ("<think>\n```python\nx = 1\n```", None),
        ("<think>hm</think><answer>\n```python\nx = 1\n```\n</answer>", "x = 1\n"),
        ("```python\nx = 1\n```\n```python\nx = 2", None),
        ("1. So:\n   ```python\n   if x:\n       y\n   ```", "if x:\n    y\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("x = 1", None),
        ("", None),
        ("<answer>```python\nx = 1\n```</answer>", "x = 1\n"),
        ("<answer>```\nx = 1\n```</answer>", "x = 1\n"),
        ("<answer>\n```python\nx = 1\n```</answer>", "x = 1\n"),
        ("<answer>```python\nx = 1\n```</answer>\nFor example:\n```python\nx = 2\n```", "x = 1\n"),
        ("```python\nx = 1\n```\n<answer>as above</answer>", "x = 1\n"),
        ("```python\nx = 1\n```\n<answer>```python\nx = 2</answer>", None),
        ("<answer>```python\nx = '<answer>'\n```</answer>", "x = '<answer>'\n"),
        ("**Solution:** ```python\nx = 1\n```", "x = 1\n"),
        ("- ```python\n  if x:\n      y\n  ```", "if x:\n    y\n"),
        ("**Output:** ```json\n{}\n```\n```\nx = 1\n```", "x = 1\n"),
        ("Blocks begin with ```\n```python\nx = 1\n```", "x = 1\n"),
    ],
)
def test_the_last_closed_block_after_thinking_is_the_program(completion, expected):
    assert program_in(completion, "python") == expected


def test_a_plain_call_scores_strings_and_messages():
    completions = [block("def f(x):\n    return x + 1"), block("def f(x):\n    return 2"), "no code"]
    assert code(["q"] * 3, completions, [ADD] * 3) == [1.0, 0.0, 0.0]
    messages = [[{"role": "assistant", "content": text}] for text in completions]
    assert code(["q"] * 3, messages, [json.dumps(ADD)] * 3, scoring="fraction") == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("source", "tests", "expected"),
    [
        ("class Solution:\n    def f(self, x):\n        return x + 1", ADD, "passed"),
        ("def f(x):\n    print('noise')\n    return x + 1", ADD, "passed"),
        ("def f(x): return float(x + 1)", ADD, "wrong output"),
        ("def f(x): return True", {**ADD, "cases": [{"input": [1], "output": 1}]}, "wrong output"),
        ("def f(x): return (1, 2)", {**ADD, "cases": [{"input": [1], "output": [1, 2]}]}, "passed"),
        ("def f(x): return float('nan')", {**ADD, "cases": [{"input": [1], "output": float("nan")}]}, "wrong output"),
        ("def f(x): return 10 ** 5000", ADD, "wrong output"),
        ("def f(x): return object()", ADD, "wrong output"),
        ("def f(x): return x / 0", ADD, "crashed"),
        ("def f(x): return", ADD, "wrong output"),
        ("def g(x): return x + 1", ADD, "crashed"),
        ("def f(x): return x +", ADD, "crashed"),
        ("def f(a, b): return a - b", {**ADD, "cases": [{"input": {"b": 1, "a": 3}, "output": 2}]}, "passed"),
        ("def f(x): return 0.1 + 0.2", {**ADD, "tolerance": 1e-6, "cases": [{"input": [1], "output": 0.3}]}, "passed"),
        ("print('YES\\n1\\n2 \\n3')", LINES, "passed"),
        ("print('YES')", LINES, "wrong output"),
        ("print('YES\\n1\\n2\\n3\\ngarbage')", LINES, "wrong output"),
        ("print('ALL TESTS PASSED')", LINES, "wrong output"),
        ("pass", LINES, "no output"),
        ("print('YES\\n1\\n2\\n3'); 1/0", LINES, "crashed"),
        ("if __name__ == '__main__': print('YES\\n1\\n2\\n3')", LINES, "passed"),
        ("import sys\nsys.stdin.buffer.readline(); print('YES\\n1\\n2\\n3')", LINES, "passed"),
        ("assert open(0).read() == '4\\n1 2\\n'; print('YES\\n1\\n2\\n3')", LINES, "passed"),
        ("import os\nassert os.read(0, 9) == b'4\\n1 2\\n'; print('YES\\n1\\n2\\n3')", LINES, "passed"),
        ("import atexit\natexit.register(print, 'YES\\n1\\n2\\n3')", LINES, "passed"),
        ("import sys\nprint('YES\\n1\\n2\\n3')\nsys.exit()", LINES, "passed"),
    ],
)  # fmt: skip
def test_each_failure_has_its_reason(source, tests, expected):
    assert reason(source, tests) == expected


FORGERIES = {
    "exit": "raise SystemExit(0)",
    "hard exit": "import os\nos._exit(0)",
    "exit in the call": "import os\ndef f(x): os._exit(0)",
    "always equal": "class A(int):\n    __eq__ = lambda s, o: True\n    __hash__ = int.__hash__\ndef f(x): return A(0)",
    "always equal object": "class A:\n    __eq__ = lambda s, o: True\ndef f(x): return A()",
    "equal list": "class A(list):\n    __eq__ = lambda s, o: True\ndef f(x): return A([0])",
    "patched builtins": "import builtins\nbuiltins.all = builtins.any = lambda *a: True\ndef f(x): return 0",
    "patched json": "import json\njson.loads = json.dumps = lambda *a, **k: '2'\ndef f(x): return 0",
    "frames": "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n        for value in list("
    "frame.f_locals.values()):\n            if type(value) is dict and 'output' in str(value): return value['output']\n"
    "        frame = frame.f_back\n    return 0",
    "garbage": "import gc\ndef f(x):\n    for o in gc.get_objects():\n        if isinstance(o, dict) and 'output' in o"
    ": return o['output']\n    return 0",
    "speaking first": "import os\nfor fd in range(3, 20):\n    try: os.write(fd, b'ready\\n'"
    " + b'0 value 2\\n' * 9)\n    except OSError: pass\ndef f(x): return 0",
    "dead channel": "import os\nos.closerange(3, 64)\ndef f(x): return 2",
    "deep value": "def f(x):\n    a = []\n    for _ in range(100000): a = [a]\n    return a",
    "colliding keys": "def f(x): return {i * (2**61 - 1) for i in range(11000)}",
    "odd errors": "import os\nclass E(Exception):\n    def __str__(self): return '\\ud800' * 999\ndef f(x): raise E",
    "huge value": "def f(x): return 'a' * ((1 << 26) + 1)",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_only_correct_values_pass(name):
    assert reason(FORGERIES[name], ADD) in ("wrong output", "no output", "crashed", "timeout", "memory")
    for tests in (mbpp_tests(["assert f(1) == 2", "assert f(5) == 6"]), mbpp_tests(["assert f(1) == 2 and f(5)"])):
        assert reason(FORGERIES[name], tests) in ("wrong output", "no output", "crashed", "timeout", "memory")


def test_asserts_run_apart_from_the_submission():
    prompt = "def helper(x):\n    return x * 2\n\ndef f(x):\n    '''Doubles.'''\n"
    check = "def check(candidate):\n    for i in range(3):\n        assert candidate(i) == helper(i)\n"
    tests = humaneval_tests(prompt, check, "f")
    assert reason("def f(x): return 2 * x", tests) == "passed"
    assert reason("def f(x): return helper(x)", tests) == "passed"
    assert reason("def helper(x): return 0\ndef f(x): return 0", tests) == "wrong output"
    near = mbpp_tests(["import math", "assert abs(f(2) - math.sqrt(2)) < 1e-6", "assert f((1, 2)) == {(1, 2): 'a'}"])
    source = "def f(x):\n    return 1.41421356 if x == 2 else {x: 'a'}"
    assert run_tests([source], [near], code_in="text")[0].fraction == 1.0
    assert reason("def f(x): return float('nan')", near) == "wrong output"


def test_a_submissions_names_and_errors_cannot_replace_a_test():
    helper = "def check(f):\n    assert is_same_list(f(n=1), [2]) and f(n=1) < inf\ncheck(Solution().f)"
    forged = "def is_same_list(*a): return True\nclass Solution:\n    def f(self, n): return 1"
    assert reason(forged, {"functional": helper}) == "crashed"
    assert reason(forged, {"functional": helper.replace("is_same_list(f(n=1), [2])", "f(n=1) == 1")}) == "passed"
    mapped = mbpp_tests(["assert all(map(lambda case: f(case) == case, [1, 2]))"])
    assert reason("def f(x): raise StopIteration", mapped) == "crashed"
    assert reason("def f(x): return x", mapped) == "passed"
    array = "class A: __array_interface__ = {'shape': (1,), 'typestr': '<f8', 'version': 3, 'data': %s}\n"
    near = mbpp_tests(["import numpy\nassert numpy.allclose(f(0), [0.0])"])
    for data in ("(4096, True)", "bytes(8)"):
        assert (
            "TypeError"
            in run_tests([array % data + "def f(x): return A()"], [near], code_in="text")[0].first_failure.detail
        )


PREAMBLE = """from dataclasses import dataclass
from typing import Optional

@dataclass
class Node:
    val: int
    next: "Optional[Node]" = None

    @property
    def total(self):
        return self.val + (self.next.total if self.next else 0)

@dataclass(slots=True)
class Slotted:
    val: int
"""


@pytest.mark.parametrize(
    ("source", "check", "expected"),
    [
        ("def f(n): return Node(3, n)", "f(Node(1)) == Node(3, Node(1)) and f(Node(1)).total == 4", "passed"),
        ("def f(n): n.__dict__['total'] = 4; return n", "f(Node(1)).total == 4", "wrong output"),
        ("def f(n): n.__dict__['__eq__'] = bool; return n", "f(Node(1)) == Node(2)", "crashed"),
        ("def f(n): return Slotted(n)", "f(1).val == 1 and f(1) != Slotted(1)", "passed"),
    ],
)
def test_dataclasses_of_the_preamble_cross_the_process_boundary(source, check, expected):
    tests = {"type": "assert", "entry_point": "f", "preamble": PREAMBLE, "reference": PREAMBLE}
    assert reason(source, {**tests, "tests": [f"assert {check}"]}) == expected


def test_a_submissions_objects_are_used_through_a_proxy():
    setup = "root = Node(1)\nroot.left = Node(2)"
    source = "class Node:\n    def __init__(s, v): s.v, s.left = v, None\n"
    source += "def total(n): return n.v + n.left.v\ndef numbers(): yield from (1, 2)"
    asserts = ["assert total(root) == 3", "assert list(numbers()) == [1, 2]", "assert root.left.v == 2"]
    assert reason(source, mbpp_tests(asserts, setup)) == "passed"


def test_a_proxy_contains_what_it_yields_whatever_it_claims():
    claims = "class A:\n    __contains__ = lambda s, x: True\n    __len__ = lambda s: 3\ndef f(x): return A()"
    assert reason(claims, mbpp_tests(["assert 5 in f(1)"])) == "crashed"
    assert reason(claims, mbpp_tests(["assert len(f(1)) == 3"])) == "crashed"
    assert reason("def f(x): yield from (4, 5)", mbpp_tests(["assert 5 in f(1)"])) == "passed"
    assert reason("def f(x): yield from (4, 5)", mbpp_tests(["assert 6 in f(1)"])) == "wrong output"


@pytest.mark.parametrize(
    ("tests", "source"),
    [
        ({"inputs": ["1 2\n"], "outputs": ["3\n"]}, "print(sum(map(int, input().split())))"),
        ({"inputs": [[1, 2], [3, 4]], "outputs": [[3], [7]], "fn_name": "add"}, "def add(a, b): return a + b"),
        ([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}], "print(sum(map(int, input().split())))"),
        (
            [{"input": "[1, 2]\n3", "output": "6", "testtype": "functional", "metadata": {"func_name": "add"}}],
            "class Solution:\n    def add(self, a: List[int], b: int): return sum(a) + b",
        ),
        (
            {"functional": "def check(f):\n    assert f(a=1) == 2\n\ncheck(Solution().add)"},
            "class Solution:\n    def add(self, a: Optional[int]): return a + 1",
        ),
    ],
)  # fmt: skip
def test_formats_of_public_datasets_are_read(tests, source):
    assert reason(source, tests) == "passed"
    assert reason(source, json.dumps(tests)) == "passed"


def test_columns_of_humaneval_mbpp_and_apps_need_no_tests_column():
    answer = [block("def f(x):\n    return x + 1")]
    assert code(["def f(x):\n"], answer, test=["def check(c):\n    assert c(1) == 2"], entry_point=["f"]) == [1.0]
    assert code(["q"], answer, test_list=[["assert f(1) == 2"]]) == [1.0]
    program = [block("print(int(input()) + 1)")]
    assert code(["q"], program, input_output=['{"inputs": ["1\\n"], "outputs": ["2\\n"]}']) == [1.0]
    with pytest.raises(ValueError, match="Map the dataset's own"):
        code(["q"], program, solution=["2"])


@pytest.mark.parametrize(
    "tests",
    [
        {"type": "stdin", "cases": []},
        {"type": "assert", "tests": []},
        {"type": "assert", "tests": ["assert f("]},
        {"inputs": [], "outputs": []},
        [],
        {"type": "shell", "cases": [{"input": "", "output": ""}]},
        {"type": "call", "cases": [{"input": [1], "output": 2}]},
        {"anything": 1},
        "not json",
        '"a string"',
        {"type": "stdin", "cases": [{"input": "", "output": ""}], "timeout": 1},
        {"type": "stdin", "cases": [{"input": ""}]},
        {"type": "assert", "tests": ["-" * 100_000 + "1"]},
        {"inputs": 1, "outputs": 2},
        [1],
        "eJxrYIpgZWBgiI42jI0tZNADABegAyA=",  # [[1]], packed
    ],
)
def test_missing_and_unknown_tests_are_errors(tests):
    with pytest.raises(ValueError):
        read_tests(tests)


def test_a_checker_decides_if_several_outputs_are_correct():
    checker = "def check(input, output, expected):\n    a, b = map(int, output.split())\n    return a + b == int(input)"
    tests = {"type": "stdin", "checker": checker, "cases": [{"input": "7", "output": ""}]}
    assert reason("print(3, 4)", tests) == "passed"
    assert reason("print(3, 5)", tests) == "wrong output"
    failure = run_tests(["print('no solution')"], [tests], code_in="text")[0].first_failure
    assert (failure.reason, failure.detail[:29]) == ("wrong output", "the checker raised ValueError")
    for broken in ("def check(input, output, expected): return 1", "def check(input, output, expected): pass"):
        with pytest.raises(ValueError, match="It must return True or False"):
            reason("print(3, 4)", tests | {"checker": broken})
    with pytest.raises(ValueError, match="the checker failed to start: NameError"):
        reason("print(3, 4)", tests | {"checker": "check = undefined"})


@pytest.mark.parametrize(
    ("checker", "fault"),
    [
        ("def check(input, output, expected): return output == expected", None),
        ("def check(input, output, expected): return int(output) > 0", "ValueError: invalid literal for int() with"),
        ("def check(input, output, expected): return 1", "1"),
        ("check = undefined", "NameError: name 'undefined' is not defined"),
    ],
)
def test_a_checker_that_refuses_the_expected_output_is_found_at_start(checker, fault):
    tests = {"type": "stdin", "checker": checker, "cases": [{"input": "7", "output": "3 4"}]}
    found = run_check(code, {"tests": tests}, {})
    assert (found or "").startswith(f"the checker does not accept the expected output: {fault}" if fault else "")
    assert run_check(code, {"tests": tests | {"cases": [{"input": "7", "output": ""}]}}, {}) is None


def test_a_returned_value_cannot_stall_a_checker(monkeypatch):
    monkeypatch.setattr("rewards.programs.sandbox.local._CHECKING", Limits(time_limit=0.3))
    tests = {**ADD, "checker": "def check(input, output, expected):\n    while output == 0: pass"}
    assert reason("def f(x): return 0", tests) == "wrong output"
    assert reason("def f(x): return 1 << 40", {**ADD, "checker": "def check(i, o, e): bytearray(o)"}) == "wrong output"
    assert reason("def f(x):\n    a = []\n    for _ in range(199): a = [a]\n    return a", tests) == "wrong output"
    with pytest.raises(ValueError, match=r"text that is not Python: 'def check\('"):
        reason("def f(x): return 0", {**ADD, "checker": "def check("})


def test_expected_values_bound_the_size_of_returned_ones():
    large = {**ADD, "cases": [{"input": [1], "output": [[1, 2]] * 100_000}]}
    assert reason("def f(x): return [(1, 2)] * 100_000", large) == "passed"
    result = run_tests(["def f(x): return [[]] * 500_000"], [ADD], code_in="text")[0]
    assert result.first_failure.detail == "more than 1048576 bytes of output"


def test_a_timeout_ends_the_submission_and_is_reported():
    tests = {"type": "call", "entry_point": "f", "cases": [{"input": [i], "output": i} for i in range(4)]}
    source = "def f(x):\n    while x == 1: pass\n    return x"
    result = run_tests([source], [tests], code_in="text", time_limit=0.3)[0]
    assert [test.reason for test in result.results] == ["passed", "timeout", "not run", "not run"]
    assert result.fraction == 0.25
    scripts = {"type": "stdin", "time_limit": 0.3, "cases": [{"input": str(i), "output": str(i)} for i in range(3)]}
    result = run_tests(["x = int(input())\nwhile x == 1: pass\nprint(x)"], [scripts], code_in="text")[0]
    assert [test.reason for test in result.results] == ["passed", "timeout", "not run"]


def test_running_out_of_memory_has_its_own_reason():
    assert reason("def f(x): return bytearray(1 << 40)", ADD) == "memory"
    assert reason("a = [bytearray(b'1' * (1 << 20)) for _ in range(900)]", LINES) == "memory"


def test_limits_hold_while_replies_come_fast():
    endless = "def f(x):\n    while True: yield x"
    assert reason(endless, mbpp_tests(["assert list(f(1)) == [1]"]), time_limit=0.3) == "timeout"


def test_cpp_is_compiled_and_run():
    tests = {"type": "stdin", "cases": [{"input": "1 2", "output": "3"}, {"input": "2 2", "output": "4"}]}
    source = "#include <iostream>\nint main() { long a, b; std::cin >> a >> b; std::cout << a + b << std::endl; }"
    assert code(["q"], [block(source, "cpp")], [tests], language="cpp") == [1.0]
    assert reason("int main() { retur 0; }", tests, language="cpp") == "crashed"
    assert reason("int main() { for (;;); }", tests, language="cpp", time_limit=0.3) == "timeout"


def test_scoring_works_from_any_thread():
    results = []
    source = block("import os\ndef f(x): return x + 1")

    def grade():
        results.append(code(["q"] * 8, [source] * 8, [ADD] * 8))

    threads = [threading.Thread(target=grade) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[1.0] * 8] * 3


def test_samples_and_metrics_report_why_programs_fail():
    logged = {}
    completions = [block("def f(x): return x + 1"), block("def f(x): return x"), "none", block("def f(x): 1 / 0")]
    code([""] * 4, completions, [LINES_OF_ONE] * 4, log_metric=logged.__setitem__, log_extra=logged.__setitem__)
    assert logged == {
        "code/no_code": 0.25,
        "code/timeout": 0.0,
        "code/verdict": [
            "passed",
            "wrong output: 1",
            "no code",
            "crashed: ZeroDivisionError: division by zero",
        ],
    }
