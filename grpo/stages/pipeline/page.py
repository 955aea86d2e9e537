"""A pipeline's page: all stages side by side, one self-contained HTML file, `<output>/index.html`.

One chart per metric with a bar per model, a table of the same numbers, and one problem answered by every model.
"""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.report.diagnosis.run import Diagnosis, diagnose_run
from grpo.report.page.write import asset, diagnosis_section, middle_out
from grpo.report.records import METRICS_FILE, Row, read_rows
from grpo.stages.pipeline.graph import EVALUATION, Node
from grpo.stages.pipeline.held_out import RESULTS_FILE, SAMPLES_FILE

PAGE_FILE = "index.html"
SAMPLED_PROBLEMS = 3  # per set
TEXT_LIMIT = 1500  # characters per completion


@dataclass(frozen=True, slots=True)
class Column:
    """Column("reasoning pass@1", [0.2, None, 0.95], low=[…], high=[…])"""

    title: str
    values: list[float | None]  # one per model
    low: list[float | None]
    high: list[float | None]


def write_page(output: Path, nodes: Sequence[Node], results: Mapping[str, str]) -> Path:
    """Write the page from what has been evaluated so far; nothing evaluated: a page that says so."""
    folders = {
        node.name.removesuffix(EVALUATION): Path(results[node.name])
        for node in nodes
        if node.is_evaluation and node.name in results
    }
    metrics = {name: json.loads((folder / RESULTS_FILE).read_text()) for name, folder in folders.items()}
    names = list(metrics)
    columns = list(_columns(metrics))
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{html.escape(output.name)}</title><style>{asset('page.css')}{STYLE}</style>",
        f"<h1>{html.escape(output.name)}</h1>",
        f"<p class=facts>{len(names)} models evaluated; stages: "
        + html.escape(" → ".join(node.name for node in nodes if not node.is_evaluation)),
        "</p>" + diagnosis_section(_diagnoses(nodes)),
        "<div class=stages>" + "".join(_chart(names, column) for column in columns) + "</div>",
        "<h2>Metrics</h2>" + _table(names, columns),
        "<h2>The same problem, by every model</h2>" + "".join(_samples(folders)),
    ]
    path = output / PAGE_FILE
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return path


def _diagnoses(nodes: Sequence[Node]) -> list[Diagnosis]:
    """Of every stage that has written metrics."""
    return [diagnose_run(node.folder) for node in nodes if (node.folder / METRICS_FILE).exists()]


STYLE = """
.stages { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); }
.stages figure { margin: 0; padding: 12px 16px; grid-column: auto; }
.stages svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; fill: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; }
th, td { padding: 6px 10px; text-align: right; white-space: nowrap; border-top: 1px solid var(--grid); }
th:first-child, td:first-child { text-align: left; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 4px 0 0; font: 12.5px/1.45 var(--mono); }
.answers { display: grid; gap: 10px; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); }
.answers .completion { padding: 10px 14px; }
"""


def _columns(metrics: Mapping[str, Any]) -> list[Column]:
    """Per set: pass@1 with its interval, the largest pass@k, every reward's mean, mean length."""
    sets = list(dict.fromkeys(name for results in metrics.values() for name in results))
    columns = []
    for name in sets:
        rows: list[dict[str, float]] = [results.get(name, {}) for results in metrics.values()]
        present = dict.fromkeys(key for row in rows for key in row)
        passes = sorted((key for key in present if key.startswith("pass@") and key[5:].isdigit()), key=_k)
        rewards = [key for key in present if key.startswith("rewards/")]
        for key in [*passes[:1], *passes[1:][-1:], *rewards, "mean_length"]:
            columns.append(
                Column(
                    f"{name}: {key.removeprefix('rewards/').removesuffix('/mean')}",
                    [row.get(key) for row in rows],
                    [row.get(f"{key}_low") for row in rows],
                    [row.get(f"{key}_high") for row in rows],
                )
            )
    return columns


def _k(key: str) -> int:
    return int(key.removeprefix("pass@"))


def _chart(names: Sequence[str], column: Column) -> str:
    """Horizontal bars from zero, with the interval as a line where there is one."""
    known = [value for value in column.values if value is not None]
    ends = [*known, *(value for value in column.high if value is not None)]
    top, bottom = max([*ends, 1e-9]), min([*known, 0.0])
    left, width, height = 130, 210, 20

    def x(value: float) -> float:
        return left + width * (value - bottom) / (top - bottom)

    lines = []
    for i, (name, value) in enumerate(zip(names, column.values, strict=True)):
        y = 8 + i * height
        lines.append(f"<text x=0 y={y + 12}>{html.escape(name[:20])}</text>")
        if value is None:
            continue
        start, end = sorted((x(0.0), x(value)))
        lines.append(f"<rect x={start:.1f} y={y + 2} width={end - start:.1f} height=12 style='fill:var(--c0)'/>")
        low, high = column.low[i], column.high[i]
        if low is not None and high is not None:
            line = f"x1={x(low):.1f} x2={x(high):.1f} y1={y + 8} y2={y + 8}"
            lines.append(f"<line {line} style='stroke:var(--ink);stroke-width:2'/>")
        lines.append(f"<text x={left + width + 8} y={y + 12}>{_number(value)}</text>")
    box = f"0 0 {left + width + 60} {16 + len(names) * height}"
    return f"<figure><b>{html.escape(column.title)}</b><svg viewBox='{box}'>{''.join(lines)}</svg></figure>"


def _table(names: Sequence[str], columns: Sequence[Column]) -> str:
    head = "".join(f"<th>{html.escape(column.title)}" for column in columns)
    rows = []
    for i, name in enumerate(names):
        cells = []
        for column in columns:
            low, high = column.low[i], column.high[i]
            interval = "" if low is None or high is None else f" [{_number(low)}, {_number(high)}]"
            cells.append(f"<td>{_number(column.values[i])}{interval}")
        rows.append(f"<tr><td>{html.escape(name)}{''.join(cells)}")
    return f"<div class=scroll><table><tr><th>model{head}{''.join(rows)}</table></div>"


def _samples(folders: Mapping[str, Path]) -> list[str]:
    """The first problems of each set, with the first completion of every model."""
    samples = {name: list(read_rows(folder / SAMPLES_FILE)) for name, folder in folders.items()}
    first: dict[str, list[Row]] = {}
    for rows in samples.values():
        for row in rows:
            shown = first.setdefault(row["task"], [])
            if len(shown) < SAMPLED_PROBLEMS and row["problem_id"] not in [other["problem_id"] for other in shown]:
                shown.append(row)
        break
    parts = []
    for problem in (row for rows in first.values() for row in rows):
        parts.append(f"<p class=label>{html.escape(problem['task'])}: {html.escape(str(problem['prompt']))}</p>")
        parts.append("<div class=answers>")
        for name, rows in samples.items():
            of_problem = (row for row in rows if row["problem_id"] == problem["problem_id"])
            if found := next((row for row in of_problem if row["task"] == problem["task"]), None):
                text = html.escape(middle_out(found["completion"], TEXT_LIMIT))
                parts.append(
                    f"<div class=completion><b>{html.escape(name)}</b> "
                    f"<span class=note>{found['verdict'] or ''}</span><pre>{text}</pre></div>"
                )
        parts.append("</div>")
    return parts


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
