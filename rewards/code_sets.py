"""From what the usual code sets have to tests: the shapes of a column `tests`, and columns of their own.

    {"type": "stdin", "cases": [{"input": "1 2\\n", "output": "3\\n"}], "time_limit": 2, "memory_mb": 256}
    {"type": "call", "entry_point": "add", "cases": [{"input": [1, 2], "output": 3}]}
    {"type": "assert", "entry_point": "add", "setup": "…", "tests": ["assert add(1, 2) == 3"]}

Each set with columns of its own has a function whose arguments are those columns; `usual_columns` finds it by them.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards.code_tests import Case, Tests, is_python
from rewards.text import Text, completion_text

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


def usual_columns(prompts: Sequence[Text], columns: Mapping[str, Any]) -> list[Tests]:
    """The tests of each problem, out of the columns of one of the usual sets. Equal rows share theirs.

    ValueError for columns of no known set, and for tests that cannot be read.
    """
    columns = {**columns, "prompt": [completion_text(prompt) for prompt in prompts]}
    for read in _SETS:
        parameters = inspect.signature(read).parameters.values()
        if all(parameter.name in columns for parameter in parameters if parameter.default is parameter.empty):
            names = [parameter.name for parameter in parameters if parameter.name in columns]
            made: dict[tuple[int, ...], Tests] = {}  # a group repeats one row, and reading it may take seconds
            found = []
            for row in zip(*(columns[name] for name in names), strict=True):
                key = tuple(map(id, row))
                if key not in made:
                    made[key] = read(**dict(zip(names, row, strict=True)))
                found.append(made[key])
            return found
    raise ValueError(
        f"no tests: of the columns {sorted(columns)}, none is `tests`, `test_list` (MBPP), `test` with `entry_point` "
        "(HumanEval) or `input_output` (APPS, TACO). Map the dataset's own with data.columns, as in {tests: my_column}."
    )


def humaneval_tests(prompt: str, test: str, entry_point: str) -> Tests:
    """HumanEval, LeetCodeDataset. The prompt's helper functions are there for the submission and for the check."""
    prompt = next((text for text in (prompt, f"{prompt.rstrip()}\n    pass\n") if is_python(text)), "")
    return Tests(
        type="assert",
        entry_point=entry_point,
        preamble=prompt,
        reference=prompt,
        asserts=[f"{test}\ncheck({entry_point})"],
    )


def mbpp_tests(test_list: Sequence[str], test_setup_code: str = "") -> Tests:
    """MBPP."""
    return Tests(type="assert", setup=test_setup_code.replace("\r\n", "\n"), asserts=list(test_list))


def mbpp_plus_tests(test_list: Sequence[str], test: str, test_imports: Sequence[str] = ()) -> Tests:
    """MBPP+ (2305.01210): one program with all tests, of which test_list shows the first three."""
    return Tests(type="assert", setup="\n".join(test_imports), asserts=[test])


def apps_tests(input_output: str | Mapping[str, Any]) -> Tests:
    """APPS, TACO."""
    return read_tests(input_output)


# A row is of the first of these sets whose columns it has.
_SETS: Sequence[Callable[..., Tests]] = (humaneval_tests, mbpp_plus_tests, mbpp_tests, apps_tests)


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
