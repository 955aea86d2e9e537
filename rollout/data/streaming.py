"""Streaming datasets as a source of problems: rows are read as they are needed, and never all held.

Rows are shuffled within consecutive blocks of `shuffle_buffer_size` rows. A block's order depends only on the seed, the
epoch and the block, so a resumed run skips to its block and needs no saved buffer.

Left out: random access beyond the current block, which restarts the stream; slices of a split.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from rollout.data.columns import Columns, column_names, resolve_columns, to_problem
from rollout.data.dataset import display_name, open_dataset, reading
from rollout.types import Problem


class StreamingSource:
    """An endless walk over a streaming dataset, reshuffled every epoch; for names and columns see `DatasetSource`.

    Index i is place i of the walk, not row i. Ids hold the row number, and `@1` in the second epoch.
    """

    size = None

    def __init__(
        self,
        name: str,
        *,
        config: str | None = None,
        split: str = "train",
        revision: str | None = None,
        files: Sequence[str] = (),
        columns: Columns | None = None,
        seed: int = 0,
        shuffle_buffer_size: int,
    ) -> None:
        if "[" in split:
            raise ValueError(
                f"dataset_split={split!r}: a stream has no slices. Name a whole split, or set streaming=false."
            )
        self._rows = open_dataset(name, config=config, split=split, revision=revision, files=files, streaming=True)
        self._dataset, self._name, self._split = name, display_name(name), split
        self._seed, self._block_size = seed, shuffle_buffer_size
        self._length: int | None = None  # rows in the dataset; known once an epoch has ended
        self._epoch, self._start = 0, 0  # of the current block
        self._block: list[tuple[int, dict[str, Any]]] = []  # row numbers and rows, shuffled
        self._read(0, 0)
        if not self._block:
            raise ValueError(f"dataset_name={name!r}, dataset_split={split!r}: no rows.")
        tree = self._rows.features or self._block[0][1]
        self._columns = resolve_columns(f"dataset {name!r}", column_names(tree), columns or {})

    def __getitem__(self, index: int) -> Problem:
        epoch, place = self._locate(index)
        if epoch != self._epoch or not self._start <= place < self._start + len(self._block):
            self._read(epoch, place - place % self._block_size)
            if place >= self._start + len(self._block):  # past the end, which was unknown until now
                self._length = self._start + len(self._block) if self._block else self._count()
                return self[index]
        number, row = self._block[place - self._start]
        suffix = f"@{epoch}" if epoch else ""
        return to_problem(f"{self._name}/{self._split}/{number}{suffix}", row, self._columns)

    def _locate(self, index: int) -> tuple[int, int]:
        return (0, index) if self._length is None else divmod(index, self._length)

    def _read(self, epoch: int, start: int) -> None:
        """Make the block that begins with row `start` the current one."""
        follows = self._block and (epoch, start) == (self._epoch, self._start + len(self._block))
        if not follows:
            self._iterator: Iterator[dict[str, Any]] = iter(self._rows.skip(start) if start else self._rows)
        with reading(self._dataset, self._split):
            rows = list(islice(self._iterator, self._block_size))
        self._block = list(enumerate(rows, start))
        random.Random(f"{self._seed}/{epoch}/{start}").shuffle(self._block)
        self._epoch, self._start = epoch, start

    def _count(self) -> int:
        return sum(1 for _ in self._rows)
