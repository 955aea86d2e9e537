"""Grade externally generated completions: a .jsonl file becomes an evaluation's folder."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grpo.evaluation.grading import build_grader, check_columns
from grpo.evaluation.regrade import Regraded, check_output, grade_again, write_regraded
from grpo.evaluation.results.graded import key_of
from grpo.evaluation.results.samples import write_problems
from grpo.evaluation.results.store import Results
from grpo.evaluation.results.summary import summarize_task
from grpo.evaluation.tasks.load import Task, fill, find_task, load_task
from grpo.report.records import Row
from rollout.types import Problem


def grade_file(
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
    """Grade a .jsonl file of external completions with a task's grader.

    Args:
        columns: our name -> the file's. `completion` is a completion or a list of them; `problem_id` identifies the
            problem (default: each line is its own problem); `score` is the file's own verdict; all others are columns
            for the grader, such as `solution`.
        key: if the file lacks the grader's columns, join the task's dataset on this column, which both must have.
            Values that differ as a whole are compared by their parts after the last slash.
        data_dir: folder with local dataset copies, for `key`.
        wrap: text to put around each {completion}, such as a code fence around bare programs.
        options: override the task's grading options.

    Raises:
        ValueError: a line is malformed (with its number), a column is missing, or `output` has files that would be
            overwritten.
    """
    if "completion" not in columns:
        raise ValueError(f"columns={dict(columns)}: must name the column with the completions: completion=…")
    check_output(output)
    name, config = find_task(task, {})
    joined = _Joined(load_task(task, data_dir=data_dir), key) if key else None
    problems: dict[str, Problem] = {}
    rows: list[Row] = []
    counts: Counter[str] = Counter()
    for number, line in _lines(path):
        try:
            problem, completions = _read_line(line, number, name, columns, joined)
            if problems.setdefault(problem.id, problem) != problem:
                raise ValueError(
                    f"{problem.id} has columns {problem.columns!s:.300}, but different ones in an earlier line. Name a "
                    "column that identifies the problem: --columns problem_id=…"
                )
            for completion, score in completions:
                text = fill(wrap, {"completion": completion})
                rows.append(_row(name, problem, counts[problem.id], text, score))
                counts[problem.id] += 1
        except ValueError as error:
            raise ValueError(f"{path}, line {number + 1}: {error}") from None
    if not rows:
        raise ValueError(f"{path} has no completions. Choose a file with one JSON object per line.")
    used = {**config.options, **(options or {})}
    check_columns(name, config.reward, used, next(iter(problems.values())).columns)
    grader = build_grader(config.reward, used)
    graded = grade_again(rows, problems, grader)
    groups = [group for group in config.groups if all(group in problem.columns for problem in problems.values())]
    entry = {
        **summarize_task(graded, problems, groups=groups, grader=grader),
        "reward": config.reward,
        "options": used,
        "dataset": {"name": path.name, "sha": None},
    }
    grader.close()
    output.mkdir(parents=True, exist_ok=True)
    write_problems(output, [(name, list(problems.values()))])
    results = Results(path.name, "external completions, graded", {name: entry}, output)
    published = {None: None, True: "right", False: "wrong"}
    return write_regraded(results, graded, {key_of(row): published[row["published"]] for row in rows})


def _read_line(
    line: Row, number: int, task: str, columns: Mapping[str, str], joined: "_Joined | None"
) -> tuple[Problem, list[tuple[Any, Any]]]:
    """A line's problem, and its completions with their scores."""
    for ours, theirs in columns.items():
        if theirs not in line:
            raise ValueError(f"no column {theirs!r} (for {ours!r}). Columns: {', '.join(line)}.")
    found = {ours: line[theirs] for ours, theirs in columns.items()}
    completions, scores = found.pop("completion"), found.pop("score", None)
    problem_id, prompt = f"{task}/{found.pop('problem_id', number)}", str(found.pop("prompt", ""))
    problem = Problem(id=problem_id, prompt=prompt, columns=found)
    if joined:
        ours = joined.problem(line)
        problem = Problem(id=ours.id, prompt=ours.prompt, columns={**ours.columns, **found})
    completions = completions if isinstance(completions, list) else [completions]
    completions = ["" if text is None else text for text in completions]  # null: an empty completion
    scores = scores if isinstance(scores, list) else [scores] * len(completions)
    if len(scores) != len(completions):
        raise ValueError(f"{len(completions)} completions but {len(scores)} scores. Give each its score, or all one.")
    return problem, list(zip(completions, scores, strict=True))


