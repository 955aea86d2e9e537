"""Regrade an evaluation's samples without generating.

Samples on disk have token counts but no token ids, so a reward that reads completion_ids gets that many zeros.
"""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.evaluation.grading import Grader, build_grader
from grpo.evaluation.results.graded import SampleKey, key_of
from grpo.evaluation.results.page import write_page
from grpo.evaluation.results.samples import (
    PROBLEMS_FILE,
    SAMPLES_FILE,
    read_manifest,
    read_problems,
    read_samples,
    reported_samples,
    write_manifest,
    write_problems,
    write_rows,
)
from grpo.evaluation.results.store import RESULTS_FILE, Results
from grpo.evaluation.results.summary import by_problem, summarize_task
from grpo.report.lock import held
from grpo.report.records import RECIPE_FILE, Row
from rollout.types import Completion, Group, Problem

CHANGES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Regraded:
    """New results, and the verdicts that differ from before (or from an external file's own scores).

    Regraded(results, [{"task": "gsm8k", "problem_id": "gsm8k/3", "sample": 0, "before": "wrong", "now": "right", …}],
             num_graded=64)
    """

    results: Results
    changes: list[Row]
    num_graded: int  # samples with a verdict


def regrade(
    folder: Path, *, output: Path | None = None, reward: str | None = None, options: Mapping[str, Any] | None = None
) -> Regraded:
    """Regrade the samples in an evaluation's folder.

    Args:
        output: folder to write to; None: regrade in place, keeping the old samples.jsonl as samples.jsonl.previous.
        reward: replaces each task's reward, and its options.
        options: override the reward's options.

    Raises:
        ValueError: the folder is not a finished evaluation or in use, or `output` has files that would be overwritten.
    """
    if output is None or output == folder:
        Results.read(folder)  # nothing, not even a lock, is put into a folder that is no evaluation
        with held(folder):
            return _regrade(folder, folder, reward, options)
    check_output(output)
    return _regrade(folder, output, reward, options)


def _regrade(folder: Path, output: Path, reward: str | None, options: Mapping[str, Any] | None) -> Regraded:
    before = Results.read(folder)
    saved, manifest = read_samples(folder), read_manifest(folder)
    reported = {key_of(row) for row in reported_samples(folder, before.tasks)}
    problems, tasks, rows = read_problems(folder), {}, []
    others = [row for row in saved if row["task"] not in before.tasks]  # from an earlier run with other tasks
    for name, task in before.tasks.items():
        used = dict(options or {}) if reward else {**task["options"], **(options or {})}
        grading = {"reward": reward or task["reward"], "options": used}
        grader = build_grader(grading["reward"], used)
        graded = grade_again([row for row in saved if row["task"] == name], problems, grader)
        mine = [row for row in graded if key_of(row) in reported]
        here = {key: problems[key] for key in dict.fromkeys(row["problem_id"] for row in mine)}
        summary = summarize_task(mine, here, groups=list(task["groups"]), grader=grader)
        tasks[name] = {**task, **grading, **summary}
        if name in manifest["tasks"]:
            manifest["tasks"][name] |= grading
        rows += mine
        others += [row for row in graded if key_of(row) not in reported]
        grader.close()
    results = Results(before.model, before.protocol, tasks, output)
    verdicts = {key_of(row): row["verdict"] for row in saved}
    if output == folder:
        _keep_previous(folder / SAMPLES_FILE)
        done = write_regraded(results, rows, verdicts, others)
        write_manifest(folder, manifest["weights"], manifest["tasks"])
        return done
    output.mkdir(parents=True, exist_ok=True)
    write_problems(output, [(name, [p for p in problems.values() if p.id.startswith(f"{name}/")]) for name in tasks])
    return write_regraded(results, rows, verdicts)


def _keep_previous(path: Path) -> None:
    """Copy a file to NAME.previous, which is at no time cut off."""
    draft = path.with_name(f"{path.name}.draft")
    shutil.copyfile(path, draft)
    draft.replace(path.with_name(f"{path.name}.previous"))


def check_output(output: Path) -> None:
    """ValueError if `output` has a file that would be overwritten: an evaluation's, or one's own of that name."""
    for name in (RECIPE_FILE, SAMPLES_FILE, PROBLEMS_FILE, RESULTS_FILE):
        if (output / name).exists():
            raise ValueError(f"output={str(output)!r} has a {name}, which would be lost. Choose another folder.")


def describe(done: Regraded) -> str:
    """A summary of the changed verdicts, for the terminal."""
    changes = done.changes
    if not changes:
        return f"None of {done.num_graded} verdicts changed."
    kinds = Counter((change["before"], change["now"]) for change in changes)
    lines = [f"{len(changes)} of {done.num_graded} verdicts changed:"]
    lines += [f"  {count} from {before} to {now}" for (before, now), count in kinds.most_common()]
    for change in changes[:CHANGES_SHOWN]:
        why = f" ({change['reason']})" if change["reason"] else ""
        lines.append(
            f"  {change['problem_id']}#{change['sample']}: {change['before']} -> {change['now']}{why}; "
            f"answer {change['answer']!r:.80}, reference answer {change['reference_answer']!r:.80}"
        )
    if len(changes) > CHANGES_SHOWN:
        lines.append("  … the full list is in changes.jsonl")
    return "\n".join(lines)


def grade_again(rows: Sequence[Row], problems: Mapping[str, Problem], grader: Grader) -> list[Row]:
    """The rows with new verdicts, in the same order."""
    samples = by_problem(rows)
    missing = [s[0]["problem_id"] for s in samples if s[0]["problem_id"] not in problems]
    if missing:
        raise ValueError(
            f"problems.jsonl lacks {len(missing)} of the sampled problems, such as {missing[:5]}. "
            "Restore the file that was written with samples.jsonl."
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
            completion_prefix=rows_of_one[0].get("completion_prefix", ""),  # a file's completions have none
        )
        for rows_of_one in samples
    ]
    new: dict[SampleKey, Row] = {}
    by_id = {rows_of_one[0]["problem_id"]: rows_of_one for rows_of_one in samples}
    for graded in grader.grade(groups):
        problem = graded.group.problem
        for index, row in enumerate(by_id[problem.id]):
            new[key_of(row)] = {**row, "reference_answer": grader.reference_answer(problem), **graded.grades(index)}
    return [new[key_of(row)] for row in rows]


def write_regraded(
    results: Results, rows: Sequence[Row], old: Mapping[SampleKey, str | None], others: Sequence[Row] = ()
) -> Regraded:
    """Write results, samples, changes and page; others: rows to keep that the metrics do not cover."""
    changes = [
        {
            **{name: row[name] for name in ("task", "problem_id", "sample", "answer", "reference_answer", "reason")},
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
    return Regraded(results, changes, sum(row["verdict"] is not None for row in rows))
