"""Markdown tables, for the terminal, a paper draft or an issue."""

from collections.abc import Mapping, Sequence
from typing import Any


def markdown(model: str, protocol: str, tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """An evaluation's tables: one line per task, then one table per task and group."""
    parts = [f"{model}; {protocol}", table(*task_table(tasks))]
    for name, task in tasks.items():
        parts += [table(*group_table(name, group, values)) for group, values in task["groups"].items()]
    parts += [
        f"{name}: {len(task['unreadable'])} problems cannot be graded and are excluded from the metrics: "
        + "; ".join(f"{key} ({why})" for key, why in list(task["unreadable"].items())[:10])
        for name, task in tasks.items()
        if task["unreadable"]
    ]
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table with padded columns; the first is left-aligned, the others right-aligned."""
    rows = [list(header), *map(list, lines)]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(rows[0]), "| " + " | ".join(rule) + " |", *(line(row) for row in rows[1:])])


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def with_interval(metrics: Mapping[str, float]) -> str:
    """ "84.0 [81.2, 86.5]" """
    if "pass@1" not in metrics:
        return "–"
    return f"{percent(metrics['pass@1'])} [{percent(metrics['pass@1_low'])}, {percent(metrics['pass@1_high'])}]"


def task_table(tasks: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and one line per task."""
    header = ["task", "problems", "samples", "pass@1 [95%]", "pass@k", "cons@k", "truncated", "no answer"]
    header += ["unverifiable", "length mean", "p95", "tokens/s"]
    lines = []
    for name, task in tasks.items():
        m = task["metrics"]
        k = max((int(key[5:]) for key in m if key.startswith("pass@") and key[5:].isdigit()), default=1)
        consensus = next((key for key in m if key.startswith("cons@")), "")
        lines.append(
            [
                name,
                f"{m['num_problems']}" + (f" (−{m['num_unreadable']})" if m["num_unreadable"] else ""),
                f"{m.get('num_samples', 0)}",
                with_interval(m),
                f"{percent(m[f'pass@{k}'])} (k={k})" if k > 1 else "–",
                percent(m.get(consensus)),
                percent(m.get("truncated_ratio")),
                percent(m.get("no_answer_ratio")),
                percent(m.get("unverifiable_ratio")),
                f"{m.get('mean_length', 0):.0f}",
                f"{m.get('p95_length', 0):.0f}",
                f"{task['timing']['tokens_per_second']:.0f}" if task.get("timing") else "–",
            ]
        )
    return header, lines


def group_table(task: str, group: str, values: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Header and one line per value of the group."""
    header = [f"{task} by {group}", "problems", "pass@1 [95%]", "truncated", "length mean"]
    lines = [
        [
            value,
            f"{m['num_problems']}",
            with_interval(m),
            percent(m.get("truncated_ratio")),
            f"{m.get('mean_length', 0):.0f}",
        ]
        for value, m in values.items()
    ]
    return header, lines
