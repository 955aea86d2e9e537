"""Tests from public code datasets: the accepted formats of a `tests` column, and datasets with columns of their own.

    {"type": "stdin", "cases": [{"input": "1 2\\n", "output": "3\\n"}], "time_limit": 2, "memory_mb": 256}
    {"type": "call", "entry_point": "add", "cases": [{"input": [1, 2], "output": 3}]}
    {"type": "assert", "entry_point": "add", "setup": "…", "tests": ["assert add(1, 2) == 3"]}

Each dataset with its own columns has a function whose parameters are those columns; `usual_columns` picks it by them.
"""

import base64
import inspect
import json
import pickletools
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Any

from rewards.programs.cases import Case, Tests, is_python
from rewards.text import Text, completion_text

# What LeetCode imports before a solution runs. The last import restores the built-in `pow` and the like.
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

# What LiveCodeBench's own harness runs before every program, stdin programs included.
_MODULES = "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys"
LIVECODEBENCH_PREAMBLE = "\n".join(
    [
        *(f"from {name} import *" for name in f"{_MODULES} json builtins typing".split()),
        f"import json, {', '.join(_MODULES.split())}",
        "sys.setrecursionlimit(50_000)",
        "sys.set_int_max_str_digits(50_000)",
    ]
)
MAX_TEST_BYTES = 512 << 20  # of one problem's packed tests; LiveCodeBench's largest take some tens of MiB
_FRACTION = re.compile(r"[0-9]\.[0-9]")
_INTEGER_KEY = re.compile(r"-?[0-9]{1,1000}")
_PACKED = "eJ"  # base64 of the start of a zlib stream
# A pickle is a program. These are the opcodes of one that builds a text, or a dict of texts.
_TEXT_OPCODES = {"PROTO", "FRAME", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "MEMOIZE", "BINPUT", "STOP"}
_TEXT_OPCODES |= {"EMPTY_DICT", "MARK", "SETITEM", "SETITEMS"}


def read_tests(tests: Any) -> Tests:
    """Tests in any known format, JSON or parsed: ours and those of APPS, TACO, CodeContests, LeetCode, LiveCodeBench.

    ValueError for an unknown format and for missing tests.
    """
    return tests if isinstance(tests, Tests) else _checked(_read, tests)


def _read(tests: Any) -> Tests:
    if isinstance(tests, str) and tests.startswith(_PACKED):
        return _packed(tests)
    if isinstance(tests, str):
        tests = _parsed(tests)
    if isinstance(tests, list):
        about = (tests[0].get("metadata") if tests else None) or {}
        return _livecodebench(tests, (_parsed(about) if isinstance(about, str) else about).get("func_name"))
    if isinstance(tests, dict) and "type" in tests:
        return _ours(tests)
    if isinstance(tests, dict) and "inputs" in tests and "outputs" in tests:
        return _apps(tests)
    if isinstance(tests, dict) and "functional" in tests:
        asserts, known = [tests["functional"]], LEETCODE_PREAMBLE
        return Tests(type="assert", entry_point="Solution", asserts=asserts, preamble=known, reference=known)
    keys = sorted(tests) if isinstance(tests, dict) else type(tests).__name__
    raise ValueError(f"unknown format of tests: {keys}. docs/rewards.md lists the formats `code` accepts.")


def tests_or_reasons(prompts: Sequence[Text], columns: Mapping[str, Any]) -> list[Tests | str]:
    """Each problem's tests, or why they cannot be read. Identical rows share one value.

    columns: by name, a value per problem: `tests`, else those of a known dataset.

    ValueError for columns of no known dataset.
    """
    if columns.get("tests") is not None:
        return _each(read_tests, [(tests,) for tests in columns["tests"]])
    return usual_columns(prompts, columns)


def usual_columns(prompts: Sequence[Text], columns: Mapping[str, Any]) -> list[Tests | str]:
    """Each problem's tests, from the columns of a known dataset, or why they cannot be read.

    HumanEval's programs continue the text in the column `program_start`, or the prompt if it is missing.

    ValueError for columns of no known dataset.
    """
    starts = columns.get("program_start", prompts)
    columns = {**columns, "prompt": ["" if start is None else completion_text(start) for start in starts]}
    for read in _SETS:
        parameters = inspect.signature(read).parameters.values()
        if all(parameter.name in columns for parameter in parameters if parameter.default is parameter.empty):
            names = [parameter.name for parameter in parameters if parameter.name in columns]
            rows = list(zip(*(columns[name] for name in names), strict=True))
            return _each(partial(_read_row, read, names), rows)
    raise ValueError(
        f"no tests: the columns {sorted(columns)} include no `tests` and match no dataset listed in docs/rewards.md. "
        "Map the dataset's own column with data.columns, e.g. {tests: my_column}."
    )


