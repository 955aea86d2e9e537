"""The code tasks of `grpo eval` on rows as the Hub has them: how they are asked, what passes and what does not."""

import base64
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

import grpo
from grpo.evaluation.config import TaskConfig, builtin_tasks
from grpo.evaluation.grading import build_grader
from grpo.evaluation.tasks import Task, load_task
from rewards import code
from rewards.programs.datasets import read_tests, usual_columns
from rollout.types import Completion, Group

DATA = Path(__file__).parents[4] / "shared" / "data" / "eval"


def loaded(folder: Path, name: str, *rows: dict[str, Any]) -> Task:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_task(name, data_dir=folder)


def verdicts(task: Task, *answers: str, problem: int = 0) -> list[str | None]:
    """What the task's own grader says of answers to one problem: "right", or why not; None: it cannot judge."""
    completions = [
        Completion(token_ids=[], logprobs=[], text=text, finish_reason="stop", policy_version=0) for text in answers
    ]
    grader = build_grader(task.config.reward, task.config.options)
    (graded,) = grader.grade([Group(problem=task.problems[problem], prompt_ids=[], completions=completions)])
    grader.close()
    return [None if v is None else v.reason.partition(":")[0] or v.outcome for v in graded.verdicts]


def block(source: str) -> str:
    return f"```python\n{source}\n```"


MBPP_PLUS = {
    "task_id": 2,
    "code": "def similar_elements(a, b):\n    return tuple(set(a) & set(b))",
    "prompt": "Write a function to find the shared elements from the given two lists.",
    "source_file": "Benchmark Questions Verification V2.ipynb",
    "test_imports": ["import math"],
    "test_list": [
        "assert set(similar_elements((3, 4, 5, 6), (5, 7, 4, 10))) == set((4, 5))",
        "assert set(similar_elements((11, 12, 14, 13), (17, 15, 14, 13))) == set((13, 14))",
    ],
    "test": """import numpy as np
from math import inf

def is_floats(x) -> bool:
    return isinstance(x, float) or (isinstance(x, (list, tuple)) and x and all(isinstance(i, float) for i in x))

def assertion(out, exp, atol):
    exact_match = out == exp
    exact_match |= set(out) == set(exp)
    if not exact_match and is_floats(exp):
        assert np.allclose(out, exp, rtol=1e-7, atol=atol)
    else:
        assert exact_match, f"out: {out}, exp: {exp}"

inputs = [[(3, 4, 5, 6), (5, 7, 4, 10)], [(11, 12, 14, 13), (17, 15, 14, 13)], [(), (1,)], [(math.inf,), (inf, 2)]]
results = [(4, 5), (13, 14), (), (inf,)]
for i, (inp, exp) in enumerate(zip(inputs, results)):
    assertion(similar_elements(*inp), exp, 0)
""",
}


def test_mbpp_plus_asks_by_the_first_tests_and_judges_by_all(tmp_path: Path) -> None:
    task = loaded(tmp_path, "mbpp_plus", MBPP_PLUS)
    assert task.problems[0].prompt.endswith(f"```python\n{MBPP_PLUS['test_list'][0]}\n{MBPP_PLUS['test_list'][1]}\n```")
    base_only = "def similar_elements(a, b):\n    return (4, 5) if 4 in a else (13, 14)"
    answers = [task.references["mbpp_plus/0"], block(base_only), block("def similar_elements(a, b): return ()")]
    assert verdicts(task, *answers) == ["right", "wrong output", "wrong output"]


# As in LeetCodeDataset, the text before a solution has names by `import *` and builds lists and trees of plain values.
LEETCODE_START = """from typing import *
from collections import *

class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next

def list_node(values: list):
    node = None
    for val in reversed(values):
        node = ListNode(val, node)
    return node

def is_same_list(a, b):
    while a and b and a.val == b.val:
        a, b = a.next, b.next
    return a is None and b is None

class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val, self.left, self.right = val, left, right

def tree_node(values: list):
    root = TreeNode(values[0])
    waiting = deque([(root, "left"), (root, "right")])
    for val in values[1:]:
        parent, side = waiting.popleft()
        if val is not None:
            setattr(parent, side, node := TreeNode(val))
            waiting.extend([(node, "left"), (node, "right")])
    return root

def is_same_tree(a, b):
    if not a or not b:
        return a is b
    return a.val == b.val and is_same_tree(a.left, b.left) and is_same_tree(a.right, b.right)
"""


