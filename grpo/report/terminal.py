"""Terminal output: one aligned line per step, and on a terminal a live bar with the phase and time left."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from grpo.report.records import Comparison, Estimate, estimate, held_out_keys

PLAIN_WIDTH = 120  # columns, if the output is a file or a pipe
HEADER_EVERY = 25  # lines


@dataclass(frozen=True, slots=True)
class Column:
    """One metric in a step's line: Column("length", "completions/mean_length", 8, fixed(1))."""

    title: str
    key: str
    width: int
    show: Callable[[float], str]
    style: str = ""
    optional: bool = True  # dropped, rightmost first, if the line does not fit


def fixed(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """75 -> "1:15", 3675 -> "1:01:15"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


COLUMNS = (
    Column("reward", "reward", 7, fixed(3), "bold green", optional=False),
    Column("length", "completions/mean_length", 7, fixed(1), "cyan", optional=False),
    Column("clipped", "completions/clipped_ratio", 7, "{:.1%}".format),
    Column("no signal", "frac_reward_zero_std", 9, "{:.1%}".format),
    Column("entropy", "entropy", 7, fixed(3)),
    Column("kl", "kl", 8, "{:.2e}".format),
    Column("teacher kl", "teacher_kl", 10, fixed(3)),
    Column("grad norm", "grad_norm", 9, fixed(3)),
    Column("mismatch", "sampling/sampling_logp_difference/mean", 8, "{:.1e}".format),
    Column("generate", "time/generate", 8, fixed(1), "dim"),
    Column("update", "time/update", 6, fixed(1), "dim"),
    Column("s/step", "step_time", 6, fixed(1), "dim", optional=False),
)
ETA_WIDTH = 8


class Terminal:
    """Prints to `console`; colour and the live bar only on a terminal."""

    def __init__(self, console: Console, *, max_steps: int, first_step: int) -> None:
        self.console = console
        self.max_steps = max_steps
        self.width = min(console.width, PLAIN_WIDTH) if console.is_terminal else PLAIN_WIDTH
        self.columns: list[Column] = []
        self.lines = 0
        self.progress: Progress | None = None
        if console.is_terminal:
            self.progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description:<12}"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[eta]} left"),
                console=console,
                refresh_per_second=4,
                transient=True,
            )
            self.task = self.progress.add_task("start", total=max_steps, completed=first_step, eta="–")
            self.progress.start()

    def phase(self, name: str) -> None:
        """Show the current phase."""
        if self.progress is not None:
            self.progress.update(self.task, description=name)

    def step(self, step: int, row: Mapping[str, Any], seconds_left: float) -> None:
        """Print a step's line."""
        eta = duration(seconds_left)
        if self.progress is not None:
            self.progress.update(self.task, completed=step, eta=eta)
        if self.lines % HEADER_EVERY == 0:
            self.columns = self._fitting(row)
            titles = [f"{column.title:>{column.width}}" for column in self.columns]
            self._print(Text("  ".join([f"{'step':>{self._step_width}}", *titles, f"{'left':>{ETA_WIDTH}}"]), "bold"))
        self.lines += 1
        line = Text(f"{f'{step}/{self.max_steps}':>{self._step_width}}")
        for column in self.columns:
            value = row.get(column.key)
            shown = "–" if value is None else column.show(value)
            line.append("  ").append(f"{shown:>{column.width}}", column.style)
        self._print(line.append("  ").append(f"{eta:>{ETA_WIDTH}}", "dim"))

    def evaluation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Print an evaluation's lines."""
        parts = []
        for key in held_out_keys(metrics):
            name = key.removeprefix("eval/")
            parts.append(f"{name} {show_estimate(name, estimate(metrics, key))}")
        line = Text(f"{f'{step}/{self.max_steps}':>{self._step_width}}  ").append("held out", "bold magenta")
        for part in parts:
            if line.cell_len + 2 + len(part) > self.width:
                self._print(line)
                line = Text(" " * (self._step_width + 10))
            line.append("  ").append(part)
        self._print(line)

    def comparison(self, comparisons: Sequence[Comparison], counts: Sequence[str]) -> None:
        """Print the final table, base against trained, with what was measured as its caption."""
        self.stop()
        table = Table(box=SIMPLE_HEAD, caption="\n".join(counts), caption_justify="left")
        table.add_column("held out")
        table.add_column("base", justify="right")
        table.add_column("trained", justify="right", style="bold green")
        for compared in comparisons:
            trained = "" if compared.trained is None else show_estimate(compared.name, compared.trained)
            table.add_row(compared.name, show_estimate(compared.name, compared.base), trained)
        self.console.print(table)

    def message(self, text: str) -> None:
        self._print(Text(text))

    def warning(self, text: str) -> None:
        self._print(Text(f"warning: {text}", "bold yellow"))

    def failure(self, text: str) -> None:
        self._print(Text(text, "bold red"))

    def stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()

    @property
    def _step_width(self) -> int:
        return max(9, 2 * len(str(self.max_steps)) + 1)

    def _fitting(self, row: Mapping[str, Any]) -> list[Column]:
        columns = [column for column in COLUMNS if column.key in row]

        def width() -> int:
            return self._step_width + sum(2 + column.width for column in columns) + 2 + ETA_WIDTH

        for column in reversed(columns.copy()):
            if width() > self.width and column.optional:
                columns.remove(column)
        return columns

    def _print(self, text: Text) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)


def show_estimate(name: str, estimate: Estimate) -> str:
    """Format "0.842 [0.812, 0.868]"; lengths get one decimal."""
    digits = 1 if name.endswith("length") else 3
    shown = f"{estimate.value:.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return shown
    return f"{shown} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
