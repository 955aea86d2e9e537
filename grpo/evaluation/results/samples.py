"""The samples of an evaluation on disk: written as they arrive, read again to resume, to judge anew and to compare.

A row of samples.jsonl:

    {"task": "gsm8k", "problem_id": "gsm8k/12", "sample": 3,   # the fourth answer to this problem
     "seed": 6917529027641081856,                              # of this sample's random numbers
     "prompt": "…",                                            # as the engine read it
     "completion": "…", "num_tokens": 120, "finish_reason": "stop",
     "answer": "18", "gold": "18",                             # as read; null where there is none
     "verdict": "right",                                       # wrong, unverifiable; null: the gold cannot be read
     "reason": "",                                             # why it is not right
     "rewards": {"accuracy": 1.0}}

A row of problems.jsonl has what judging it anew needs: {"task": …, "problem_id": …, "prompt": …, "columns": {…}}.
asked.json says what the figures are of, and is written before anything is generated:

    {"weights": "3f9c…",                                       # of a local model, engines.fingerprint
     "tasks": {"gsm8k": {"reward": "accuracy", "options": {}, "num_samples": 4, "problem_ids": ["gsm8k/0", …]}}}

While an evaluation runs, process r > 0 writes samples-r.jsonl; at its end all rows are in samples.jsonl, sorted.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from grpo.evaluation.grading import Graded
from grpo.report.records import Row, read_rows
from rollout.types import Problem

SAMPLES_FILE = "samples.jsonl"
PROBLEMS_FILE = "problems.jsonl"
ASKED_FILE = "asked.json"
HALF_CHARACTERS = "backslashreplace"  # half of an emoji, as servers and others write it: \ud83d is JSON's own escape

Key = tuple[str, int]  # problem id, sample


def key_of(row: Row) -> Key:
    return row["problem_id"], row["sample"]


def sample_rows(
    graded: Graded, *, task: str, problem_id: str, first_sample: int, seed: int, prompt: Any, gold: str | None
) -> list[Row]:
    """One row per completion of the group, numbered from first_sample on."""
    return [
        {
            "task": task,
            "problem_id": problem_id,
            "sample": first_sample + index,
            "seed": seed,
            "prompt": prompt,
            "completion": completion.text,
            "num_tokens": len(completion.token_ids),
            "finish_reason": completion.finish_reason,
            "gold": gold,
            **judgement(graded, index),
        }
        for index, completion in enumerate(graded.group.completions)
    ]


def judgement(graded: Graded, index: int) -> Row:
    """The part of a row that grading decides."""
    verdict = graded.verdicts[index]
    return {
        "answer": None if verdict is None else verdict.answer,
        "verdict": None if verdict is None else verdict.outcome,
        "reason": "" if verdict is None else verdict.reason,
        "rewards": {name: values[index] for name, values in graded.rewards.items()},
    }


class SampleWriter:
    """Appends rows to a file, each at once and whole."""

    def __init__(self, folder: Path, process_index: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / (f"samples-{process_index}.jsonl" if process_index else SAMPLES_FILE)
        _cut_half_line(path)
        self._file = path.open("a", encoding="utf-8", errors=HALF_CHARACTERS)

    def write(self, rows: Iterable[Row]) -> None:
        self._file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_samples(folder: Path) -> list[Row]:
    """All rows of a folder, of all processes."""
    return [row for path in sorted(folder.glob("samples*.jsonl")) for row in read_rows(path)]


def counted_samples(folder: Path, names: Iterable[str]) -> list[Row]:
    """The rows that the figures of these tasks are of: after a call with fewer problems or samples, others stay there.

    Raises:
        ValueError: some are missing, since the last call was interrupted.
    """
    rows, asked = read_samples(folder), read_asked(folder)["tasks"]
    counted: list[Row] = []
    for name in names:
        mine = [row for row in rows if row["task"] == name]
        if name in asked:  # else others wrote them, or they were judged again: all count
            wanted, num_samples = set(asked[name]["problem_ids"]), asked[name]["num_samples"]
            mine = [row for row in mine if row["problem_id"] in wanted and row["sample"] < num_samples]
            if missing := len(wanted) * num_samples - len(mine):
                raise ValueError(
                    f"{folder}: {missing} samples of {name} are missing, the evaluation was interrupted. Let it end: "
                    "call grpo eval again."
                )
        counted += mine
    return counted


def read_asked(folder: Path) -> dict[str, Any]:
    return next(read_rows(folder / ASKED_FILE), {"weights": None, "tasks": {}})


def write_asked(folder: Path, weights: str | None, tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """Write asked.json; tasks of an earlier call that are not among these stay."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / ASKED_FILE, [{"weights": weights, "tasks": {**read_asked(folder)["tasks"], **tasks}}])


def merge_samples(folder: Path, order: Sequence[str]) -> list[Row]:
    """Bring all rows into samples.jsonl, problems in this order, others after them by name; returns them.

    What it writes depends on the samples alone, so equal evaluations leave equal files.
    """
    place = {problem_id: index for index, problem_id in enumerate(order)}
    unique = {key_of(row): row for row in read_samples(folder)}.values()
    rows = sorted(unique, key=lambda row: (place.get(row["problem_id"], len(place)), row["problem_id"], row["sample"]))
    write_rows(folder / SAMPLES_FILE, rows)
    for path in folder.glob("samples-*.jsonl"):
        path.unlink()
    return rows


def write_problems(folder: Path, tasks: Iterable[tuple[str, Sequence[Problem]]]) -> None:
    """Write problems.jsonl; problems of an earlier call that are not among these stay."""
    rows = {row["problem_id"]: row for row in read_rows(folder / PROBLEMS_FILE)}
    for task, problems in tasks:
        rows |= {row["problem_id"]: row for row in problem_rows(task, problems)}
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / PROBLEMS_FILE, rows.values())


def problem_rows(task: str, problems: Sequence[Problem]) -> list[Row]:
    """The rows of problems.jsonl."""
    return [{"task": task, "problem_id": p.id, "prompt": p.prompt, "columns": p.columns} for p in problems]


def read_problems(folder: Path) -> dict[str, Problem]:
    """Problems by id."""
    rows = read_rows(folder / PROBLEMS_FILE)
    return {
        row["problem_id"]: Problem(id=row["problem_id"], prompt=row["prompt"], columns=row["columns"]) for row in rows
    }


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replace a file, in one step."""
    draft = path.with_name(path.name + ".draft")
    with draft.open("w", encoding="utf-8", errors=HALF_CHARACTERS) as file:
        file.writelines(map(as_line, rows))
    draft.replace(path)


def as_line(row: Row) -> str:
    # default=str: datasets bring dates and the like in a problem's columns.
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"


def _cut_half_line(path: Path) -> None:
    """Drop what a kill left after the last whole line."""
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