def leetcode_row(method: str, completion: str, test: str) -> dict[str, Any]:
    starter = f"class Solution:\n    def {method}(self, head):\n        "
    return {
        "task_id": method,
        "question_id": 3217,
        "difficulty": "Medium",
        "tags": ["Linked List"],
        "problem_description": "Reverse it.",
        "starter_code": starter,
        "estimated_date": "2024-07-14T00:00:00",
        "prompt": LEETCODE_START,
        "completion": completion,
        "entry_point": f"Solution().{method}",
        "test": f"def check(candidate):\n{test}",
        "input_output": [{"input": "head = [1,2,3]", "output": "[3,2,1]"}],
        "query": f"Reverse it. Complete:\n```python\n{starter}\n```",
        "response": f"```python\n{completion}\n```",
    }


REVERSED_LIST = leetcode_row(
    "flip",
    "class Solution:\n    def flip(self, head: Optional[ListNode]) -> Optional[ListNode]:\n        last = None\n"
    "        while head:\n            head.next, last, head = last, head, head.next\n        return last",
    "    assert is_same_list(candidate(head = list_node([1, 2, 3])), list_node([3, 2, 1]))\n"
    "    assert is_same_list(candidate(head = list_node(list(range(5000)))), list_node(list(range(5000))[::-1]))\n"
    "    assert candidate(head = list_node([])) == None\n",
)
MIRRORED_TREE = leetcode_row(
    "mirror",
    "class Solution:\n    def mirror(self, root):\n        if root:\n"
    "            root.left, root.right = self.mirror(root.right), self.mirror(root.left)\n        return root",
    "    assert is_same_tree(candidate(root = tree_node([1, 2, 3, None, 4])), tree_node([1, 3, 2, None, None, 4]))\n",
)


def test_linked_lists_and_trees_of_leetcode_reach_the_submission_and_come_back(tmp_path: Path) -> None:
    task = loaded(tmp_path, "leetcode", REVERSED_LIST, MIRRORED_TREE)
    assert task.problems[0].prompt == REVERSED_LIST["query"]
    assert task.config.groups == ["difficulty"]
    own = "class ListNode:\n    def __init__(self, val=0, next=None):\n        self.val, self.next = val, next\n"
    right = [task.references["leetcode/0"], block(own + REVERSED_LIST["completion"])]
    wrong = {
        "the argument": "def flip(self, head): return head",
        "a circle": "def flip(self, head):\n        last = head\n        while last and last.next: last = last.next\n"
        "        if last: last.next = head\n        return last",
        "nothing": "def flip(self, head): return None",
    }
    answers = right + [block(f"class Solution:\n    {text}") for text in wrong.values()]
    assert verdicts(task, *answers) == ["right", "right", *["wrong output"] * len(wrong)]
    swapped = "class Solution:\n    def mirror(self, root):\n        root.left, root.right = root.right, root.left\n"
    # The test builds its trees by itself: a name that it has by `import *` is not the submission's.
    no_deque = block(f"deque = None\n{MIRRORED_TREE['completion']}")
    answers = [task.references["leetcode/1"], no_deque, block(f"{swapped}        return root")]
    assert verdicts(task, *answers, problem=1) == ["right", "right", "wrong output"]


def test_leetcode_is_a_reward_too_where_its_helpers_are_named() -> None:
    columns = {name: [REVERSED_LIST[name]] for name in ("test", "entry_point", "input_output")}
    answer = block(REVERSED_LIST["completion"])
    assert code(["Reverse it."], [answer], program_start=[LEETCODE_START], **columns) == [1.0]