def _row(task: str, problem: Problem, sample: int, completion: str, score: Any) -> Row:
    """A row of samples.jsonl before grading; `published` is the file's own verdict."""
    return {
        "task": task,
        "problem_id": problem.id,
        "sample": sample,
        "seed": None,
        "prompt": problem.prompt,
        "completion": completion,
        "num_tokens": 0,
        "finish_reason": "stop",
        "reference_answer": None,
        "published": None if score is None else _is_right(score),
    }


def _lines(path: Path) -> Iterator[tuple[int, Row]]:
    """Each non-blank line's content with its 0-based number."""
    with path.open("rb") as lines:
        for number, text in enumerate(lines):
            try:
                line = json.loads(text) if text.strip() else None
            except ValueError as error:  # JSONDecodeError or UnicodeDecodeError
                raise ValueError(f"{path}, line {number + 1} is not JSON: {error}") from error
            if line is not None:
                yield number, line


class _Joined:
    """A task's problems by a column that a file has as well.

    A value that the dataset lacks matches by its part after the last slash, which makes "Mbpp/2" and 2 the same
    problem, where that part belongs to a single problem of the dataset and to a single value of the file.
    """

    def __init__(self, task: Task, key: str) -> None:
        if key not in task.problems[0].columns:
            has = ", ".join(task.problems[0].columns)
            raise ValueError(f"key={key!r}: task {task.name!r}'s dataset has no such column. Columns: {has}.")
        self._task, self._key = task.name, key
        self._whole: dict[str, Problem] = {}
        self._last: dict[str, Problem | None] = {}  # None: of several problems
        self._matched: dict[str, str] = {}  # problem id -> the file's value
        for problem in task.problems:
            value = str(problem.columns[key])
            if (other := self._whole.setdefault(value, problem)) is not problem:
                raise ValueError(
                    f"key={key!r}: {other.id} and {problem.id} both have {value!r}. Set --key to a column that "
                    "identifies a problem."
                )
            last = _last_part(value)
            self._last[last] = None if last in self._last else problem

    def problem(self, line: Row) -> Problem:
        """The task's problem that a line of the file is about."""
        value = str(line.get(self._key))
        found = self._whole.get(value) or self._last.get(_last_part(value))
        if found is None:
            raise ValueError(
                f"{self._key}={line.get(self._key)!r} matches no problem of task {self._task!r}, or by its last part "
                f"several. Set --key to a column that both the task's dataset and the file have. The file's columns: "
                f"{', '.join(line)}."
            )
        if (before := self._matched.setdefault(found.id, value)) != value:
            raise ValueError(
                f"{self._key}={value!r} matches {found.id} by its last part, and so did {before!r} in an earlier line. "
                "Set --key to a column with equal values in the task's dataset and the file."
            )
        return found


def _last_part(value: str) -> str:
    return value.rpartition("/")[2]


def _is_right(score: Any) -> bool:
    """Whether a score means right: true, above 0.5, "pass", …; any other text means wrong."""
    if not isinstance(score, str | int | float):
        raise ValueError(f"score={score!r}: must be true, false, a number or text. Name another column.")
    return (
        score.lower() in ("pass", "passed", "true", "right", "correct", "1") if isinstance(score, str) else score > 0.5
    )
