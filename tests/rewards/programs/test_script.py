"""A stdin program runs as `python main.py` would run it; a program under other tests is imported."""

import os

import pytest

from rewards.programs.cases import program_in
from rewards.programs.code import run_tests
from rewards.programs.datasets import humaneval_tests, mbpp_tests
from rewards.programs.sandbox import isolation
from rewards.programs.sandbox.isolation import LEVELS

DEL = "class A:\n    def __init__(self, n): self.n = n\n    def __del__(self): print(self.n, word)\nword = 'x'\n"
AGAIN = "import os, sys\nif len(sys.argv) == 1: os.execv(sys.executable, [sys.executable, __file__, 'x'])\n"
FAST = """
import os, sys
from io import BytesIO, IOBase
class FastIO(IOBase):
    def __init__(self, file):
        self.fd, self.buffer, self.writable = file.fileno(), BytesIO(), "x" in file.mode or "r" not in file.mode
    def readline(self): return os.read(self.fd, 99)
    def flush(self):
        if self.writable: os.write(self.fd, self.buffer.getvalue()), self.buffer.truncate(0), self.buffer.seek(0)
sys.stdin, sys.stdout = FastIO(sys.stdin), FastIO(sys.stdout)
sys.stdout.write = lambda text: sys.stdout.buffer.write(text.encode())
print(int(sys.stdin.readline()) + 1)
"""
# Source, input, output: what `python main.py` prints.
PROGRAMS = {
    "stream modes": ("import sys; print(sys.stdin.mode, sys.stdout.mode, sys.stdin.name)", "", "r w <stdin>"),
    "stream errors": (
        "import sys; print(sys.stdin.errors, sys.stdout.errors)",
        "",
        "surrogateescape surrogateescape",
    ),
    "carriage returns": ("print(repr(input()))", "a\r\nb", r"'a\r'"),
    "fast input": (FAST, "3\n", "4"),
    "exit": ("print(1)\nexit()\nprint(2)", "", "1"),
    "quit": ("print(1)\nquit()\nprint(2)", "", "1"),
    "__file__": ("import os; print(os.path.relpath(__file__), open(__file__).read()[:6])", "", "main.py import"),
    "source of a function": ("import inspect\ndef f(): 1\nprint(inspect.getsource(f))", "", "def f(): 1"),
    "itself again": (AGAIN + "print(input(), sys.argv[1])", "7\n", "7 x"),
    "byte order mark": ("\ufeffprint(1)", "", "1"),
    "encoding declaration": ("# coding: latin-1\nprint(len('é'))", "", "2"),
    "built-ins": ("print(__builtins__.sum([1, 2]), __annotations__)", "", "3 {}"),
    "main module": ("import __main__, sys\nprint(__main__.__name__, sys.orig_argv[1:])", "", "__main__ ['main.py']"),
    "recursion": (
        "import sys\ndef f(n): return n and f(n - 1)\nprint(f(996), sys.getrecursionlimit())\n"
        "sys.setrecursionlimit(1500)\nprint(f(1496), sys.getrecursionlimit())\nsys.setrecursionlimit(2**31 - 1)",
        "",
        "0 1000\n0 1500",
    ),
    "recursion ends": ("def f(n): return n and f(n - 1)\ntry: f(1000)\nexcept RecursionError: print(1)", "", "1"),
    "destructors": (DEL + "a = A(1)\nb = A(2)\nb.me = b\nprint('end')", "", "end\n1 x\n2 x"),
    "destructors after exit": (DEL + "def main():\n    a = A(1)\n    exit(0)\nb = A(2)\nmain()", "", "1 x\n2 x"),
    "generators": ("def g():\n    try: yield\n    finally: print(1)\nx = g()\nnext(x)", "", "1"),
    "exit functions": (DEL + "import atexit\natexit.register(print, 0)\na = A(1)", "", "0\n1 x"),
    "unflushed file": ("out = open(1, 'w', closefd=False)\nout.write('1')\ndef f(): pass", "", "1"),
    "replaced output": ("import sys, io\nprint(2)\nsys.stdout = io.StringIO()\nprint(1)", "", "2"),
    "detached output": ("import sys, io\nsys.stdout = io.TextIOWrapper(sys.stdout.detach())\nprint(1)", "", "1"),
    "closed output": ("import sys\nprint(1)\nsys.stdout.close()", "", "1"),
    "no output stream": ("import sys\nprint(1)\nsys.stdout = None", "", "1"),
    "exception hook": ("import sys\nsys.excepthook = lambda *a: exit(print(1))\n1/0", "", "1"),
    "descriptors": ("import os; print(os.open('/dev/null', os.O_RDONLY))", "", "3"),
}


