"""Public completions regraded: our score next to the published one, and every row on which they differ."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.verifier.grading import is_right, ours, outcome
from benchmarks.verifier.report import code, table


@dataclass(frozen=True, slots=True)
class Graded:
    row: str
    completion: str
    reference: str
    label: bool  # by the published grader
    extracted: str  # by the published grader


@dataclass(frozen=True, slots=True)
class File:
    """name: the jsonl file. published: score in percent. answer_in: where the prompts asked for the answer."""

    name: str
    published: float
    answer_in: str


FILES = [
    File("qwen25math_math100x8", 91.00, "box"),
    File("abel_gsm8k_7b", 59.74, "free_text"),
    File("rho_gsm8k_rho-math-1b-v0.1", 36.2, "free_text"),
    File("rho_minerva_math_rho-math-1b-v0.1", 15.8, "free_text"),  # the problems are MATH-500
]


def read(folder: Path, name: str) -> Iterator[Graded]:
    for line in (folder / f"{name}.jsonl").read_text().splitlines():
        r = json.loads(line)
        if name.startswith("qwen"):
            yield Graded(f"{r['idx']}.{r['sample']}", r["completion"], r["gold"], r["score"], r["pred"])
        elif name.startswith("abel"):
            yield Graded(str(r["id"]), r["response"], r["gold"], r["result"], str(r["pred"]))
        else:
            yield Graded(str(r["idx"]), r["code"][0], r["answer"], r["score"][0], r["pred"][0])


def read_reviews() -> dict[tuple[str, str], tuple[str, str]]:
    """(file, row) -> (who is right: "ours" or "theirs", why), for every row that has ever differed."""
    lines = Path(__file__).with_name("generations_reviewed.jsonl").read_text().splitlines()
    return {(r["file"], r["row"]): (r["right"], r["why"]) for r in map(json.loads, lines)}


def report(data: Path) -> str:
    reviews = read_reviews()
    scores, differing = [], []
    for file in FILES:
        rows = list(read(data / "generations", file.name))
        verdicts = ours([r.completion for r in rows], [r.reference for r in rows], file.name[:32], file.answer_in)
        right = [is_right(v) for v in verdicts]
        labels = sum(r.label for r in rows)
        corrected = sum(r.label != (reviews.get((file.name, r.row), ("theirs",))[0] == "ours") for r in rows)
        score, differ = 100 * sum(right) / len(rows), 0
        for row, given, verdict in zip(rows, right, verdicts, strict=True):
            if given != row.label:
                differ += 1
                who, why = reviews.get((file.name, row.row), ("not reviewed", ""))
                found = code(verdict.answer or "", 60) if verdict else ""
                differing.append(
                    [
                        file.name,
                        row.row,
                        code(row.reference.rpartition("####")[2].strip()),
                        found,
                        code(row.extracted, 60),
                        row.label,
                        outcome(verdict),
                        who,
                        why,
                    ]
                )
        unverifiable = sum(v is not None and v.outcome == "unverifiable" for v in verdicts)
        scores.append(
            [
                file.name,
                len(rows),
                file.answer_in,
                f"{file.published:.2f}",
                f"{100 * labels / len(rows):.2f}",
                f"{100 * corrected / len(rows):.2f}",
                f"{score:.2f}",
                f"{score - file.published:+.2f}",
                differ,
                unverifiable,
            ]
        )
    return "\n\n".join(
        [
            "# Public generations regraded",
            table(
                [
                    "file",
                    "completions",
                    "answer_in",
                    "published",
                    "labels in the file",
                    "labels after review",
                    "ours",
                    "ours - published",
                    "disagreements",
                    "unverifiable",
                ],
                scores,
            ),
            "## Every disagreement",
            table(
                [
                    "file",
                    "row",
                    "reference",
                    "our answer",
                    "their answer",
                    "label",
                    "ours",
                    "who is right",
                    "why",
                ],
                differing,
            ),
        ]
    )