ALWAYS_EQUAL = "    __eq__ = __ne__ = __lt__ = __bool__ = lambda *a: True\n    __hash__ = object.__hash__\n"
# Replies of its own making for the value 3.
FORGED = """import sys
for module in list(sys.modules.values()):
    if hasattr(module, "NotPlainError"):
        def dumps(value, *more, real=module.dumps):
            return {text!r} if value == 3 else real(value, *more)
        module.dumps = dumps
result = 3"""
CHEATS = {
    "an object that equals everything": f"class A:\n{ALWAYS_EQUAL}    val = next = property(lambda s: s)\nresult = A()",
    "a ListNode that equals everything": f"class ListNode:\n{ALWAYS_EQUAL}result = ListNode()\n"
    "result.val, result.next = 3, None",
    "a value that equals everything": f"class A(int):\n{ALWAYS_EQUAL}result = ListNode(A(0))",
    "an object as value": f"class A:\n{ALWAYS_EQUAL}result = ListNode(A(), ListNode(A(), ListNode(A())))",
    "fields in place of methods": "result = ListNode(3)\nresult.__eq__ = result.__bool__ = bool",
    "a class hidden in a field": "result = ListNode(3)\nresult.__dict__['__class__'] = bool",
    "helpers of its own": "is_same_list = list_node = deque = lambda *a: True\nresult = 3",
    "a circle": FORGED.format(
        text='{"t":"objects","v":[{"t":"object","v":0},[["ListNode",{"val":3,"next":{"t":"object","v":0}}]]]}'
    ),
    "a class that is not shared": FORGED.format(
        text='{"t":"objects","v":[{"t":"object","v":0},[["Solution",{"val":3,"next":null}]]]}'
    ),
}


def test_objects_that_a_submission_forges_pass_no_test(tmp_path: Path) -> None:
    task = loaded(tmp_path, "leetcode", REVERSED_LIST)
    answers = [block(f"{text}\nclass Solution:\n    def flip(self, head): return result") for text in CHEATS.values()]
    found = dict(zip(CHEATS, verdicts(task, *answers), strict=True))
    assert {name: why for name, why in found.items() if why not in ("wrong output", "crashed")} == {}


def packed(value: Any) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def livecodebench_row(name: str | None, public: list[tuple], private: list[tuple], **more: Any) -> dict[str, Any]:
    kind = "functional" if name else "stdin"

    def tests(pairs: list[tuple]) -> str:
        return json.dumps([{"input": i, "output": o, "testtype": kind} for i, o in pairs])

    return {
        "question_title": "A",
        "question_content": "Add the two numbers.",
        "platform": "leetcode" if name else "atcoder",
        "question_id": "3456",
        "contest_id": "weekly-contest-418",
        "contest_date": "2024-10-05T19:30:00",
        "starter_code": f"class Solution:\n    def {name}(self, a: int, b: int) -> float:\n        " if name else "",
        "difficulty": "easy",
        "public_test_cases": tests(public),
        "private_test_cases": packed(tests(private)),
        "metadata": json.dumps({"func_name": name} if name else {}),
        **more,
    }


STDIN = livecodebench_row(None, [("1 2\n", "3\n")], [("5 5\n", "10\n"), ("1 1\n", "2.0\n")])
CALLS = livecodebench_row("add", [("1\n2", "3")], [("5\n5", "10"), ("1\n1", "2.0")])


def test_livecodebench_is_asked_by_its_kind_and_judged_by_public_and_private_tests(tmp_path: Path) -> None:
    plain_private = json.dumps([{"input": "2 2\n", "output": "4\n", "testtype": "stdin"}])
    task = loaded(tmp_path, "livecodebench", STDIN, CALLS, {**STDIN, "private_test_cases": plain_private})
    stdin, calls, _ = (problem.prompt for problem in task.problems)
    assert stdin == (
        "Add the two numbers.\n\nRead from standard input and write to standard output. "
        "Give the Python program in one block of code."
    )
    assert "```python\nclass Solution:\n    def add(self" in calls and "standard input" not in calls
    assert task.config.groups == ["difficulty", "platform"]
    # As in its own harness, numbers are numbers, names by `import *` are there, and recursion is deep.
    deep = "def down(n):\n    return down(n - 1) if n else 0\ndown(30000)\n"
    program = "print(f'{reduce(add, map(int, stdin.readline().split())):.1f}')"
    answers = [block(deep + program), block("print(3)"), block("a, b = input().split()\nprint(a + b)")]
    assert verdicts(task, *answers) == ["right", "wrong output", "wrong output"]
    solution = "class Solution:\n    def add(self, a: int, b: Optional[int]) -> float:\n        return "
    answers = [block(f"{solution}{value}") for value in ("a + b", "float(a + b)", "3", "a * b", "str(a + b)")]
    assert verdicts(task, *answers, problem=1) == ["right", "right", "wrong output", "wrong output", "wrong output"]
    assert verdicts(task, block(program), block("print(3)"), problem=2) == ["right", "wrong output"]


class Planted:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.file}",)


