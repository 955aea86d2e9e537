"""The code tasks of `grpo eval` on rows as the Hub has them: how they are asked, what passes and what does not."""

import json
from pathlib import Path
from typing import Any

from grpo.evaluation.grading import build_grader
from grpo.evaluation.tasks import Task, load_task
from rollout.types import Completion, Group


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
