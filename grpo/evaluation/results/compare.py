"""Two evaluations side by side: the paired difference of pass@1 on the problems that both answered."""

from pathlib import Path

from grpo.evaluation.results.estimators import mean, paired_interval
from grpo.evaluation.results.samples import counted_samples
from grpo.evaluation.results.summary import by_problem
from grpo.evaluation.results.table import percent, table
from grpo.evaluation.results.write import Results
from grpo.report.records import Row


def compare_runs(a: Path, b: Path) -> str:
    """A Markdown table: for each task that both folders have, pass@1 of a and b, b - a with its 95% interval.

    Problems are paired, so that what makes some harder than others cancels. An interval that holds 0 means that these
    problems do not tell the two apart.

    Raises:
        ValueError: a folder holds no finished evaluation, or the two have no task in common.
    """
    found = [Results.read(folder) for folder in (a, b)]
    shared = [name for name in found[0].tasks if name in found[1].tasks]
    if not shared:
        tasks = [", ".join(results.tasks) for results in found]
        raise ValueError(f"{a} has the tasks {tasks[0]} and {b} has {tasks[1]}: there is none in common to compare.")
    rows = [counted_samples(folder, shared) for folder in (a, b)]
    lines, notes = [], []
    for name in shared:
        left, right = (_shares([row for row in part if row["task"] == name]) for part in rows)
        common = [problem for problem in left if problem in right]
        differences = [right[problem] - left[problem] for problem in common]
        if not common:
            raise ValueError(f"task {name!r}: {a} and {b} share no problem that was judged. Use the same limit.")
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
            notes.append(f"{name}: {len(left)} problems were judged in A and {len(right)} in B; those in both count.")
        shas = [results.tasks[name]["dataset"]["sha"] for results in found]
        if shas[0] != shas[1] and len(common) == len(left) == len(right):
            notes.append(f"{name}: questions or columns differ between A and B. Compare with care.")
    for results, letter in zip(found, "AB", strict=True):
        notes.insert("AB".index(letter), f"{letter}: {results.model}; {results.protocol}")
    header = ["task", "problems", "pass@1 A", "pass@1 B", "B - A [95%]", "better", "worse"]
    return "\n\n".join(["  \n".join(notes), table(header, lines)]) + "\n"


def _shares(rows: list[Row]) -> dict[str, float]:
    """Each judged problem's share of right samples."""
    judged = [samples for samples in by_problem(rows) if any(row["verdict"] is not None for row in samples)]
    return {samples[0]["problem_id"]: mean(row["verdict"] == "right" for row in samples) for samples in judged}
