"""An evaluation's page: one self-contained HTML file, built like a training run's (grpo/report/page/write.py).

It shows all metrics, and as many samples as fit MAX_CHARS, those that are not right first. Model output is untrusted:
it enters as escaped JSON or escaped text.
"""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo.evaluation.results.store import Results
from grpo.evaluation.results.summary import by_problem
from grpo.evaluation.results.table import group_table, percent, task_table, with_interval
from grpo.report.page.write import asset, embed, fill, middle_out
from grpo.report.records import Row

PACKAGE = "grpo.evaluation.results"
PAGE_FILE = "index.html"
MAX_CHARS = 1_500_000  # completions and prompts together
TEXT_LIMIT = 6000  # characters per completion
PROMPT_LIMIT = 3000  # characters per prompt
BINS = 24
_SHOWN = ("task", "problem_id", "sample", "num_tokens", "finish_reason", "answer", "verdict", "reason", "published")


def write_page(results: Results, rows: Sequence[Row]) -> Path:
    """Write index.html into an evaluation's folder."""
    tasks = results.tasks
    kept = _kept(rows)
    problems = {row["problem_id"]: row for row in reversed(kept)}
    curves = {name: _pass_curve(task["metrics"]) for name, task in tasks.items()}
    longest = max(map(len, curves.values()), default=0)
    data = {
        "axis": {"name": "k", "power": 2},
        "train": {"steps": [], "series": {}},
        "eval": {
            "steps": list(range(longest)),
            "series": {name: curve + [None] * (longest - len(curve)) for name, curve in curves.items()},
        },
        "lengths": {name: found for name in tasks if (found := _lengths(rows, name))},
        "problems": {
            key: {"prompt": middle_out(_text(row["prompt"]), PROMPT_LIMIT), "reference_answer": row["reference_answer"]}
            for key, row in problems.items()
        },
        "samples": [
            {name: row[name] for name in _SHOWN if name in row}
            | {"completion": middle_out(row["completion"], TEXT_LIMIT)}
            for row in kept
        ],
        "total": len(rows),
    }
    parts = {
        "title": html.escape(Path(results.model).name if results.model.startswith(("/", ".")) else results.model),
        "facts": html.escape(results.protocol),
        "banners": "",
        "cards": "\n".join(_cards(tasks)),
        "tables": "\n".join(_tables(tasks)),
        "origin": "\n".join(_origin(tasks)),
        "css": asset("page.css") + asset("page.css", PACKAGE),
        "js": asset("page_charts.js") + asset("page.js", PACKAGE),
        "data": embed(data),
    }
    page = fill(asset("page.html", PACKAGE), parts)
    path = results.folder / PAGE_FILE
    draft = path.with_name(PAGE_FILE + ".draft")
    draft.write_text(page, encoding="utf-8", errors="replace")
    draft.replace(path)
    return path


def _kept(rows: Sequence[Row]) -> list[Row]:
    """The rows that fit: each problem's first sample that is not right, then each second one, …, then right ones."""
    ranked: list[tuple[int, int, Row]] = []
    for number, samples in enumerate(by_problem(rows)):
        ranks = {True: len(samples), False: 0}  # right samples come after all others
        for row in samples:
            ranked.append((ranks[row["verdict"] == "right"], number, row))
            ranks[row["verdict"] == "right"] += 1
    ranked.sort(key=lambda item: item[:2])
    kept, room, seen = [], MAX_CHARS, set()
    for _, number, row in ranked:
        room -= min(len(row["completion"]), TEXT_LIMIT) + 300
        if number not in seen:
            room -= min(len(_text(row["prompt"])), PROMPT_LIMIT)
            seen.add(number)
        if room < 0:
            break
        kept.append((number, row["sample"], row))
    return [row for *_, row in sorted(kept, key=lambda item: item[:2])]


def _pass_curve(metrics: Mapping[str, float]) -> list[float | None]:
    """pass@1, pass@2, pass@4, …"""
    ks = sorted(int(key[5:]) for key in metrics if re.fullmatch(r"pass@\d+", key))
    return [metrics[f"pass@{k}"] for k in ks]


def _lengths(rows: Sequence[Row], task: str) -> dict[str, list[int]] | None:
    """Counts of right and other samples by length, in at most BINS bins starting at 0."""
    mine = [(row["num_tokens"], row["verdict"] == "right") for row in rows if row["task"] == task]
    longest = max((length for length, _ in mine), default=0)
    if not longest:
        return None
    width = max(1, -(-(longest + 1) // BINS))
    bins = longest // width + 1
    counts = {right: [0] * bins for right in (True, False)}
    for length, is_right in mine:
        counts[is_right][length // width] += 1
    return {"edges": [width * i for i in range(bins)], "right": counts[True], "wrong": counts[False]}


def _cards(tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, task in tasks.items():
        metrics = task["metrics"]
        note = with_interval(metrics).partition(" ")[2].strip("[]").replace(", ", "–")
        samples = f"{metrics['num_problems']} problems × {metrics.get('num_samples', 0)}"
        yield (
            f'<div class="card"><div class="label">{html.escape(name)}, pass@1 in %</div>'
            f'<div class="figure"><strong>{percent(metrics.get("pass@1"))}</strong></div>'
            f'<div class="note"><span>95%: {note}</span> · {samples}</div></div>'
        )


def _tables(tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield _html_table(*task_table(tasks))
    for name, task in tasks.items():
        for group, values in task["groups"].items():
            yield _html_table(*group_table(name, group, values))
        if task["unreadable"]:
            listed = "; ".join(f"{key} ({why})" for key, why in task["unreadable"].items())
            yield (
                f'<p class="warning">{html.escape(name)}: {len(task["unreadable"])} problems cannot be graded and are '
                f"excluded from the metrics: {html.escape(listed)}</p>"
            )


def _html_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """On a phone each row is a block of its own, each cell behind its column's title (page.css)."""
    titles = [html.escape(cell) for cell in header]
    head = "".join(f"<th>{title}</th>" for title in titles)
    rows = [
        "".join(f'<td data-title="{title}">{html.escape(cell)}</td>' for title, cell in zip(titles, line, strict=True))
        for line in lines
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _origin(tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, task in tasks.items():
        dataset = " · ".join(f"{key} {value}" for key, value in task["dataset"].items() if value)
        options = "".join(f", {key}={value}" for key, value in task["options"].items())
        text = html.escape(f"{dataset}; graded by {task['reward']}{options}")
        yield f"<p><b>{html.escape(name)}</b>: {text}</p>"


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt)
