"""Answers that others wrote, judged by the checker of a task: a .jsonl file becomes the folder of an evaluation."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grpo.evaluation.grading import build_grader, check_columns
from grpo.evaluation.regrade import Regraded, check_output, judge_again, write_regraded
from grpo.evaluation.results.samples import key_of, write_problems
from grpo.evaluation.results.write import Results, task_results
from grpo.evaluation.tasks import Task, fill, find_task, load_task
from grpo.report.records import Row
from rollout.types import Problem


def regrade_file(
    path: Path,
    task: str,
    *,
    output: Path,
    columns: Mapping[str, str],
    key: str | None = None,
    data_dir: Path | None = None,
    wrap: str = "{completion}",
    options: Mapping[str, Any] | None = None,
) -> Regraded:
    """Judge a .jsonl file that others wrote by the checker of a task.

    columns: ours -> theirs. `completion` is the answer or a list of answers; `problem_id` tells problems apart
        (default: each line is one); `score` is the verdict of whoever wrote the file; the rest is what the checker
        reads, such as `solution`.
    key: join the task's own dataset, by this column of both (its part after a /), when the file lacks what the checker
        reads.
    wrap: what stands around a completion, such as a fence around bare programs.
    """
    if "completion" not in columns:
        raise ValueError(f"columns={dict(columns)}: name the column with the answers: completion=…")
    check_output(output)
    name, config = find_task(task, {})
    joined = _by_key(load_task(task, data_dir=data_dir), key) if key else {}
    problems: dict[str, Problem] = {}
    rows: list[Row] = []
    counts: Counter[str] = Counter()
    for number, line in _lines(path):
        try:
            problem, answers = _read_line(line, number, name, columns, key, joined)
            if problems.setdefault(problem.id, problem) != problem:
                raise ValueError(
                    f"{problem.id} had other columns in a line before, {problem.columns!s:.300} now. Name a column "
                    "that tells problems apart: --columns problem_id=…"
                )
            for completion, score in answers:
                text = fill(wrap, {"completion": completion})
                rows.append(_row(name, problem, counts[problem.id], text, score))
                counts[problem.id] += 1
        except ValueError as error:
            raise ValueError(f"{path}, line {number + 1}: {error}") from None
    if not rows:
        raise ValueError(f"{path} holds no answers.")
    used = {**config.options, **(options or {})}
    check_columns(name, config.reward, used, next(iter(problems.values())).columns)
    grader = build_grader(config.reward, used)
    judged = judge_again(rows, problems, grader)
    groups = [group for group in config.groups if all(group in problem.columns for problem in problems.values())]
    entry = {
        **task_results(judged, problems, grader, groups=groups),
        "reward": config.reward,
        "options": used,
        "dataset": {"name": path.name, "sha": None},
    }
    grader.close()
    output.mkdir(parents=True, exist_ok=True)
    write_problems(output, [(name, list(problems.values()))])
    results = Results(path.name, "answers of others, judged again", {name: entry}, output)
    theirs = {None: None, True: "right", False: "wrong"}
    return write_regraded(results, judged, {key_of(row): theirs[row["published"]] for row in rows})


def _read_line(
    line: Row, number: int, task: str, columns: Mapping[str, str], key: str | None, joined: Mapping[str, Problem]
) -> tuple[Problem, list[tuple[Any, Any]]]:
    """The problem of a line, and its answers with their scores."""
    for ours, theirs in columns.items():
        if theirs not in line:
            raise ValueError(f"no column {theirs!r} (for {ours!r}). It has: {', '.join(line)}.")
    found = {ours: line[theirs] for ours, theirs in columns.items()}
    completions, scores = found.pop("completion"), found.pop("score", None)
    problem_id, prompt = f"{task}/{found.pop('problem_id', number)}", str(found.pop("prompt", ""))
    problem = Problem(id=problem_id, prompt=prompt, columns=found)
    if key:
        if (ours := joined.get(_last_part(line.get(key)))) is None:
            raise ValueError(
                f"{key}={line.get(key)!r} is no problem of task {task!r}. Name a column that is in both: --key. Here "
                f"are: {', '.join(line)}."
            )
        problem = Problem(id=ours.id, prompt=ours.prompt, columns={**ours.columns, **found})
    completions = completions if isinstance(completions, list) else [completions]
    completions = ["" if text is None else text for text in completions]  # a server's word for an empty answer
    scores = scores if isinstance(scores, list) else [scores] * len(completions)
    if len(scores) != len(completions):
        raise ValueError(f"{len(completions)} completions and {len(scores)} scores.")
    return problem, list(zip(completions, scores, strict=True))


def _row(task: str, problem: Problem, sample: int, completion: str, score: Any) -> Row:
    """A row of samples.jsonl before it is judged; `published` is the verdict of others."""
    return {
        "task": task,
        "problem_id": problem.id,
        "sample": sample,
        "seed": None,
        "prompt": problem.prompt,
        "completion": completion,
        "num_tokens": 0,
        "finish_reason": "stop",
        "gold": None,
        "published": None if score is None else _is_right(score),
    }


def _lines(path: Path) -> Iterator[tuple[int, Row]]:
    """Each line that is not blank, with its number from 0 on."""
    with path.open(encoding="utf-8") as lines:
        for number, text in enumerate(lines):
            try:
                line = json.loads(text) if text.strip() else None
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number + 1} is not JSON: {error}") from error
            if line is not None:
                yield number, line


def _by_key(task: Task, key: str) -> dict[str, Problem]:
    if key not in task.problems[0].columns:
        has = ", ".join(task.problems[0].columns)
        raise ValueError(f"key={key!r}: the dataset of task {task.name!r} has no such column. It has: {has}.")
    return {_last_part(problem.columns[key]): problem for problem in task.problems}


def _last_part(value: Any) -> str:
    """ "Mbpp/2" and 2 are the same problem."""
    return str(value).rpartition("/")[2]


def _is_right(score: Any) -> bool:
    """Their verdict: true, 1, "pass", …; a text that says none of these is wrong."""
    if not isinstance(score, str | int | float):
        raise ValueError(f"score={score!r}: a verdict is true or false, a number or a text. Name another column.")
    return (
        score.lower() in ("pass", "passed", "true", "right", "correct", "1") if isinstance(score, str) else score > 0.5
    )
