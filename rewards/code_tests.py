"""Hidden tests: what the columns of the usual code sets say, as one value; and the submission in a completion.

    {"type": "stdin", "cases": [{"input": "1 2\\n", "output": "3\\n"}], "time_limit": 2, "memory_mb": 256}
    {"type": "call", "entry_point": "add", "cases": [{"input": [1, 2], "output": 3}]}
    {"type": "assert", "entry_point": "add", "setup": "…", "tests": ["assert add(1, 2) == 3"]}

Left out: tests that are pickled (LiveCodeBench's private ones on the Hub): unpickling runs what is in them.
"""

import ast
import builtins
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rewards.text import after_thinking

Language = Literal["python", "cpp"]
_TAGS: Mapping[str, Sequence[str]] = {"python": ("python", "py", "python3"), "cpp": ("cpp", "c++", "cc", "cxx")}

# What LeetCode has imported before a solution is read. `pow` and the like are the built-in ones again at its end.
LEETCODE_PREAMBLE = """
import bisect, collections, copy, datetime, functools, heapq, itertools, math, operator, random, re, string, sys
from bisect import *
from collections import *
from copy import *
from functools import *
from heapq import *
from itertools import *
from math import *
from string import *
from typing import *
from builtins import *
try:
    from sortedcontainers import *
except ImportError:
    pass
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Case(input="1 2\\n", output="3\\n"); of calls Case(input=[1, 2], output=3); a dict gives keywords."""

    input: Any
    output: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Tests:
    """The tests of one problem.

    stdin: a program reads case.input and prints case.output.
    call: entry_point(*case.input) == case.output; `f`, `Class.method`, or a method of the class Solution.
    assert: Python statements that raise nothing; the names that they do not define are the submission's.
    """

    type: Literal["stdin", "call", "assert"]
    cases: Sequence[Case] = ()
    entry_point: str | None = None
    preamble: str = ""  # run before the submission
    reference: str = ""  # assert: run before the tests, not in the submission's process
    setup: str = ""  # assert: run before the tests; may use the submission
    asserts: Sequence[str] = ()
    tolerance: float | None = None  # of numbers, absolute or relative
    checker: str | None = None  # Python that defines check(input, output, expected) -> bool
    time_limit: float | None = None  # seconds of CPU for each test
    memory_mb: int | None = None

    def __post_init__(self) -> None:
        if not self.cases and not self.asserts:
            raise ValueError(f"{self.type} tests without a single test: anything would pass. Drop this problem.")
        if broken := [text for text in (self.reference, self.setup, *self.asserts) if not _is_python(text)]:
            raise ValueError(f"an assert test is not Python; it begins {broken[0][:80]!r}.")
        if self.type == "call" and not self.entry_point:
            raise ValueError("call tests need entry_point, the name of the function that is called.")

    def __len__(self) -> int:
        return len(self.cases) or len(self.asserts)

    def names(self) -> list[str]:
        """assert: the names that tests use and nobody but the submission defines."""
        used, called, modules, defined = _names([self.reference, self.setup, *self.asserts])
        ours = used - defined - set(dir(builtins)) - modules | ({self.entry_point} if self.entry_point else set())
        return sorted(ours or called)  # a submission may be asked for its own `sum`

    def modules(self) -> list[str]:
        """assert: modules that tests use without importing them, as `sys` in `sys.getsizeof`."""
        used, _, modules, defined = _names([self.reference, self.setup, *self.asserts])
        return sorted(modules & used - defined)


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


def _names(texts: Sequence[str]) -> tuple[set[str], set[str], set[str], set[str]]:
    """Names that are read, called, that stand for a standard module, and that are defined."""
    used: set[str] = set()
    called: set[str] = set()
    modules: set[str] = set()
    defined: set[str] = set()
    for node in (node for text in texts for node in ast.walk(ast.parse(text))):
        match node:
            case ast.Name():
                (used if isinstance(node.ctx, ast.Load) else defined).add(node.id)
            case ast.Call(func=ast.Name(id=name)):
                called.add(name)
            case ast.Attribute(value=ast.Name(id=name)) if name in sys.stdlib_module_names:
                modules.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                defined.add(name)
            case ast.arg(arg=name):
                defined.add(name)
            case ast.alias():
                defined.add((node.asname or node.name).partition(".")[0])
    return used, called, modules, defined


def read_tests(tests: Any) -> Tests:
    """Tests of any known shape, JSON or parsed: ours, those of APPS, TACO, CodeContests, LeetCode and LiveCodeBench.

    ValueError for another shape, and for no tests at all.
    """
    if isinstance(tests, Tests):
        return tests
    if isinstance(tests, str):
        try:
            tests = json.loads(tests)
        except ValueError as error:
            raise ValueError(f"tests are neither a dict nor JSON: {error}. They begin {tests[:80]!r}.") from None
    if isinstance(tests, list):
        return _livecodebench(tests)
    if isinstance(tests, dict) and "type" in tests:
        return _ours(tests)
    if isinstance(tests, dict) and "inputs" in tests and "outputs" in tests:
        return _apps(tests)
    if isinstance(tests, dict) and "functional" in tests:
        return Tests(type="assert", asserts=[tests["functional"]], preamble=LEETCODE_PREAMBLE)
    keys = sorted(tests) if isinstance(tests, dict) else type(tests).__name__
    raise ValueError(f"no known shape of tests: {keys}. docs/rewards.md lists those that `code` reads.")


