"""Compare two evaluations: the paired difference in pass@1 on the problems they share."""

from pathlib import Path

from grpo.evaluation.results.estimators import mean, paired_interval
from grpo.evaluation.results.samples import reported_samples
from grpo.evaluation.results.store import Results
from grpo.evaluation.results.summary import by_problem
from grpo.evaluation.results.table import percent, table
from grpo.report.records import Row


def compare_runs(a: Path, b: Path) -> str:
    """A Markdown table with each shared task's pass@1 in a and b, and b - a with its 95% confidence interval.

    Pairing by problem cancels differences in difficulty. If the interval contains 0, these problems do not separate the
    two models.

    Raises:
        ValueError: a folder is not a finished evaluation, or the two share no task.
    """
    found = [Results.read(folder) for folder in (a, b)]
    shared = [name for name in found[0].tasks if name in found[1].tasks]
    if not shared:
        tasks = [", ".join(results.tasks) for results in found]
        raise ValueError(f"{a} has tasks {tasks[0]}, {b} has {tasks[1]}: none shared. Evaluate both on the same tasks.")
    rows = [reported_samples(folder, shared) for folder in (a, b)]
    lines, notes = [], []
    for name in shared:
        left, right = (_shares([row for row in part if row["task"] == name]) for part in rows)
        common = [problem for problem in left if problem in right]
        differences = [right[problem] - left[problem] for problem in common]
        if not common:
            raise ValueError(f"task {name!r}: {a} and {b} share no graded problem. Use the same limit.")
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
        shas = [results.tasks[name]["dataset"]["sha"] for results in found]
        if shas[0] != shas[1] and len(common) == len(left) == len(right):
            notes.append(f"{name}: questions or columns differ between A and B, so the comparison may be invalid.")
    for results, letter in zip(found, "AB", strict=True):
        notes.insert("AB".index(letter), f"{letter}: {results.model}; {results.protocol}")
    header = ["task", "problems", "pass@1 A", "pass@1 B", "B - A [95%]", "better", "worse"]
    return "\n\n".join(["  \n".join(notes), table(header, lines)]) + "\n"


def _shares(rows: list[Row]) -> dict[str, float]:
    """Each graded problem's share of right samples."""
    graded = [samples for samples in by_problem(rows) if any(row["verdict"] is not None for row in samples)]
    return {samples[0]["problem_id"]: mean(row["verdict"] == "right" for row in samples) for samples in graded}