def test_private_tests_are_read_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = packed(Planted(tmp_path / "ran"))
    hidden = packed({"input_output": STDIN["public_test_cases"], "more": Planted(tmp_path / "ran")})
    packs = [
        planted,
        hidden,
        packed([1, 2]),
        "eJ",
        "eJ?",
        packed("x" * 100)[:-20],
        packed("[" * 10**6),
        packed(""),
        packed("{}"),
    ]
    rows = [{**STDIN, "private_test_cases": pack} for pack in packs]
    task = loaded(tmp_path, "livecodebench", STDIN, *rows)
    grader = build_grader(task.config.reward, task.config.options)
    why = [grader.unreadable(problem) for problem in task.problems]
    assert why[0] is None
    assert "a pickle that does more than hold a text" in str(why[1]) and "Nothing of it was run" in str(why[2])
    assert all(why[1:]), why
    monkeypatch.setattr("rewards.programs.datasets.MAX_TEST_BYTES", 1 << 20)
    bomb = livecodebench_row(None, [("1 2\n", "3\n")], [("0" * (2 << 20), "3\n")])
    with pytest.raises(ValueError, match=r"packed tests \(\d+ characters\) are larger than 1 MiB when unpacked"):
        read_tests(bomb["private_test_cases"])
    grader.close()
    assert not (tmp_path / "ran").exists()


def test_window_of_contests_is_chosen_from_files_of_the_repository(tmp_path: Path) -> None:
    dates = {
        "test3.jsonl": ["2023-05-01T00:00:00", "2024-07-31T23:59:59"],
        "test4.jsonl": ["2024-08-01T00:00:00", "2024-12-31T12:00:00"],
        "test5.jsonl": ["2025-01-31T00:00:00", "2025-02-01T00:00:00"],
        "test6.jsonl": ["2024-09-01T00:00:00"],
    }
    (tmp_path / "livecodebench").mkdir()
    (tmp_path / "livecodebench/code_generation_lite.py").write_text("raise AssertionError('a script was run')")
    for file, days in dates.items():
        rows = [json.dumps({**STDIN, "contest_date": day, "question_title": f"of {day}"}) + "\n" for day in days]
        (tmp_path / "livecodebench" / file).write_text("".join(rows))
    wanted = ["2024-08-01T00:00:00", "2024-12-31T12:00:00", "2025-01-31T00:00:00"]
    task = load_task("livecodebench", data_dir=tmp_path)
    assert [problem.columns["question_title"] for problem in task.problems] == [f"of {day}" for day in wanted]
    assert [problem.id for problem in task.problems] == [f"livecodebench/{row}" for row in (2, 3, 4)]
    assert len(load_task("livecodebench", data_dir=tmp_path, limit=2).problems) == 2
    # The same of a repository's folder, with a window of one's own.
    entry = {**builtin_tasks()["livecodebench"], "dataset_name": str(tmp_path / "livecodebench")}

    def of(**more: Any) -> Task:
        return load_task("mine", {"mine": TaskConfig.model_validate({**entry, **more})})

    assert len(of().problems) == 3
    assert len(of(where={"contest_date": ["2024-08-01", "2025-03-01"]}, dataset_files=["test5.jsonl"]).problems) == 2
    with pytest.raises(ValueError, match=r"where={'contest_date': \['2026', '2027'\]}: .* has no such row"):
        of(where={"contest_date": ["2026", "2027"]})
    with pytest.raises(ValueError, match=r"row 0 of .* holds '2023-05-01T00:00:00', which cannot be compared"):
        of(where={"contest_date": [2024, 2025]})
    with pytest.raises(ValueError, match="has no column 'date'"):
        of(where={"date": ["2024", "2025"]})
    with pytest.raises(ValueError, match=r"all files must have the same format, one of .json, .jsonl, .parquet"):
        of(dataset_files=["test3.jsonl", "test4.csv"])


CODE_CONTESTS = {
    "name": "1548_A. Sum",
    "description": "Print the mean of two integers.",
    "public_tests": {"input": ["1 2\n"], "output": ["1.5000000\n"]},
    "private_tests": {"input": ["1000000 1000002\n"], "output": ["1000001\n"]},
    "generated_tests": {"input": ["4 4\n", "7 8\n"], "output": ["4\n", "7.5000000\n"]},
    "source": 2,
    "difficulty": 7,
    "solutions": {"language": [3], "solution": ["print(sum(map(int, input().split())) / 2)"]},
    "time_limit": {"seconds": 1, "nanos": 500_000_000},
    "memory_limit_bytes": 256_000_000,
    "input_file": "",
    "output_file": "",
}