def humaneval_tests(prompt: str, test: str, entry_point: str) -> Tests:
    """Columns of HumanEval. The prompt's helper functions are there for the submission and for the check."""
    prompt = next((text for text in (prompt, f"{prompt.rstrip()}\n    pass\n") if _is_python(text)), "")
    return Tests(
        type="assert",
        entry_point=entry_point,
        preamble=prompt,
        reference=prompt,
        asserts=[f"{test}\ncheck({entry_point})"],
    )


def mbpp_tests(test_list: Sequence[str], test_setup_code: str = "") -> Tests:
    """Columns of MBPP."""
    return Tests(type="assert", setup=test_setup_code.replace("\r\n", "\n"), asserts=list(test_list))


def _ours(tests: Mapping[str, Any]) -> Tests:
    known = {"type", "cases", "entry_point", "preamble", "reference", "setup", "tolerance", "checker"}
    unknown = tests.keys() - known - {"time_limit", "memory_mb", "tests"}
    if unknown or tests["type"] not in ("stdin", "call", "assert"):
        what = f"keys {sorted(unknown)}" if unknown else f"type {tests['type']!r} (stdin, call or assert)"
        raise ValueError(f"tests have unknown {what}. docs/rewards.md lists what `code` reads.")
    fields = {name: value for name, value in tests.items() if name not in ("cases", "tests")}
    cases = [Case(input=case["input"], output=case["output"]) for case in tests.get("cases", ())]
    return Tests(**fields, cases=cases, **({"asserts": tests["tests"]} if "tests" in tests else {}))


def _apps(tests: Mapping[str, Any]) -> Tests:
    """{"inputs": […], "outputs": […], "fn_name": …}: texts for stdin; with fn_name, lists of arguments."""
    if len(tests["inputs"]) != len(tests["outputs"]):
        raise ValueError(f"{len(tests['inputs'])} inputs, but {len(tests['outputs'])} outputs. Drop this problem.")
    pairs = list(zip(tests["inputs"], tests["outputs"], strict=True))
    name = tests.get("fn_name")
    if name is None:
        return Tests(type="stdin", cases=[Case(input=_text(given), output=_text(wanted)) for given, wanted in pairs])
    wrapped = all(isinstance(wanted, list) and len(wanted) == 1 for wanted in tests["outputs"])
    calls = [Case(input=given, output=wanted[0] if wrapped else wanted) for given, wanted in pairs]
    return Tests(type="call", entry_point=name, cases=calls, preamble=LEETCODE_PREAMBLE)


def _livecodebench(tests: Sequence[Mapping[str, Any]]) -> Tests:
    """[{"input": …, "output": …, "testtype": "stdin" | "functional", "metadata": {"func_name": …}}]."""
    if not tests or tests[0].get("testtype", "stdin") == "stdin":
        return Tests(type="stdin", cases=[Case(input=test["input"], output=test["output"]) for test in tests])
    about = tests[0].get("metadata") or {}
    name = (json.loads(about) if isinstance(about, str) else about).get("func_name")
    cases = [
        Case(input=[json.loads(line) for line in test["input"].splitlines() if line], output=json.loads(test["output"]))
        for test in tests
    ]
    return Tests(type="call", entry_point=name, cases=cases, preamble=LEETCODE_PREAMBLE)


def _text(lines: str | Sequence[str]) -> str:
    return lines if isinstance(lines, str) else "\n".join(map(str, lines)) + "\n"


def with_limits(tests: Tests, time_limit: float, memory_mb: int) -> Tests:
    """The problem's own limits, and these where it has none."""
    return replace(tests, time_limit=tests.time_limit or time_limit, memory_mb=tests.memory_mb or memory_mb)


_FENCE = re.compile(r"^([ \t]*)(`{3,}|~{3,})([^\n]*)$", re.MULTILINE)


def last_block(completion: str, language: Language) -> str | None:
    """The last fenced block of the language after the last `</think>`; without any, the last block that names none.

    None if there is no such block, and if thinking or a block is still open at the end: it was cut off.
    """
    text = after_thinking(completion)
    if text is None:
        return None
    found: dict[bool, str] = {}  # by whether the block names the language
    opening: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        info = fence[3].strip().split(maxsplit=1)
        if opening is None:
            if fence[2][0] not in fence[3]:
                opening = fence
        elif not info and fence[2].startswith(opening[2]):
            tag = opening[3].strip().lower().partition(" ")[0].partition("{")[0]
            if not tag or tag in _TAGS[language]:
                found[bool(tag)] = _dedent(text[opening.end() + 1 : fence.start()], opening[1])
            opening = None
    if opening is not None:
        return None
    return found.get(True, found.get(False))


def _dedent(block: str, indent: str) -> str:
    return "".join(line.removeprefix(indent) for line in block.splitlines(keepends=True)) if indent else block
