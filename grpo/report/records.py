"""A run's rows on disk, in `metrics.jsonl` and `samples.jsonl`: read, truncate and compare them.

A row of metrics.jsonl: {"step": 12, "reward": 0.53, "completions/mean_length": 28.1, "time/generate": 4.2, …}
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from grpo.recipe.errors import RunError

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
RECIPE_FILE = "recipe.yaml"  # the resolved recipe
ERROR_FILE = "error.json"  # only of a run that an error stopped: {"step": 12, "error": "MismatchError: …"}

Row = dict[str, Any]

COUNTS = ("num_problems", "num_samples", "num_unreadable")  # of an evaluation: shown in captions, not as metrics


class DamagedFileError(RunError, ValueError):
    """A file has a line that nothing here wrote."""


def read_rows(path: Path) -> Iterator[Row]:
    """Yield a file's rows; none if the file does not exist.

    Raises:
        DamagedFileError: a line is not JSON.
    """
    return (row for row, _ in _rows_and_lines(path))


def _rows_and_lines(path: Path) -> Iterator[tuple[Row, bytes]]:
    """A last line without newline is skipped: it is still being written, or its process was killed."""
    if not path.exists():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError as error:  # JSONDecodeError or UnicodeDecodeError
                raise DamagedFileError(
                    f"{path}, line {number} is not JSON ({error}). Restore the file, or delete the line."
                ) from None
            yield row, line


def append(file: BinaryIO, text: str, errors: str = "strict") -> None:
    """Write text to a file without a buffer, so that what a full disk refuses is not tried again on closing."""
    left = memoryview(text.encode(errors=errors))
    while left:
        left = left[file.write(left) :]


def cut_after(path: Path, step: int) -> None:
    """Drop rows of later steps, atomically; the remaining lines are unchanged byte for byte. Errors as `read_rows`."""
    if not path.exists():
        return
    cut = path.with_name(path.name + ".cut")
    with cut.open("wb") as kept:
        kept.writelines(line for row, line in _rows_and_lines(path) if row["step"] <= step)
        kept.flush()
        os.fsync(kept.fileno())
    cut.replace(path)


def deterministic(row: Mapping[str, Any]) -> Row:
    """The row without timings: what a resumed run reproduces bit for bit."""
    timing = ("step_time", "tokens_per_second")
    return {key: value for key, value in row.items() if not key.startswith("time/") and key not in timing}


def is_evaluation(row: Mapping[str, Any]) -> bool:
    return any(key.startswith("eval/") for key in row)


def held_out_keys(row: Mapping[str, Any]) -> list[str]:
    """A row's `eval/` metrics without interval bounds and counts, by task: pass@1, pass@2, …, then others by name."""

    def order(key: str) -> tuple[str, bool, int, str]:
        task, _, name = key.rpartition("/")
        k = name.removeprefix("pass@")
        return (task, not k.isdigit(), int(k) if k.isdigit() else 0, name)

    keys = [key for key, value in row.items() if key.startswith("eval/") and value is not None]
    metrics = [key for key in keys if not key.endswith(("_low", "_high")) and key.rpartition("/")[2] not in COUNTS]
    return sorted(metrics, key=order)


def held_out_counts(row: Mapping[str, Any]) -> list[str]:
    """What an evaluation's row measured: ["gsm8k: 30 problems × 4 samples (1 ungradable)"], one entry per task."""
    found = []
    for key in sorted(key for key in row if key.startswith("eval/") and key.endswith("/num_problems")):
        prefix = key.removesuffix("num_problems")
        task = prefix.removeprefix("eval/").rstrip("/")
        ungradable = row.get(f"{prefix}num_unreadable")
        found.append(
            (f"{task}: " if task else "")
            + f"{row[key]} problems × {row.get(f'{prefix}num_samples', 0)} samples"
            + (f" ({ungradable} ungradable)" if ungradable else "")
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A metric with its confidence interval, if logged: Estimate(value=0.84, low=0.81, high=0.87)."""

    value: float
    low: float | None = None
    high: float | None = None


def estimate(row: Mapping[str, Any], key: str) -> Estimate:
    """A row's metric `key`, with its interval from `key_low` and `key_high`."""
    return Estimate(value=row[key], low=row.get(f"{key}_low"), high=row.get(f"{key}_high"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A held-out metric in the first and last evaluation; `trained` is None if there is only one evaluation."""

    name: str  # without "eval/"
    base: Estimate
    trained: Estimate | None


def compare(rows: Sequence[Row]) -> list[Comparison]:
    """Held-out metrics of the first and last evaluation in `rows`: pass@k by k, then the others by name."""
    evaluations = [row for row in rows if is_evaluation(row)]
    if not evaluations:
        return []
    first, last = evaluations[0], evaluations[-1]

    keys = [key for key in held_out_keys(first) if last.get(key) is not None]
    return [
        Comparison(
            name=key.removeprefix("eval/"),
            base=estimate(first, key),
            trained=None if last is first else estimate(last, key),
        )
        for key in keys
    ]
