"""Judging the samples of an evaluation again, without generating.

What is judged again has its token counts but not its tokens: a reward that reads completion_ids sees as many zeros.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.evaluation.grading import Grader, build_grader
from grpo.evaluation.results.page import write_page
from grpo.evaluation.results.samples import (
    SAMPLES_FILE,
    counted_samples,
    judgement,
    key_of,
    read_asked,
    read_problems,
    read_samples,
    write_asked,
    write_problems,
    write_rows,
)
from grpo.evaluation.results.summary import by_problem
from grpo.evaluation.results.write import Results, task_results
from grpo.report.page import RECIPE_FILE
from grpo.report.records import Row
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
    if output is not None and output != folder:
        check_output(output)
    before = Results.read(folder)
    kept, asked = read_samples(folder), read_asked(folder)
    counts = {key_of(row) for row in counted_samples(folder, before.tasks)}
    problems, tasks, rows = read_problems(folder), {}, []
    others = [row for row in kept if row["task"] not in before.tasks]  # of an earlier call with other tasks
    for name, task in before.tasks.items():
        used = dict(options or {}) if reward else {**task["options"], **(options or {})}
        judge = {"reward": reward or task["reward"], "options": used}
        grader = build_grader(judge["reward"], used)
        judged = judge_again([row for row in kept if row["task"] == name], problems, grader)
        mine = [row for row in judged if key_of(row) in counts]
        here = {key: problems[key] for key in dict.fromkeys(row["problem_id"] for row in mine)}
        tasks[name] = {**task, **judge, **task_results(mine, here, grader, groups=list(task["groups"]))}
        if name in asked["tasks"]:
            asked["tasks"][name] |= judge
        rows += mine
        others += [row for row in judged if key_of(row) not in counts]
        grader.close()
    if output is None or output == folder:
        output = folder
        (folder / SAMPLES_FILE).replace(folder / f"{SAMPLES_FILE}.previous")
        write_asked(folder, asked["weights"], asked["tasks"])
    else:
        output.mkdir(parents=True, exist_ok=True)
        write_problems(
            output, [(name, [p for p in problems.values() if p.id.startswith(f"{name}/")]) for name in tasks]
        )
        others = []
    results = Results(before.model, before.protocol, tasks, output)
    return write_regraded(results, rows, {key_of(row): row["verdict"] for row in kept}, others)


def check_output(output: Path) -> None:
    """ValueError for the folder of an evaluation, whose samples others would replace."""
    if (output / RECIPE_FILE).is_file():
        raise ValueError(
            f"output={str(output)!r} is the folder of an evaluation, and its samples would be lost. Choose another."
        )


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
        lines.append("  … all of them are in changes.jsonl")
    return "\n".join(lines)


def judge_again(rows: Sequence[Row], problems: Mapping[str, Problem], grader: Grader) -> list[Row]:
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


def write_regraded(
    results: Results, rows: Sequence[Row], old: Mapping[tuple[str, int], str | None], others: Sequence[Row] = ()
) -> Regraded:
    """Write the folder of results; others: rows that the figures are not of."""
    changes = [
        {
            **{name: row[name] for name in ("task", "problem_id", "sample", "answer", "gold", "reason")},
            "before": old[key_of(row)],
            "now": row["verdict"],
        }
        for row in rows
        if old[key_of(row)] != row["verdict"] and (old[key_of(row)] is not None or "published" not in row)
    ]
    place = {key: index for index, key in enumerate(old)}
    write_rows(results.folder / SAMPLES_FILE, sorted([*rows, *others], key=lambda row: place[key_of(row)]))
    write_rows(results.folder / "changes.jsonl", changes)
    results.write()
    write_page(results, rows)
    return Regraded(results, changes)