def _each(read: Callable[..., Tests], rows: Sequence[tuple[Any, ...]]) -> list[Tests | str]:
    made: dict[tuple[int, ...], Tests | str] = {}  # a group repeats one row, and parsing it may take seconds
    for row in rows:
        key = tuple(map(id, row))
        if key not in made:
            try:
                made[key] = read(*row)
            except ValueError as error:
                made[key] = str(error)
    return [made[tuple(map(id, row))] for row in rows]


def _read_row(read: Callable[..., Tests], names: Sequence[str], *row: Any) -> Tests:
    return _checked(read, **dict(zip(names, row, strict=True)))


def _checked(read: Callable[..., Tests], *arguments: Any, **columns: Any) -> Tests:
    """What `read` returns; ValueError if the row does not have its dataset's structure."""
    try:
        return read(*arguments, **columns)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"malformed tests: {type(error).__name__}: {error}. Drop this problem.") from error


def humaneval_tests(prompt: str, test: str, entry_point: str) -> Tests:
    """HumanEval, LeetCodeDataset. The prompt's helper functions are available to the submission and to the check."""
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
    """MBPP+ (2305.01210): one program with all tests; test_list holds only the first three."""
    return Tests(type="assert", setup="\n".join(test_imports), asserts=[test])


def livecodebench_tests(public_test_cases: str, private_test_cases: str, metadata: str) -> Tests:
    """LiveCodeBench (2403.07974): tests as JSON, private ones often packed; `metadata` names the function."""
    private = _unpack(private_test_cases) if private_test_cases.startswith(_PACKED) else private_test_cases
    return _livecodebench(_parsed(public_test_cases) + _parsed(private), _parsed(metadata).get("func_name"))


def code_contests_tests(
    public_tests: Mapping[str, Sequence[str]],
    private_tests: Mapping[str, Sequence[str]],
    generated_tests: Mapping[str, Sequence[str]],
    time_limit: Mapping[str, int] | None = None,
    memory_limit_bytes: int | None = None,
    input_file: str | None = None,
) -> Tests:
    """CodeContests (2203.07814): {"input": […], "output": […]} each. A limit of None or 0 means none.

    If any expected output has a decimal fraction, numbers may differ by Codeforces' usual tolerance; the dataset's own
    tester allows 1e-5, absolute, everywhere.
    """
    if input_file:
        raise ValueError(f"the program must read the file {input_file!r}, but gets stdin alone. Drop this problem.")
    parts = (public_tests, private_tests, generated_tests)
    pairs = [pair for part in parts for pair in zip(part["input"], part["output"], strict=True)]
    return Tests(
        type="stdin",
        cases=[Case(input=given, output=wanted) for given, wanted in pairs],
        tolerance=1e-6 if any(_FRACTION.search(wanted) for _, wanted in pairs) else None,
        time_limit=(time_limit["seconds"] + time_limit["nanos"] / 1e9 if time_limit else 0) or None,
        memory_mb=memory_limit_bytes >> 20 if memory_limit_bytes else None,
    )


def sandboxfusion_tests(test: str) -> Tests:
    """Code datasets in SandboxFusion's format."""
    return read_tests(test)


def apps_tests(input_output: str | Mapping[str, Any]) -> Tests:
    """APPS, TACO."""
    return read_tests(input_output)


# A row belongs to the first of these datasets whose columns it has.
_SETS: Sequence[Callable[..., Tests]] = (
    humaneval_tests,
    mbpp_plus_tests,
    mbpp_tests,
    livecodebench_tests,
    code_contests_tests,
    apps_tests,
    sandboxfusion_tests,
)


def _ours(tests: Mapping[str, Any]) -> Tests:
    known = {"type", "cases", "entry_point", "preamble", "reference", "setup", "tolerance", "checker"}
    unknown = tests.keys() - known - {"time_limit", "total_time_limit", "memory_mb", "tests"}
    if unknown or tests["type"] not in ("stdin", "call", "assert"):
        what = f"keys {sorted(unknown)}" if unknown else f"type {tests['type']!r} (stdin, call or assert)"
        raise ValueError(f"tests have unknown {what}. docs/rewards.md lists what `code` accepts.")
    fields = {name: value for name, value in tests.items() if name not in ("cases", "tests")}
    cases = [Case(input=case["input"], output=case["output"]) for case in tests.get("cases", ())]
    return Tests(**fields, cases=cases, **({"asserts": tests["tests"]} if "tests" in tests else {}))


