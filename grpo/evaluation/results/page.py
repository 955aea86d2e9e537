"""The page of an evaluation: one HTML file that needs no network, built like the page of a run (grpo/report/page.py).

It holds the figures whole, and of the answers as many as fit MAX_CHARS, those that are not right first. Model output is
data: it enters as escaped JSON or escaped text.
"""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo.evaluation.results.summary import by_problem
from grpo.evaluation.results.table import group_table, percent, task_table, with_interval
from grpo.report.page import asset, embed, fill, middle_out
from grpo.report.records import Row

if TYPE_CHECKING:
    from grpo.evaluation.results.write import Results

PAGE_FILE = "index.html"
MAX_CHARS = 1_500_000  # of answers and questions
TEXT_LIMIT = 6000  # characters of one answer
PROMPT_LIMIT = 3000
BINS = 24
_SHOWN = ("task", "problem_id", "sample", "num_tokens", "finish_reason", "answer", "verdict", "reason", "published")


def write_page(results: "Results", rows: Sequence[Row]) -> Path:
    """Write index.html into the folder of an evaluation."""
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
            key: {"prompt": middle_out(_text(row["prompt"]), PROMPT_LIMIT), "gold": row["gold"]}
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
        "cards": "\n".join(_cards(tasks)),
        "tables": "\n".join(_tables(tasks)),
        "origin": "\n".join(_origin(tasks)),
        "css": asset("page.css") + asset("page.css", __package__),
        "js": asset("page_charts.js") + asset("page.js", __package__),
        "data": embed(data),
    }
    page = fill(asset("page.html", __package__), parts)
    path = results.folder / PAGE_FILE
    draft = path.with_name(PAGE_FILE + ".draft")
    draft.write_text(page, encoding="utf-8", errors="replace")
    draft.replace(path)
    return path


def _kept(rows: Sequence[Row]) -> list[Row]:
    """Rows that fit the page: every problem's first answer that is not right, then the next, then right ones."""
    ranked: list[tuple[int, int, Row]] = []
    for number, samples in enumerate(by_problem(rows)):
        ranks = {True: len(samples), False: 0}  # right answers come after all others
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
    """Counts of right and other answers by length, in BINS bins from 0 on."""
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
                f'<p class="warning">{html.escape(name)}: {len(task["unreadable"])} problems cannot be judged and are '
                f"in no figure of accuracy: {html.escape(listed)}</p>"
            )


def _html_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(line, "td") for line in lines)
    return f'<div class="scroll"><table>{row(header, "th")}{body}</table></div>'


def _origin(tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, task in tasks.items():
        dataset = " · ".join(f"{key} {value}" for key, value in task["dataset"].items() if value)
        options = "".join(f", {key}={value}" for key, value in task["options"].items())
        text = html.escape(f"{dataset}; judged by {task['reward']}{options}")
        yield f"<p><b>{html.escape(name)}</b>: {text}</p>"


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt)
