"""A problem's hidden tests in one format, whatever dataset they come from (datasets.py), and a completion's program."""

import ast
import builtins
import math
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rewards.text import after_thinking, answer_text

Language = Literal["python", "cpp"]
_TAGS: Mapping[str, Sequence[str]] = {"python": ("python", "py", "python3"), "cpp": ("cpp", "c++", "cc", "cxx")}

LIMITS = ("time_limit", "total_time_limit", "memory_mb")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Case(input="1 2\\n", output="3\\n"); for calls Case(input=[1, 2], output=3); a dict holds keyword arguments."""

    input: Any
    output: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Tests:
    """The tests of one problem.

    stdin: the program reads case.input and prints case.output.
    call: entry_point(*case.input) == case.output; `f`, `Class.method`, or a method of the class Solution.
    assert: Python statements that must not raise. The submission provides entry_point; without one, every name they
        use but do not define.
    """

    type: Literal["stdin", "call", "assert"]
    cases: Sequence[Case] = ()
    entry_point: str | None = None
    preamble: str = ""  # runs before the submission
    reference: str = ""  # assert: runs before the tests, not in the submission's process
    setup: str = ""  # assert: runs before the tests; may use the submission
    asserts: Sequence[str] = ()
    unwrap: bool = False  # call: for an expected [2], 2 is right, too
    tolerance: float | None = None  # for numbers, absolute or relative; at least 0
    checker: str | None = None  # Python source defining check(input, output, expected) -> bool
    time_limit: float | None = None  # CPU seconds per test
    total_time_limit: float | None = None  # CPU and idle seconds of all tests together
    memory_mb: int | None = None

    def __post_init__(self) -> None:
        limits = {name: getattr(self, name) for name in LIMITS}
        if wrong := wrong_limit(**{name: value for name, value in limits.items() if value is not None}):
            raise ValueError(f"{wrong}. Correct the tests, or drop this problem.")
        if self.tolerance is not None and not (isinstance(self.tolerance, int | float) and self.tolerance >= 0):
            raise ValueError(f"tolerance={self.tolerance!r} is not a number of at least 0. Correct the tests.")
        if not self.cases and not self.asserts:
            raise ValueError(f"{self.type} tests are empty, so any program would pass. Drop this problem.")
        if self.type == "stdin" and not all(isinstance(c.input, str) and isinstance(c.output, str) for c in self.cases):
            raise ValueError("stdin tests need text as input and output. Convert them, or drop this problem.")
        texts = (self.preamble, self.reference, self.setup, self.checker or "", *self.asserts)
        if broken := [text for text in texts if not is_python(text)]:
            raise ValueError(f"the tests contain text that is not Python: {broken[0][:80]!r}. Drop this problem.")
        if self.type == "call" and not all(isinstance(case.input, (list, tuple, dict)) for case in self.cases):
            raise ValueError("call tests need a list or dict of arguments as input. Drop this problem.")
        if self.type == "call" and not self.entry_point:
            raise ValueError("call tests need entry_point, the name of the function to call.")

    def __len__(self) -> int:
        return len(self.cases) or len(self.asserts)

    def right_values(self, case: Case) -> list[Any]:
        """call: the values that are right."""
        wrapped = self.unwrap and isinstance(case.output, list) and len(case.output) == 1
        return [case.output, case.output[0]] if wrapped else [case.output]

    def names(self) -> list[str]:
        """The names the submission provides."""
        if self.type == "stdin":
            return []
        if self.type == "call":
            return re.findall(r"\w+", self.entry_point or "")[-1:]  # a function or method
        if self.entry_point:
            return re.findall(r"\w+", self.entry_point)[:1]  # Solution for Solution().add
        used, called, modules, defined = _names([self.reference, self.setup, *self.asserts])
        ours = used - defined - set(dir(builtins)) - modules
        return sorted(ours or called)  # a problem may ask for its own `sum`

    def modules(self) -> list[str]:
        """assert: modules the tests use without importing them, like `sys` in `sys.getsizeof`."""
        used, _, modules, defined = _names([self.reference, self.setup, *self.asserts])
        return sorted(modules & used - defined)

    def classes(self) -> list[str]:
        """assert: classes both sides define before the submission; their objects are sent as fields."""
        return sorted(_classes(self.reference) & _classes(self.preamble)) if self.reference else []


def _classes(text: str) -> set[str]:
    return {node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}


def is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # the latter two: nested too deep
        return False
    return True


def _names(texts: Sequence[str]) -> tuple[set[str], set[str], set[str], set[str]]:
    """Names read, names called, names of standard modules, names defined."""
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


def wrong_limit(**limits: Any) -> str | None:
    """Which of the limits cannot be one, and why: wrong_limit(time_limit=2, memory_mb="512")."""
    for name, value in limits.items():
        kind, what = (int, "whole number") if name == "memory_mb" else (int | float, "finite number")
        if not (isinstance(value, kind) and 0 < value < math.inf):
            return f"{name}={value!r} is not a {what} above 0"
    return None


def with_limits(tests: Tests, time_limit: float, total_time_limit: float, memory_mb: int) -> Tests:
    """The tests, with these limits where they set none. All tests together may take no less time than one."""
    time_limit = tests.time_limit or time_limit
    total = max(tests.total_time_limit or total_time_limit, time_limit)
    memory_mb = tests.memory_mb or memory_mb
    return replace(tests, time_limit=time_limit, total_time_limit=total, memory_mb=memory_mb)


_FENCE = re.compile(r"^([^\n]*?)(`{3,}|~{3,})([^\n]*)$", re.MULTILINE)
_TAG = re.compile(r"[\w+#]+")


def program_in(completion: str, language: Language, names: Sequence[str] = ()) -> str | None:
    """The last fenced block tagged with the language after the last `</think>`; failing that, the last untagged one.

    If `<answer>` has one, only its blocks count.

    names: what the tests call; the last block that defines all of them precedes later ones, such as demonstrations.

    None if no such block exists, or if thinking or a block is still open at the end (the completion was truncated).
    """
    text = after_thinking(completion)
    if text is None:
        return None
    answer = _last_block(answer_text(completion) or "", language, names)
    return _last_block(text, language, names) if answer is None else answer


def _last_block(text: str, language: Language, names: Sequence[str]) -> str | None:
    found: dict[tuple[bool, bool], str] = {}  # by whether the block defines the names, and is tagged
    opening: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        before, after = fence[1].strip(), fence[3].strip()
        if opening is None:
            # **Solution:** ```python opens a block, ``` at the end of a sentence does not.
            if fence[2][0] not in after and (before in ("", "<answer>") or _TAG.fullmatch(after)):
                opening = fence
        elif not before and after in ("", "</answer>") and fence[2].startswith(opening[2]):
            tag = opening[3].strip().lower().partition(" ")[0].partition("{")[0]
            if not tag or tag in _TAGS[language]:
                block = _dedent(text[opening.end() + 1 : fence.start()], opening[1])
                found[all(_defines(block, name) for name in names), bool(tag)] = block
            opening = None
    if opening is not None:
        return None
    order = [(True, True), (True, False), (False, True), (False, False)]
    return next((found[kind] for kind in order if kind in found), None)


def _defines(block: str, name: str) -> bool:
    """By a pattern, as parsing a hostile text may take long."""
    patterns = (rf"[ \t]*(?:async[ \t]+def|def|class)[ \t]+{name}\b", rf"{name}[ \t]*(?::[^=\n]*)?=(?!=)")
    return any(re.search(f"^{pattern}", block, re.MULTILINE) for pattern in patterns)


def _dedent(block: str, indent: str) -> str:
    """Without the indentation of the opening fence; if text precedes that, without what all lines share."""
    if indent.strip():
        return textwrap.dedent(block)
    return "".join(line.removeprefix(indent) for line in block.splitlines(keepends=True)) if indent else block
