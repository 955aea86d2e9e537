"""Labelled sets: agreement with the labels before and after manual rulings, next to math-verify's in the same run.

A ruling (rulings.jsonl) corrects a label, with the reason, or puts an example outside a reward's scope. Rulings follow
from the mathematics, not from verdicts. Each set's reader documents how its rows become completions.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.verifier.grading import baseline, is_right, ours, outcome
from benchmarks.verifier.report import code, table
from rewards.answers.verdict import Verdict

_TEXT = re.compile(r"\\(?:text|mbox|textnormal|textbf)\{[^{}]*\}")
_PROSE = re.compile(r"[A-Za-z]{2,}[ ,.]+[A-Za-z]{2,}|[Aa]nswer|<\|")


@dataclass(frozen=True, slots=True)
class Example:
    set: str
    row: str  # as in rulings.jsonl
    reference: str
    completion: str
    label: bool
    answer_in: str = "auto"


def _free_or_boxed(text: str) -> tuple[str, str]:
    r"""A completion and its answer_in: prose and texts with a box stay as they are, bare answers are boxed."""
    if r"\boxed" in text or _PROSE.search(_TEXT.sub("", text)):
        return text, "free_text"
    return rf"\boxed{{{text}}}", "auto"


def _adversarial(name: str, rows: Sequence[dict[str, Any]]) -> Iterator[Example]:
    """Unmodified completions; `md_bold` is only right as free text."""
    for r in rows:
        yield Example(
            name, r["id"], r["gold"], r["completion"], r["expected"], "free_text" if r["id"] == "md_bold" else "auto"
        )


def _hardverify(name: str, rows: Sequence[dict[str, Any]]) -> Iterator[Example]:
    """Two examples per row, boxed: the answer labelled right and the one labelled wrong."""
    for r in rows:
        for field, label in (("correct", True), ("wrong", False)):
            yield Example(name, f"{r['id']} {field}", r["gold"], rf"\boxed{{{r[f'pred_{field}']}}}", label)


def _library_tests(name: str, rows: Sequence[dict[str, Any]]) -> Iterator[Example]:
    """Free text if the prediction is prose. The letter tests (extraction_abc) have the two answers swapped."""
    for i, r in enumerate(rows):
        reference, answer = (r["pred"], r["gold"]) if r.get("test") == "test_extraction_abc" else (r["gold"], r["pred"])
        completion, answer_in = _free_or_boxed(answer)
        yield Example(name, str(i), reference, completion, r["expected"], answer_in)


def _olympiad(name: str, rows: Sequence[dict[str, Any]]) -> Iterator[Example]:
    for i, r in enumerate(rows):
        for j, answer in enumerate(r["Ans"]):
            completion, answer_in = _free_or_boxed(answer["answer"])
            yield Example(name, f"{i}.{j}", r["GT"], completion, answer["equal"], answer_in)


READERS: dict[str, Callable[[str, Sequence[dict[str, Any]]], Iterator[Example]]] = {
    "adversarial_math": _adversarial,
    "hardverify_math": _hardverify,
    "math_verify_tests": _library_tests,
    "lighteval_extractive_match": _library_tests,
    "nemo_skills_math_equal": _library_tests,
    "olympiadbench_scoring_examples": _olympiad,
}


def read(folder: Path) -> list[Example]:
    """All sets' examples from a folder such as ../shared/data/verifier."""
    rows = []
    for name, reader in READERS.items():
        lines = (folder / f"{name}.jsonl").read_text().splitlines()
        rows += reader(name, [json.loads(line) for line in lines])
    return rows


def read_rulings() -> dict[tuple[str, str], tuple[str, str]]:
    """(set, row) -> (ruling, why)."""
    lines = Path(__file__).with_name("rulings.jsonl").read_text().splitlines()
    return {(r["set"], r["row"]): (r["ruling"], r["why"]) for r in map(json.loads, lines)}


def verify_all(rows: Sequence[Example]) -> list[Verdict | None]:
    """The examples' verdicts, in order, each with its own answer_in."""
    verdicts: dict[int, Verdict | None] = {}
    for answer_in in ("auto", "free_text"):
        chosen = [i for i, row in enumerate(rows) if row.answer_in == answer_in]
        given = ours(
            [rows[i].completion for i in chosen], [rows[i].reference for i in chosen], f"ours, {answer_in}", answer_in
        )
        verdicts |= dict(zip(chosen, given, strict=True))
    return [verdicts[i] for i in range(len(rows))]


def truth(row: Example, rulings: dict[tuple[str, str], tuple[str, str]]) -> bool | None:
    """The label after rulings; None if out of scope."""
    ruling = rulings.get((row.set, row.row), ("right" if row.label else "wrong", ""))[0]
    return None if ruling == "outside" else ruling == "right"


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}" + (f" ({part / whole:.1%})" if whole else "")


def _summary(name: str, given: Sequence[bool], labels: Sequence[bool], truths: Sequence[bool | None]) -> list[str]:
    kept = [(g, t) for g, t in zip(given, truths, strict=True) if t is not None]
    positives = [g for g, t in kept if t]
    return [
        name,
        _share(sum(g == label for g, label in zip(given, labels, strict=True)), len(labels)),
        _share(sum(g == t for g, t in kept), len(kept)),
        _share(sum(g for g, label in zip(given, labels, strict=True) if label), sum(labels)),
        _share(sum(positives), len(positives)),
        str(sum(g and not t for g, t in kept)),
    ]


def report(data: Path) -> str:
    rows, rulings = read(data / "verifier"), read_rulings()
    verdicts = verify_all(rows)
    right = [is_right(v) for v in verdicts]
    theirs = baseline([r.completion for r in rows], [r.reference for r in rows], "math-verify alone")
    truths = [truth(row, rulings) for row in rows]

    summaries = []
    for name in READERS:
        chosen = [i for i, row in enumerate(rows) if row.set == name]
        for grader, given in (("ours", right), ("math-verify", theirs)):
            picked = [[values[i] for i in chosen] for values in (given, [r.label for r in rows], truths)]
            summaries.append(_summary(f"{name}, {grader}", *picked))

    differing = []
    for row, verdict, given, true in zip(rows, verdicts, right, truths, strict=True):
        if given != row.label or (true is not None and given != true):
            ruling, why = rulings.get((row.set, row.row), ("label is right", ""))
            who = "outside" if true is None else "ours" if given == true else "label"
            answer = code(row.completion, 120)
            differing.append(
                [
                    row.set,
                    row.row,
                    code(row.reference),
                    answer,
                    row.label,
                    outcome(verdict),
                    who,
                    f"{ruling}: {why}" if why else "",
                ]
            )
    unverifiable = sum(v is not None and v.outcome == "unverifiable" for v in verdicts)
    columns = [
        "set, grader",
        "agrees with labels",
        "after rulings",
        "recall, labels",
        "recall, after rulings",
        "false positives after rulings",
    ]
    outside = sum(t is None for t in truths)
    return "\n\n".join(
        [
            "# Labelled sets",
            table(columns, summaries),
            f"{len(rows)} rows; {len(rulings)} rulings, {outside} of them put a row out of scope. Ours called "
            f"{unverifiable} answers unverifiable and could not read "
            f"{sum(v is None for v in verdicts)} reference answers.",
            "## Every disagreement",
            table(["set", "row", "reference", "completion", "label", "ours", "who is right", "ruling"], differing),
        ]
    )
