"""Compare two evaluations: the paired difference in pass@1 on the problems they share."""

from pathlib import Path

from grpo.evaluation.results.estimators import mean, paired_interval
from grpo.evaluation.results.samples import read_problems, reported_samples
from grpo.evaluation.results.store import Results
from grpo.evaluation.results.summary import by_problem
from grpo.evaluation.results.table import percent, table
from grpo.report.records import Row
from rollout.types import Problem


def compare_runs(a: Path, b: Path) -> str:
    """A Markdown table with each shared task's pass@1 in a and b, and b - a with its 95% confidence interval.

    Pairing by problem cancels differences in difficulty. If the interval contains 0, these problems do not separate the
    two models.

    Raises:
        ValueError: a folder is not a finished evaluation, or the two share no task, or they gave an id to different
            problems.
    """
    found = [Results.read(folder) for folder in (a, b)]
    shared = [name for name in found[0].tasks if name in found[1].tasks]
    if not shared:
        tasks = [", ".join(results.tasks) for results in found]
        raise ValueError(f"{a} has tasks {tasks[0]}, {b} has {tasks[1]}: none shared. Evaluate both on the same tasks.")
    rows = [reported_samples(folder, shared) for folder in (a, b)]
    asked = [read_problems(folder) for folder in (a, b)]
    lines, notes = [], []
    for name in shared:
        left, right = (_shares([row for row in part if row["task"] == name]) for part in rows)
        common = [problem for problem in left if problem in right]
        differences = [right[problem] - left[problem] for problem in common]
        if not common:
            raise ValueError(f"task {name!r}: {a} and {b} share no graded problem. Use the same limit.")
        pairs = [(asked[0][key], asked[1][key]) for key in common]
        if other := next((one.id for one, another in pairs if not _ask_the_same(one, another)), None):
            raise ValueError(
                f"{other} is another problem in {a} than in {b}. Evaluate both on the same version of the task; grade "
                "completions from a file with --key, or name its columns problem_id and prompt."
            )
        low, high = paired_interval(differences)
        lines.append(
            [
                name,
                f"{len(common)}",
                percent(mean(left[problem] for problem in common)),
                percent(mean(right[problem] for problem in common)),
                f"{100 * mean(differences):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
                f"{sum(d > 0 for d in differences)}",
                f"{sum(d < 0 for d in differences)}",
            ]
        )
        if len(common) < max(len(left), len(right)):
            notes.append(f"{name}: A has {len(left)} graded problems, B {len(right)}; only shared ones are compared.")
        if any(one.columns != another.columns for one, another in pairs):
            notes.append(f"{name}: columns differ between A and B, so the comparison may be invalid.")
        graders = [f"{task['reward']} {task['options']}" for task in (results.tasks[name] for results in found)]
        if graders[0] != graders[1]:
            notes.append(
                f"{name}: A was graded by {graders[0]}, B by {graders[1]}; part of the difference may be theirs. "
                "Regrade one as the other (grpo regrade)."
            )
    for results, letter in zip(found, "AB", strict=True):
        notes.insert("AB".index(letter), f"{letter}: {results.model}; {results.protocol}")
    header = ["task", "problems", "pass@1 A", "pass@1 B", "B - A [95%]", "better", "worse"]
    return "\n\n".join(["  \n".join(notes), table(header, lines)]) + "\n"


def _ask_the_same(a: Problem, b: Problem) -> bool:
    """Whether two problems of one id are one; a file's may have no prompts, only columns."""
    return a.prompt == b.prompt if a.prompt or b.prompt else a.columns == b.columns


def _shares(rows: list[Row]) -> dict[str, float]:
    """Each graded problem's share of right samples."""
    graded = [samples for samples in by_problem(rows) if any(row["verdict"] is not None for row in samples)]
    return {samples[0]["problem_id"]: mean(row["verdict"] == "right" for row in samples) for samples in graded}
