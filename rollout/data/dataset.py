"""Datasets with random access as a source of problems.

Left out: streaming datasets (see `rollout.data.streaming`), mixtures of datasets.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from rollout.data.columns import Columns, column_names, resolve_columns, to_problem
from rollout.types import Problem

_FILE_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}


class DatasetSource:
    """Rows of a dataset: a Hub name, a local folder, or a local .json, .jsonl or .parquet file.

    A problem's id combines the dataset's name, split and row number, so it is the same on every machine.
    """

    def __init__(
        self,
        name: str,
        *,
        config: str | None = None,
        split: str = "train",
        revision: str | None = None,
        files: Sequence[str] = (),
        columns: Columns | None = None,
    ) -> None:
        rows = open_dataset(name, config=config, split=split, revision=revision, files=files, streaming=False)
        if len(rows) == 0:
            raise ValueError(f"dataset_name={name!r}, dataset_split={split!r}: no rows.")
        self.name = display_name(name)
        self.split = split
        self.size = len(rows)
        self.column_names: list[str] = rows.column_names
        self._rows = rows
        self._columns = resolve_columns(f"dataset {name!r}", column_names(rows.features), columns or {})

    def __getitem__(self, index: int) -> Problem:
        return to_problem(f"{self.name}/{self.split}/{index}", self._rows[index], self._columns)

    def within(self, column: str, low: Any, high: Any) -> list[int]:
        """Row numbers with low <= column < high. Dates are compared in ISO format, such as "2024-08-01T00:00:00"."""
        if column not in self.column_names:
            has = ", ".join(self.column_names)
            raise ValueError(f"where={{{column}: …}}: dataset {self.name!r} has no column {column!r}. It has: {has}.")
        found: list[int] = []
        for index, value in enumerate(self._rows[column]):
            value = value.isoformat() if isinstance(value, date) else value
            if isinstance(value, str) != isinstance(low, str) or value is None:
                raise ValueError(
                    f"where={{{column}: [{low!r}, {high!r}]}}: row {index} of {self.name!r} holds {value!r}, which "
                    "cannot be compared with these bounds. Give both bounds as strings for strings and dates, else as "
                    "numbers."
                )
            if low <= value < high:
                found.append(index)
        return found


def open_dataset(
    name: str, *, config: str | None, split: str, revision: str | None, files: Sequence[str], streaming: bool
) -> Any:
    """A `datasets.Dataset`, or an `IterableDataset` if streaming; arguments as in `DatasetSource`."""
    from datasets import load_dataset

    path = Path(name)
    kind = name
    options: dict[str, Any] = {"name": config, "revision": revision}
    if files:
        folder = name if path.is_dir() else f"hf://datasets/{name}@{revision or 'main'}"
        kind, options = _file_format(files), {"data_files": [f"{folder}/{file}" for file in files]}
    elif path.suffix in _FILE_FORMATS:
        if not path.is_file():
            raise ValueError(f"dataset_name={name!r}: no such file (looked for {path.absolute()}).")
        if path.stat().st_size == 0:
            raise ValueError(f"dataset_name={name!r}: the file is empty.")
        kind, options = _FILE_FORMATS[path.suffix], {"data_files": str(path)}
    elif path.is_file():
        raise ValueError(f"dataset_name={name!r}: of files, {', '.join(_FILE_FORMATS)} are read. Convert it to one.")
    with reading(name, split):
        return load_dataset(kind, split=split, streaming=streaming, **options)


@contextmanager
def reading(name: str, split: str) -> Iterator[None]:
    """Around what reads a dataset: errors of `datasets` and Arrow, which name neither, get its name and split.

    Raises:
        ValueError: in their place.
    """
    from datasets.exceptions import DatasetGenerationError

    try:
        yield
    except (OSError, ValueError, DatasetGenerationError) as error:
        reason = str(error.__cause__ or error)
        reason = "it has no rows" if "corresponds to no data" in reason else reason
        raise ValueError(
            f"dataset_name={name!r}, dataset_split={split!r} cannot be read: {reason.rstrip('.')}. Correct the name, "
            "the split or the file."
        ) from error


def display_name(name: str) -> str:
    """The dataset's name in problem ids: without the folders of a local path, which differ between machines."""
    return Path(name).name if Path(name).exists() else name


def _file_format(files: Sequence[str]) -> str:
    formats = {_FILE_FORMATS.get(Path(file).suffix) for file in files}
    kind = formats.pop()
    if formats or kind is None:
        known = ", ".join(_FILE_FORMATS)
        raise ValueError(f"dataset_files={list(files)}: all files must have the same format, one of {known}.")
    return kind
