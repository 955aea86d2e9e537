"""An evaluation's page: complete metrics, hostile text escaped, bounded size, wrong samples first."""

import json
import re
from pathlib import Path
from typing import Any

from grpo.evaluation.results.page import MAX_CHARS, write_page
from grpo.evaluation.results.store import Results
from grpo.evaluation.results.summary import by_problem, summarize, tabulate
from grpo.evaluation.results.table import markdown

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)> {{css}} \ud800"


def row(problem: int, sample: int, verdict: str | None, completion: str = "text", **more: Any) -> dict[str, Any]:
    return {
        "task": "t", "problem_id": f"t/{problem}", "sample": sample, "seed": 1, "prompt": f"q{problem}",
        "completion": completion, "num_tokens": 10 * problem + sample, "finish_reason": "stop", "reference_answer": "7",
        "answer": "7" if verdict == "right" else "8", "verdict": verdict,
        "reason": "" if verdict == "right" else "8 ≠ 7",
        "rewards": {"accuracy": float(verdict == "right")}, **more,
    }  # fmt: skip


def written(folder: Path, rows: list[dict[str, Any]], **entry: Any) -> tuple[str, dict[str, Any]]:
    levels = {r["problem_id"]: int(r["problem_id"][2:]) % 2 for r in rows}
    task = {
        "metrics": summarize(by_problem(rows), None),
        "groups": {"level": tabulate(by_problem(rows), levels, None)},
        "unreadable": {},
        "reward": "accuracy",
        "options": {"answer_in": "box"},
        "dataset": {"name": "d", "split": "test", "revision": None, "sha": "abc"},
        "timing": {"tokens_per_second": 812.4},
        **entry,
    }
    results = Results("some/model", "greedy: template chat", {"t": task}, folder)
    page = write_page(results, rows).read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json" id="run">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    return page, json.loads(data[1])


def test_page_has_metrics_and_samples(tmp_path: Path) -> None:
    rows = [row(p, s, "right" if (p + s) % 3 else "wrong") for p in range(6) for s in range(4)]
    page, data = written(tmp_path, rows)
    assert "66.7" in page and "812" in page and "t by level" in page and "answer_in=box" in page
    assert data["eval"]["steps"] == [0, 1, 2] and len(data["eval"]["series"]["t"]) == 3
    assert sum(data["lengths"]["t"]["right"]) == 16 and sum(data["lengths"]["t"]["wrong"]) == 8
    assert len(data["samples"]) == data["total"] == 24
    assert data["problems"]["t/3"] == {"prompt": "q3", "reference_answer": "7"}
    assert data["samples"][0] == {
        "task": "t", "problem_id": "t/0", "sample": 0, "num_tokens": 0, "finish_reason": "stop", "answer": "8",
        "verdict": "wrong", "reason": "8 ≠ 7", "completion": "text",
    }  # fmt: skip


def test_hostile_completions_stay_text(tmp_path: Path) -> None:
    page, data = written(
        tmp_path,
        [row(0, 0, "wrong", HOSTILE, answer=HOSTILE, reason=HOSTILE, prompt=HOSTILE)],
        unreadable={"t/0": HOSTILE},
        options={HOSTILE: HOSTILE},
    )
    assert "<script>alert" not in page and "<img" not in page
    assert page.count("<script") == 2 and page.count("{{css}}") > 0
    assert data["samples"][0]["completion"].startswith("</script><script>")


def test_page_size_is_bounded_and_wrong_samples_come_first(tmp_path: Path) -> None:
    long = "word " * 20_000
    rows = [row(p, s, "wrong" if (s == 3 and p % 2) else "right", long) for p in range(200) for s in range(8)]
    page, data = written(tmp_path, rows)
    assert len(page) < MAX_CHARS + 200_000
    kept = data["samples"]
    assert sum(sample["verdict"] == "wrong" for sample in kept) == 100  # all of them
    assert 100 < len(kept) < data["total"] == 1600
    assert "characters omitted" in kept[0]["completion"]


def test_markdown_table_is_aligned() -> None:
    rows = [row(p, s, None if p == 1 else "right" if p else "wrong") for p in range(3) for s in range(2)]
    metrics = summarize(by_problem(rows), lambda pairs: [a == b for a, b in pairs])
    text = markdown("m", "greedy", {"t": {"metrics": metrics, "groups": {}, "unreadable": {"t/1": "no number"}}})
    lines = text.splitlines()
    assert lines[0] == "m; greedy"
    assert [cell.strip() for cell in lines[4].strip("|").split("|")] == [
        "t", "3 (−1)", "2", "50.0 [9.5, 90.5]", "50.0 (k=2)", "50.0", "0.0", "0.0", "0.0", "10", "21", "–",
    ]  # fmt: skip
    assert len({len(line) for line in lines[2:5]}) == 1
    assert "t: 1 problems cannot be graded and are excluded from the metrics: t/1 (no number)" in text