@pytest.fixture(scope="module")
def outcomes():
    tests = [{"type": "stdin", "cases": [{"input": given, "output": wanted}]} for _, given, wanted in PROGRAMS.values()]
    results = run_tests([source for source, _, _ in PROGRAMS.values()], tests, code_in="text")
    return dict(zip(PROGRAMS, results, strict=True))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs_like_python_main_py(outcomes, name):
    assert outcomes[name].reason == "passed", outcomes[name].first_failure


@pytest.mark.parametrize("level", LEVELS[:-1])
def test_programs_open_their_streams_by_name(level):
    if (problem := isolation.missing(level)) and "CI" not in os.environ:
        pytest.skip(f"this machine lacks {problem}")
    source = "text = open('/dev/stdin').read()\nprint(text, file=open('/dev/stdout', 'w'))"
    tests = {"type": "stdin", "cases": [{"input": "3 4", "output": "3 4"}]}
    assert run_tests([source], [tests], code_in="text", isolation=level)[0].reason == "passed"


def test_what_a_program_prints_while_it_ends_counts():
    tests = {"type": "stdin", "cases": [{"input": "", "output": "1"}]}
    sources = ["class A:\n    def __del__(self): print(2)\na = A()\nprint(1)", "import sys\nprint(1)\nsys.exit('no')"]
    sources += ["import sys\nprint(1)\nsys.stdout.flush = lambda: 1 / 0"]
    assert [r.reason for r in run_tests(sources, [tests] * 3, code_in="text")] == ["wrong output", "crashed", "crashed"]


@pytest.mark.parametrize(
    "tests",
    [
        {"type": "call", "entry_point": "f", "cases": [{"input": [1], "output": 2}]},
        humaneval_tests("def f(x):\n", "def check(f):\n    assert f(1) == 2", "f"),
        mbpp_tests(["assert f(1) == 2"]),
    ],
    ids=["call", "HumanEval", "MBPP"],
)
@pytest.mark.parametrize(
    "source",
    [
        'def f(x): return x + 1\nif __name__ == "__main__": print(f(int(input())))',
        "\ufeffdef f(x): return x + 1",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\ndef f(x): return A(x + 1).x",
        "import pickle\nclass A: pass\ndef f(x): return x + len([pickle.loads(pickle.dumps(A()))])",
    ],
    ids=["guard", "byte order mark", "dataclass", "pickle"],
)
def test_a_program_under_call_or_assert_tests_is_not_the_main_module(source, tests):
    assert run_tests([source], [tests], code_in="text")[0].reason == "passed"


SOLUTION = "```python\nclass Solution:\n    def f(self, x):\n        return x\n```\n"
FUNCTION = "```python\ndef f(x):\n    return x\n```\n"


@pytest.mark.parametrize(
    ("completion", "names", "expected"),
    [
        (FUNCTION + "For example:\n```python\nprint(f(3))\n```", ["f"], "def f(x):\n    return x\n"),
        (SOLUTION + "```python\nprint(Solution().f(3))\n```", ["f"], SOLUTION[10:-4]),
        (FUNCTION + "```python\nf = abs\n```", ["f"], "f = abs\n"),
        (FUNCTION + "```python\nassert f == abs\nf == 1\n```", ["f"], "def f(x):\n    return x\n"),
        (FUNCTION + "```python\ndef f(x): return 2\n```", ["f"], "def f(x): return 2\n"),
        (FUNCTION + "```python\ndef ff(x): return 2\n```", ["f"], "def f(x):\n    return x\n"),
        (FUNCTION + "```python\ndef f(x): 1\ng = f\n```\n" + FUNCTION, ["f", "g"], "def f(x): 1\ng = f\n"),
        (FUNCTION + "```python\nprint(2)\n```", ["g"], "print(2)\n"),
        (FUNCTION + "```python\nprint(2)\n```", [], "print(2)\n"),
        ("```\ndef f(x): return 2\n```\n```python\nprint(f(3))\n```", ["f"], "def f(x): return 2\n"),
        (FUNCTION + "```python\nprint(f(3))", ["f"], None),
    ],
)  # fmt: skip
def test_the_last_block_that_defines_what_is_called_precedes_a_demonstration(completion, names, expected):
    assert program_in(completion, "python", names) == expected


def test_a_demonstration_after_the_program_costs_nothing():
    tests = [
        {"type": "call", "entry_point": "f", "cases": [{"input": [1], "output": 1}]},
        humaneval_tests("def f(x):\n", "def check(f):\n    assert f(1) == 1", "f"),
        mbpp_tests(["assert f(1) == 1"]),
        {"functional": "def check(f):\n    assert f(1) == 1\n\ncheck(Solution().f)"},
    ]
    demonstration = "It prints 3:\n```python\nprint(f(3))\n```"
    texts = [program + demonstration for program in (FUNCTION, FUNCTION, FUNCTION, SOLUTION)]
    assert [result.reason for result in run_tests(texts, tests)] == ["passed"] * 4
