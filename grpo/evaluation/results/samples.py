"""An evaluation's samples on disk: written as they arrive, read again to resume, regrade and compare.

samples.jsonl: every sample; see graded.py for a row. While an evaluation runs, process r > 0 writes samples-r.jsonl;
at the end all rows are merged into samples.jsonl and sorted.

problems.jsonl: what regrading needs, {"task": …, "problem_id": …, "prompt": …, "columns": {…}}.

manifest.json: what is being sampled and how it is graded, written before generation starts:

    {"weights": "3f9c…",                                       # engines.fingerprint; null unless the model is local
     "tasks": {"gsm8k": {"reward": "accuracy", "options": {}, "num_samples": 4, "problem_ids": ["gsm8k/0", …]}}}
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from grpo.evaluation.results.graded import key_of
from grpo.recipe.errors import RunError
from grpo.report.records import Row, append, read_rows
from rollout.types import Problem

SAMPLES_FILE = "samples.jsonl"
PROBLEMS_FILE = "problems.jsonl"
MANIFEST_FILE = "manifest.json"
LONE_SURROGATES = "backslashreplace"  # half an emoji, as some servers return it: \ud83d is also JSON's own escape


class SampleWriter:
    """Appends rows to a file, all of a call at once.

    Raises:
        RunError: the disk is full. What it has taken is read by the next evaluation.
    """

    def __init__(self, folder: Path, process_index: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / (f"samples-{process_index}.jsonl" if process_index else SAMPLES_FILE)
        _cut_partial_line(self._path)
        self._file = self._path.open("ab", buffering=0)

    def write(self, rows: Iterable[Row]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            append(self._file, text, LONE_SURROGATES)
        except OSError as error:
            raise RunError(
                f"{self._path} cannot be written ({error.strerror}). Free disk space, and run the same command again: "
                "samples that have been written are not sampled again."
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_samples(folder: Path) -> list[Row]:
    """All rows in a folder, from all processes."""
    return [row for path in sorted(folder.glob("samples*.jsonl")) for row in read_rows(path)]


def reported_samples(folder: Path, names: Iterable[str]) -> list[Row]:
    """The rows that these tasks' metrics are computed from.

    An evaluation repeated with fewer problems or samples keeps the other rows, but does not report them.

    Raises:
        ValueError: rows are missing because the last evaluation was interrupted.
    """
    rows, tasks = read_samples(folder), read_manifest(folder)["tasks"]
    reported: list[Row] = []
    for name in names:
        mine = [row for row in rows if row["task"] == name]
        if name in tasks:  # external completions and regraded copies have no manifest: all their rows are reported
            problem_ids, num_samples = set(tasks[name]["problem_ids"]), tasks[name]["num_samples"]
            mine = [row for row in mine if row["problem_id"] in problem_ids and row["sample"] < num_samples]
            if missing := len(problem_ids) * num_samples - len(mine):
                raise ValueError(
                    f"{folder}: {missing} samples of {name} are missing because the evaluation was interrupted. "
                    "Run the same grpo eval again to finish it."
                )
        reported += mine
    return reported


def merge_samples(folder: Path, order: Sequence[str]) -> list[Row]:
    """Merge all rows into samples.jsonl and return them: problems in this order, then any others by name.

    The result depends on the samples alone, so equal evaluations write equal files.
    """
    place = {problem_id: index for index, problem_id in enumerate(order)}
    unique = {key_of(row): row for row in read_samples(folder)}.values()
    rows = sorted(unique, key=lambda row: (place.get(row["problem_id"], len(place)), row["problem_id"], row["sample"]))
    write_rows(folder / SAMPLES_FILE, rows)
    for path in folder.glob("samples-*.jsonl"):
        path.unlink()
    return rows


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of manifest.json; without the file, no weights and no tasks."""
    return next(read_rows(folder / MANIFEST_FILE), {"weights": None, "tasks": {}})


def write_manifest(folder: Path, weights: str | None, tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """Write manifest.json, keeping the tasks of earlier evaluations in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / MANIFEST_FILE, [{"weights": weights, "tasks": {**read_manifest(folder)["tasks"], **tasks}}])


def write_problems(folder: Path, tasks: Iterable[tuple[str, Sequence[Problem]]]) -> None:
    """Write problems.jsonl, keeping the problems of earlier evaluations in this folder."""
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
    """Replace a file atomically."""
    draft = path.with_name(path.name + ".draft")
    with draft.open("w", encoding="utf-8", errors=LONE_SURROGATES) as file:
        file.writelines(map(as_line, rows))
    draft.replace(path)


def as_line(row: Row) -> str:
    # default=str: datasets have dates and other non-JSON types in a problem's columns.
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"


def _cut_partial_line(path: Path) -> None:
    """Drop an incomplete last line, left by a killed process."""
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
