"""Code tasks graded by calling a function, on rows in the Hub's format: MBPP+ and LeetCode."""

from pathlib import Path
from typing import Any

import grpo
from rewards import code
from tests.grpo.evaluation.tasks.code_tasks import block, loaded, verdicts

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


def test_mbpp_plus_shows_the_first_tests_and_grades_with_all(tmp_path: Path) -> None:
    task = loaded(tmp_path, "mbpp_plus", MBPP_PLUS)
    assert task.problems[0].prompt.endswith(f"```python\n{MBPP_PLUS['test_list'][0]}\n{MBPP_PLUS['test_list'][1]}\n```")
    base_only = "def similar_elements(a, b):\n    return (4, 5) if 4 in a else (13, 14)"
    answers = [task.references["mbpp_plus/0"], block(base_only), block("def similar_elements(a, b): return ()")]
    assert verdicts(task, *answers) == ["right", "wrong output", "wrong output"]


# As in LeetCodeDataset, the code before a solution imports names with `import *` and has helpers for lists and trees.
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


def test_leetcode_passes_linked_lists_and_trees_to_submissions_and_back(tmp_path: Path) -> None:
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
    # The test builds its trees itself: rebinding a name that it got by `import *` has no effect on it.
    no_deque = block(f"deque = None\n{MIRRORED_TREE['completion']}")
    answers = [task.references["leetcode/1"], no_deque, block(f"{swapped}        return root")]
    assert verdicts(task, *answers, problem=1) == ["right", "right", "wrong output"]


def test_leetcode_rows_work_as_a_training_reward() -> None:
    columns = {name: [REVERSED_LIST[name]] for name in ("test", "entry_point", "input_output")}
    answer = block(REVERSED_LIST["completion"])
    assert code(["Reverse it."], [answer], program_start=[LEETCODE_START], **columns) == [1.0]


ALWAYS_EQUAL = "    __eq__ = __ne__ = __lt__ = __bool__ = lambda *a: True\n    __hash__ = object.__hash__\n"
# Forges the sandbox's reply for the value 3.
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


def test_forged_objects_pass_no_test(tmp_path: Path) -> None:
    task = loaded(tmp_path, "leetcode", REVERSED_LIST)
    answers = [block(f"{text}\nclass Solution:\n    def flip(self, head): return result") for text in CHEATS.values()]
    found = dict(zip(CHEATS, verdicts(task, *answers), strict=True))
    assert {name: why for name, why in found.items() if why not in ("wrong output", "crashed")} == {}


def test_reference_completions_of_code_tasks_pass(tmp_path: Path) -> None:
    loaded(tmp_path, "mbpp_plus", MBPP_PLUS)
    loaded(tmp_path, "leetcode", REVERSED_LIST, MIRRORED_TREE)
    tasks = ["mbpp_plus", "leetcode"]
    engine, output = {"name": "reference"}, str(tmp_path / "run")
    results = grpo.evaluate(model="reference", tasks=tasks, engine=engine, data_dir=str(tmp_path), output=output)
    assert [results.tasks[name]["metrics"]["pass@1"] for name in tasks] == [1.0, 1.0]
    assert list(results.tasks["leetcode"]["groups"]["difficulty"]) == ["Medium"]
