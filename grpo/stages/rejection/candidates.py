"""Samples with their rewards on disk, one file per batch of problems.

A file appears whole or not at all, and its metadata says where the stream of problems stood after it: the files are all
that resuming needs. Their content does not depend on the number of processes.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rewards.text import asked
from rollout.types import Message, Problem

FOLDER = "candidates"
REWARD = "rewards/"  # prefix of the rewards' columns
_STATE = b"state"
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

Candidate = dict[str, Any]  # a sample as a row of the schema below


def schema(rewards: Sequence[str], *, chat: bool) -> pa.Schema:
    """Columns of a file.

    rewards: names of the rewards.
    chat: prompts are lists of messages.
    """
    return pa.schema(
        [
            ("prompt", _MESSAGES if chat else pa.string()),
            ("completion", pa.string()),
            ("data_source", pa.string()),
            ("problem_id", pa.string()),
            ("sample", pa.int32()),
            ("num_tokens", pa.int32()),
            ("finished", pa.bool_()),
            *((REWARD + name, pa.float64()) for name in rewards),
        ]
    )


def question(problem: Problem) -> str | list[Message]:
    """A problem's prompt as files have it: without a prefilled answer, which is the start of the completion."""
    if isinstance(problem.prompt, str):
        return problem.prompt
    return [{"role": message["role"], "content": message["content"]} for message in asked(problem.prompt)]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The candidates of one run, in `<output>/candidates`. Samples of a problem are neighbours."""

    folder: Path

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    def write(self, batch: Sequence[Candidate], rewards: Sequence[str], state: dict[str, Any]) -> None:
        """Add a batch, with what is needed to continue after it."""
        chat = bool(batch) and not isinstance(batch[0]["prompt"], str)
        columns = schema(rewards, chat=chat).with_metadata({_STATE: json.dumps(state)})
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{len(self.files):06d}.parquet"
        partial = path.with_suffix(".partial")
        pq.write_table(pa.Table.from_pylist(list(batch), schema=columns), partial, compression="zstd")
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.rename(path)

    def state(self) -> dict[str, Any] | None:
        """The state written with the last batch; None before the first."""
        return json.loads(pq.read_schema(self.files[-1]).metadata[_STATE]) if self.files else None

    def tables(self) -> Iterator[pa.Table]:
        """Each batch in turn."""
        return map(pq.read_table, self.files)

    def at(self, positions: NDArray[np.int64]) -> Iterator[pa.Table]:
        """Each batch's rows at these positions among all candidates, ascending; maybe none of a batch."""
        start = 0
        for table in self.tables():
            first, end = np.searchsorted(positions, (start, start + len(table)))
            yield table.take(pa.array(positions[first:end] - start)).replace_schema_metadata(None)
            start += len(table)