def _apps(tests: Mapping[str, Any]) -> Tests:
    """{"inputs": […], "outputs": […], "fn_name": …}: stdin texts, or with fn_name lists of arguments."""
    if len(tests["inputs"]) != len(tests["outputs"]):
        raise ValueError(f"{len(tests['inputs'])} inputs, but {len(tests['outputs'])} outputs. Drop this problem.")
    pairs = list(zip(tests["inputs"], tests["outputs"], strict=True))
    name = tests.get("fn_name")
    if name is None:
        return Tests(type="stdin", cases=[Case(input=_text(given), output=_text(wanted)) for given, wanted in pairs])
    # Most of these problems wrap every expected value in a list. If all are lists of one, nothing tells which they do.
    unwrap = all(isinstance(wanted, list) and len(wanted) == 1 for wanted in tests["outputs"])
    calls = [_apps_call(given, wanted) for given, wanted in pairs]
    return Tests(type="call", entry_point=name, cases=calls, preamble=LEETCODE_PREAMBLE, unwrap=unwrap)


def _apps_call(given: Any, wanted: Any) -> Case:
    """Arguments in a list, or as text, a line of JSON each, with the expected value as JSON, too."""
    if isinstance(given, str):
        given, wanted = _arguments(given), _parsed(wanted) if isinstance(wanted, str) else wanted
    arguments = given if isinstance(given, dict) else [_with_integer_keys(argument) for argument in given]
    return Case(input=arguments, output=wanted)


def _with_integer_keys(argument: Any) -> Any:
    """JSON turned the integer keys of a dict into text; APPS's own harness turns them back."""
    if isinstance(argument, dict) and all(isinstance(key, str) and _INTEGER_KEY.fullmatch(key) for key in argument):
        return {int(key): value for key, value in argument.items()}
    return argument


def _arguments(lines: str) -> list[Any]:
    return [_parsed(line) for line in lines.split("\n") if line]


def _livecodebench(tests: Sequence[Mapping[str, Any]], name: str | None) -> Tests:
    """[{"input": …, "output": …, "testtype": "stdin" | "functional"}], graded as LiveCodeBench's own harness does.

    It accepts an output whose words are the same or the same numbers, and a value that is ==: 2 equals 2.0.
    """
    if any(test.get("testtype") == "functional" for test in tests):
        cases = [Case(input=_arguments(test["input"]), output=_parsed(test["output"])) for test in tests]
        read = Tests(type="call", entry_point=name, cases=cases)
    else:
        read = Tests(type="stdin", cases=[Case(input=test["input"], output=test["output"]) for test in tests])
    return replace(read, preamble=LIVECODEBENCH_PREAMBLE, tolerance=0.0, time_limit=6.0)


def _packed(text: str) -> Tests:
    """LiveCodeBench's private tests alone, or all tests as in SandboxFusion: {"inputs", "outputs", "fn_name"}."""
    tests = _parsed(_unpack(text))
    if isinstance(tests, list):
        return read_tests(tests)
    name = tests.get("fn_name")
    kind = {} if name is None else {"testtype": "functional"}
    pairs = zip(tests["inputs"], tests["outputs"], strict=True)
    return _livecodebench([{"input": given, "output": wanted} | kind for given, wanted in pairs], name)


def _unpack(text: str) -> str:
    """The text inside a base64-encoded, zlib-compressed pickle, extracted without unpickling, so none of it runs.

    ValueError if it is larger than MAX_TEST_BYTES, or if the pickle does more than hold a text.
    """
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(base64.b64decode(text, validate=True), MAX_TEST_BYTES)
    except (ValueError, zlib.error) as error:
        raise ValueError(f"packed tests are not zlib in base64: {error}. They start with {text[:80]!r}.") from None
    if not inflate.eof:
        what = f"larger than {MAX_TEST_BYTES >> 20} MiB" if len(data) >= MAX_TEST_BYTES else "truncated"
        raise ValueError(f"packed tests ({len(text)} characters) are {what} when unpacked. Drop this problem.")
    texts: list[str] = []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in _TEXT_OPCODES:
            raise ValueError(
                f"packed tests are a pickle that does more than hold a text: {opcode.name} {argument!r:.80}. None of "
                "it was run. Drop this problem, and do not trust its file."
            )
        if isinstance(argument, str):
            texts.append(argument)
    return texts[-1] if texts else ""


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"tests are neither a dict nor JSON: {error}. They start with {text[:80]!r}.") from None


def _integer(digits: str) -> int:
    return int(digits) if len(digits) <= 4300 else int(Decimal(digits))  # `int` refuses longer texts


def _text(lines: str | Sequence[str]) -> str:
    return lines if isinstance(lines, str) else "\n".join(map(str, lines)) + "\n"
