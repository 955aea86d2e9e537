"""Judging kept samples again, without generating: those of an evaluation, or a file that others wrote.

What is judged again has its token counts but not its tokens: a reward that reads completion_ids sees as many zeros.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.evaluation.grading import Grader, build_grader, check_columns
from grpo.evaluation.page import write_page
from grpo.evaluation.results import Results, task_results
from grpo.evaluation.samples import (
    SAMPLES_FILE,
    judgement,
    key_of,
    read_problems,
    read_samples,
    write_problems,
    write_rows,
)
from grpo.evaluation.summary import by_problem
from grpo.evaluation.tasks import Task, fill, find_task, load_task
from grpo.records import Row
from rollout.types import Completion, Group, Problem

CHANGES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Regraded:
    """New figures, and what is judged otherwise than before (or than the file's own score).

    Regraded(results, [{"task": "gsm8k", "problem_id": "gsm8k/3", "sample": 0, "before": "wrong", "now": "right", …}])
    """

    results: Results
    changes: list[Row]


def regrade(
    folder: Path, *, output: Path | None = None, reward: str | None = None, options: Mapping[str, Any] | None = None
) -> Regraded:
    """Judge the samples of an evaluation's folder again.

    output: where everything is written; None: into the folder, whose samples.jsonl stays as samples.jsonl.previous.
    reward, options: another checker, or other options of it, than the evaluation used.
    """
    before = Results.read(folder)
    problems, rows, tasks = read_problems(folder), [], {}
    for name, task in before.tasks.items():
        mine = [row for row in read_samples(folder) if row["task"] == name]
        used = dict(options or {}) if reward else {**task["options"], **(options or {})}
        grader = build_grader(reward or task["reward"], used)
        judged = _judged(mine, problems, grader)
        here = {key: problem for key, problem in problems.items() if key in {row["problem_id"] for row in mine}}
        tasks[name] = {
            **task,
            "reward": reward or task["reward"],
            "options": used,
            **task_results(judged, here, grader, groups=list(task["groups"])),
        }
        rows += judged
        grader.close()
    if output is None or output == folder:
        output = folder
        (folder / SAMPLES_FILE).replace(folder / f"{SAMPLES_FILE}.previous")
        old = {key_of(row): row["verdict"] for row in _rows(folder / f"{SAMPLES_FILE}.previous")}
    else:
        output.mkdir(parents=True, exist_ok=True)
        old = {key_of(row): row["verdict"] for row in read_samples(folder)}
        write_problems(
            output, [(name, [p for p in problems.values() if p.id.startswith(f"{name}/")]) for name in tasks]
        )
    results = Results(before.model, before.protocol, tasks, output)
    return _written(results, rows, old)


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
    name, config = find_task(task, {})
    joined = _by_key(load_task(task, data_dir=data_dir), key) if key else {}
    problems: dict[str, Problem] = {}
    rows: list[Row] = []
    for number, line in enumerate(_rows(path)):
        _check_file_columns(path, columns, line)
        found = {ours: line[theirs] for ours, theirs in columns.items()}
        completions, scores = found.pop("completion"), found.pop("score", None)
        problem_id = f"{name}/{found.pop('problem_id', number)}"
        prompt = str(found.pop("prompt", ""))
        if key:
            problem = joined[_last_part(line[key])]
            found, prompt, problem_id = {**problem.columns, **found}, str(problem.prompt), problem.id
        problems.setdefault(problem_id, Problem(id=problem_id, prompt=prompt, columns=found))
        completions = completions if isinstance(completions, list) else [completions]
        scores = scores if isinstance(scores, list) else [scores] * len(completions)
        first = sum(row["problem_id"] == problem_id for row in rows[-1000:])
        rows += [
            {
                "task": name,
                "problem_id": problem_id,
                "sample": first + index,
                "seed": None,
                "prompt": prompt,
                "completion": fill(wrap, {"completion": completion}),
                "num_tokens": 0,
                "finish_reason": "stop",
                "gold": None,
                "published": None if score is None else _is_right(score),
            }
            for index, (completion, score) in enumerate(zip(completions, scores, strict=True))
        ]
    used = {**config.options, **(options or {})}
    check_columns(name, config.reward, used, next(iter(problems.values())).columns)
    grader = build_grader(config.reward, used)
    judged = _judged(rows, problems, grader)
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
    old = {key_of(row): {None: None, True: "right", False: "wrong"}[row["published"]] for row in rows}
    return _written(results, judged, old)


def describe(changes: Sequence[Row], total: int) -> str:
    """Which verdicts changed, in words."""
    if not changes:
        return f"All {total} verdicts are as before."
    kinds = Counter((change["before"], change["now"]) for change in changes)
    lines = [f"{len(changes)} of {total} verdicts changed:"]
    lines += [f"  {count} from {before} to {now}" for (before, now), count in kinds.most_common()]
    for change in changes[:CHANGES_SHOWN]:
        why = f" ({change['reason']})" if change["reason"] else ""
        lines.append(
            f"  {change['problem_id']}#{change['sample']}: {change['before']} -> {change['now']}{why}; "
            f"answer {change['answer']!r:.80}, gold {change['gold']!r:.80}"
        )
    if len(changes) > CHANGES_SHOWN:
        lines.append(f"  … all of them are in {'changes.jsonl'}")
    return "\n".join(lines)


def _judged(rows: Sequence[Row], problems: Mapping[str, Problem], grader: Grader) -> list[Row]:
    """The rows with new verdicts, in order."""
    samples = by_problem(rows)
    missing = [s[0]["problem_id"] for s in samples if s[0]["problem_id"] not in problems]
    if missing:
        raise ValueError(
            f"problems.jsonl lacks {missing[:5]} ({len(missing)} in all), whose samples it should explain."
        )
    groups = [
        Group(
            problem=problems[rows_of_one[0]["problem_id"]],
            prompt_ids=[],
            completions=[
                Completion(
                    token_ids=[0] * row["num_tokens"],
                    logprobs=[],
                    text=row["completion"],
                    finish_reason=row["finish_reason"],
                    policy_version=0,
                )
                for row in rows_of_one
            ],
        )
        for rows_of_one in samples
    ]
    new: dict[tuple[str, int], Row] = {}
    by_id = {rows_of_one[0]["problem_id"]: rows_of_one for rows_of_one in samples}
    for graded in grader.grade(groups):
        problem = graded.group.problem
        for index, row in enumerate(by_id[problem.id]):
            new[key_of(row)] = {**row, "gold": grader.gold(problem), **judgement(graded, index)}
    return [new[key_of(row)] for row in rows]


def _written(results: Results, rows: Sequence[Row], old: Mapping[tuple[str, int], str | None]) -> Regraded:
    changes = [
        {
            **{name: row[name] for name in ("task", "problem_id", "sample", "answer", "gold", "reason")},
            "before": old[key_of(row)],
            "now": row["verdict"],
        }
        for row in rows
        if old[key_of(row)] != row["verdict"] and (old[key_of(row)] is not None or "published" not in row)
    ]
    write_rows(results.folder / SAMPLES_FILE, rows)
    write_rows(results.folder / "changes.jsonl", changes)
    results.write()
    write_page(results, rows)
    return Regraded(results, changes)


def _rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _check_file_columns(path: Path, columns: Mapping[str, str], line: Row) -> None:
    for ours, theirs in columns.items():
        if theirs not in line:
            raise ValueError(f"{path}: no column {theirs!r} (for {ours!r}). It has: {', '.join(line)}.")


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
    return (
        score.lower() in ("pass", "passed", "true", "right", "correct", "1") if isinstance(score, str) else score > 0.5
    )