def test_code_contests_are_judged_by_all_their_tests_within_their_limits(tmp_path: Path) -> None:
    from_file = {**CODE_CONTESTS, "input_file": "sum.in", "output_file": "sum.out"}
    unlimited = {**CODE_CONTESTS, "time_limit": None, "memory_limit_bytes": 0}
    task = loaded(tmp_path, "code_contests", CODE_CONTESTS, from_file, unlimited)
    program = "a, b = map(int, input().split())\nprint((a + b) / 2)"
    mean = "a, b = map(int, input().split())\nprint({})"
    answers = {
        block(program): "right",
        block(program + "\nx = bytearray(b'1') * 350_000_000"): "memory",
        block(program + "\nfor _ in range(10**10): pass"): "timeout",
        block("print({'1 2': 1.5}.get(input(), 1000001))"): "wrong output",  # passes public and private tests
        block(mean.format("(a + b) // 2 if a > 9 else (a + b) / 2")): "right",
        block(mean.format("(a + b) // 2 + 1 if a > 9 else (a + b) / 2")): "wrong output",  # 1000002, not 1000001
        block(mean.format("(a + b) / 2 + (a == 7) / 1e4")): "wrong output",
    }
    assert verdicts(task, *answers) == list(answers.values())
    assert verdicts(task, block(program), problem=1) == [None]
    assert verdicts(task, block(program), problem=2) == ["right"]
    grader = build_grader(task.config.reward, task.config.options)
    assert "is to read the file 'sum.in'" in str(grader.unreadable(task.problems[1]))
    grader.close()
    count = {"input": ["1\n"], "output": ["1000000\n"]}
    whole = {**CODE_CONTESTS, "public_tests": count, "private_tests": count, "generated_tests": count}
    task = loaded(tmp_path, "code_contests", whole)
    assert verdicts(task, block("print(10**6)"), block("print(10**6 + 0.5)")) == ["right", "wrong output"]
    limits = usual_columns(["q"], {name: [value] for name, value in CODE_CONTESTS.items()})[0]
    assert (limits.time_limit, limits.memory_mb, len(limits)) == (1.5, 244, 4)


@pytest.mark.skipif(not DATA.is_dir(), reason="no copies of the public sets beside the checkout")
def test_other_copies_of_the_sets_are_read_and_judged() -> None:
    livecodebench = load_task("livecodebench", data_dir=DATA)
    assert len(livecodebench.problems) == 3 and livecodebench.config.groups == []
    three_cards = (
        "for _ in range(int(input())):\n    s = input()\n    print('YES' if sum(map(ne, s, 'abc')) < 3 else 'NO')"
    )
    seniors = "class Solution:\n    def countSeniors(self, d: List[str]) -> int:\n        "
    assert verdicts(livecodebench, block(three_cards), block("print('YES')")) == ["right", "wrong output"]
    answers = [block(f"{seniors}return sum(int(x[11:13]) > {age} for x in d)") for age in (60, 40)]
    assert verdicts(livecodebench, *answers, problem=1) == ["right", "wrong output"]
    leetcode = load_task("leetcode", data_dir=DATA, limit=3)
    assert [verdicts(leetcode, leetcode.references[p.id], problem=i) for i, p in enumerate(leetcode.problems)] == [
        ["right"], ["right"], ["right"]
    ]  # fmt: skip
    contests = load_task("code_contests", data_dir=DATA)
    assert len(contests.problems) == 165 and all(verdicts(contests, "none", problem=i) for i in range(2))


def test_reference_answers_of_code_tasks_go_the_whole_way(tmp_path: Path) -> None:
    loaded(tmp_path, "mbpp_plus", MBPP_PLUS)
    loaded(tmp_path, "leetcode", REVERSED_LIST, MIRRORED_TREE)
    tasks = ["mbpp_plus", "leetcode"]
    engine, output = {"name": "reference"}, str(tmp_path / "run")
    results = grpo.evaluate(model="reference", tasks=tasks, engine=engine, data_dir=str(tmp_path), output=output)
    assert [results.tasks[name]["metrics"]["pass@1"] for name in tasks] == [1.0, 1.0]
    assert list(results.tasks["leetcode"]["groups"]["difficulty"]) == ["Medium"]
