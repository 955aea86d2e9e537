"""An evaluation's progress: a live bar on a terminal, an occasional line otherwise."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from grpo.report.records import Row
from grpo.report.terminal import duration

SECONDS = 20.0  # between lines when not on a terminal


class Progress:
    """Counts one task's samples as they are written."""

    def __init__(self, task: str, total: int, *, shown: bool) -> None:
        self._task, self._total = task, total
        self._count = self._right = self._tokens = 0
        self._start = self._printed = time.perf_counter()
        self._console = Console()
        self._shown = shown and total > 0
        self._is_live = self._shown and self._console.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[status]}"))
        self._bar = Bar(*columns, console=self._console, transient=True, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self._is_live:
            self._bar.start()
            self._line = self._bar.add_task(self._task, total=self._total, status="")
        return self

    def advance(self, rows: Sequence[Row]) -> None:
        """Count these rows and show the progress so far."""
        self._count += len(rows)
        self._right += sum(row["verdict"] == "right" for row in rows)
        self._tokens += sum(row["num_tokens"] for row in rows)
        if not self._shown:
            return
        if self._is_live:
            self._bar.update(self._line, completed=self._count, status=self._status())
        elif time.perf_counter() - self._printed > SECONDS:
            self._print()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._shown:
            return
        if self._is_live:
            self._bar.stop()
        self._print()

    def _print(self) -> None:
        self._printed = time.perf_counter()
        self._console.print(f"{self._task}: {self._status()}", highlight=False, soft_wrap=True)

    def _status(self) -> str:
        seconds = time.perf_counter() - self._start
        left = duration(seconds / max(1, self._count) * (self._total - self._count))
        return (
            f"{self._count}/{self._total} samples, {self._right / max(1, self._count):.1%} right, "
            f"{self._tokens / max(seconds, 1e-9):.0f} tokens/s, {left} left"
        )
