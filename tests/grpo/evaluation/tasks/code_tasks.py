"""Helpers for the code tasks: load rows as a task, and grade programs with the task's own grader."""

import json
from pathlib import Path
from typing import Any

from grpo.evaluation.grading import build_grader
from grpo.evaluation.tasks.load import Task, load_task
from rollout.types import Completion, Group

DATA = Path(__file__).parents[5] / "shared" / "data" / "eval"


def loaded(folder: Path, name: str, *rows: dict[str, Any]) -> Task:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_task(name, data_dir=folder)


def verdicts(task: Task, *texts: str, problem: int = 0) -> list[str | None]:
    """Grade completions of one problem: "right", or why not; None: it cannot be graded."""
    completions = [
        Completion(token_ids=[], logprobs=[], text=text, finish_reason="stop", policy_version=0) for text in texts
    ]
    grader = build_grader(task.config.reward, task.config.options)
    (graded,) = grader.grade([Group(problem=task.problems[problem], prompt_ids=[], completions=completions)])
    grader.close()
    return [None if v is None else v.reason.partition(":")[0] or v.outcome for v in graded.verdicts]


def block(source: str) -> str:
    return f"```python\n{source}\n```"
