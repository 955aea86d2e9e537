"""A run's report: metrics.jsonl, samples.jsonl, trackers, terminal output and the page.

    report = Report(output_dir, recipe, accelerator=accelerator)
    with closing(report):                                  # an interrupted run gets a page too
        report.log_evaluation(0, {"eval/pass@1": 0.18, …})
        with report.phase("generate"):
            …
        report.log(1, {"reward": 0.2, …})                  # adds time/generate
        report.log_samples(1, scored_groups, advantages)
        report.summary()

Metrics arrive already reduced over processes; only the main process writes, and it logs its own shard's samples. What
the disk refuses does not raise, as the other processes would wait: `unwritten` says so, and the trainer ends the run.
"""

import errno
import hashlib
import json
import math
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rich.console import Console

from grpo.recipe.config import OnPolicyRecipe
from grpo.report.diagnosis.finding import Finding
from grpo.report.diagnosis.watch import Watch
from grpo.report.metrics import Value
from grpo.report.page.write import write_page
from grpo.report.records import (
    ERROR_FILE,
    METRICS_FILE,
    SAMPLES_FILE,
    Row,
    append,
    compare,
    cut_after,
    held_out_counts,
    is_evaluation,
    read_rows,
)
from grpo.report.schedule import due_within
from grpo.report.terminal import Terminal
from rewards.runner.values import Spans
from rollout.support.names import nearest

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rewards.runner.score import ScoredGroup


class Report:
    """One run's report, in `output_dir`.

    Files get every step, terminal and trackers every `report.logging_steps`. With `resume_step=n`, rows after step n
    are dropped: a killed run wrote them after its last checkpoint. Without it, the files start empty.
    """

    def __init__(
        self,
        output_dir: Path,
        recipe: OnPolicyRecipe,
        *,
        accelerator: "Accelerator",
        resume_step: int | None = None,
        console: Console | None = None,
    ) -> None:
        self.output_dir = output_dir
        self.recipe = recipe
        self.accelerator = accelerator
        self.seconds: defaultdict[str, float] = defaultdict(float)  # per phase, since the last row
        self.intervals: deque[float] = deque(maxlen=20)  # wall seconds per step, of the latest rows
        self.mark = time.perf_counter()
        self.step = resume_step or 0  # of the last row
        self.watch = Watch(recipe.model_dump())
        self.terminal: Terminal | None = None
        self.closed = False
        self.unwritten = ""  # why a file could not be written
        self._start_trackers(resume_step)
        if accelerator.is_main_process:
            output_dir.mkdir(parents=True, exist_ok=True)
            self.metrics_file = _open(output_dir / METRICS_FILE, resume_step)
            self.samples_file = _open(output_dir / SAMPLES_FILE, resume_step)
            (output_dir / ERROR_FILE).unlink(missing_ok=True)
            # With the rows of the run that is resumed.
            self.watch = Watch.of(read_rows(output_dir / METRICS_FILE), recipe.model_dump())
            self.terminal = Terminal(
                console or Console(), max_steps=recipe.trainer.max_steps, first_step=resume_step or 0
            )

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the block's wall time to `time/<name>` in the next row. Phases do not nest."""
        if self.terminal is not None:
            self.terminal.phase(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        """Write the row of the steps since the last one, with `warnings` if any. Only finite numbers go to trackers."""
        times = {f"time/{name}": seconds for name, seconds in self.seconds.items()}
        self.seconds.clear()
        now = time.perf_counter()
        self.intervals.append((now - self.mark) / (step - self.step))
        self.mark = now
        last = self.recipe.trainer.max_steps
        shown = step == last or due_within(self.step, step, self.recipe.report.logging_steps)
        warnings = _alarms(self.watch.update({**metrics, "step": step}))
        row = self._write_metrics(
            step, {**metrics, **times, **({"warnings": warnings} if warnings else {})}, track=shown
        )
        if self.terminal is None:
            return
        if shown:
            self.terminal.step(step, row, (last - step) * sum(self.intervals) / len(self.intervals))
        self._warn(step, warnings)

    def log_evaluation(self, step: int, metrics: Mapping[str, Value]) -> None:
        """Write a held-out evaluation's row, whose keys start with `eval/`, and refresh the page."""
        times = {"time/evaluate": self.seconds.pop("evaluate")} if "evaluate" in self.seconds else {}
        warnings = _alarms(self.watch.update_evaluation({**metrics, "step": step}))
        row = self._write_metrics(
            step, {**metrics, **times, **({"warnings": warnings} if warnings else {})}, track=True
        )
        if not self.intervals:  # time before the first step does not count towards step durations
            self.mark = time.perf_counter()
        if self.terminal is not None:
            self.terminal.evaluation(step, row)
            self._warn(step, warnings)
            with self._writing():
                write_page(self.output_dir)

    def log_samples(self, step: int, groups: Sequence["ScoredGroup"], advantages: Sequence[Sequence[float]]) -> None:
        """Write `report.num_logged_groups` of the step's groups; `advantages[i][j]` belongs to completion j of group i.

        The choice depends on step and problem ids alone, so a resumed run logs the same groups.
        """
        if self.terminal is None:
            return

        def key(index: int) -> bytes:
            return hashlib.blake2b(f"{step}/{groups[index].group.problem.id}".encode(), digest_size=8).digest()

        for index in sorted(range(len(groups)), key=key)[: self.recipe.report.num_logged_groups]:
            with self._writing():
                _write_row(self.samples_file, _sample_row(step, groups[index], advantages[index]))

    def summary(self) -> None:
        """Print the held-out metrics, base against trained."""
        if self.terminal is not None:
            evaluations = [row for row in read_rows(self.output_dir / METRICS_FILE) if is_evaluation(row)]
            if comparisons := compare(evaluations):
                self.terminal.comparison(comparisons, held_out_counts(evaluations[-1]))

    def close(self, error: BaseException | None = None) -> None:
        """Close files and trackers and write the page, headed by the error that stopped the run. Idempotent.

        What the disk refuses is a warning: engine and workers are still to be closed.
        """
        if self.closed:
            return
        self.closed = True
        failure = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else None  # not Ctrl-C
        if failure and self.output_dir.exists():
            with self._writing():
                _write_once(self.output_dir / ERROR_FILE, {"step": self.step, "error": failure})
        for tracker in self.accelerator.trackers:
            with self._writing():
                tracker.finish()
        if self.terminal is not None:
            self.terminal.stop()
            self.metrics_file.close()
            self.samples_file.close()
            if failure:
                self.terminal.failure(f"stopped after step {self.step}: {failure}")
            with self._writing():
                self.terminal.message(f"page: {write_page(self.output_dir)}")
            if self.unwritten and self.unwritten not in (failure or ""):
                self.terminal.warning(self.unwritten)

    def _warn(self, step: int, warnings: Sequence[str]) -> None:
        for warning in warnings:
            if self.terminal is not None:
                self.terminal.warning(f"step {step}: {warning}")

    def _write_metrics(self, step: int, metrics: Mapping[str, Any], *, track: bool) -> Row:
        self.step = step
        row = {"step": step, **{key: _finite(metrics[key]) for key in sorted(metrics)}}
        with self._writing():
            if self.terminal is not None:
                _write_row(self.metrics_file, row)
            if track:
                scalars = {key: row[key] for key in metrics if isinstance(row[key], int | float)}
                self.accelerator.log(scalars, step=step)
        return row

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            remedy = ". Free disk space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            self.unwritten = f"the report in {self.output_dir} cannot be written ({error.strerror or error}){remedy}"

    def _start_trackers(self, resume_step: int | None) -> None:
        names = self.recipe.report.report_to
        if not names:
            return
        from accelerate.tracking import filter_trackers

        self.accelerator.project_configuration.set_directories(str(self.output_dir))
        self.accelerator.log_with = filter_trackers(names, self.output_dir)  # type: ignore[arg-type]
        run_name = self.recipe.report.run_name or self.output_dir.name
        options: dict[str, dict[str, Any]] = {"wandb": {"name": run_name}, "trackio": {"name": run_name}}
        if resume_step is not None:
            options["tensorboard"] = {"purge_step": resume_step + 1}
        self.accelerator.init_trackers(
            self.recipe.report.project, config=_flat(self.recipe.model_dump()), init_kwargs=options
        )


def check_trackers(names: Sequence[str]) -> None:
    """Of `report.report_to`, before a model loads. accelerate would drop trackers that are not installed.

    Raises:
        ValueError: accelerate has no such tracker, or it is not installed.
    """
    if not names:
        return
    # Not filter_trackers: it logs what is missing, and accelerate's logger needs an Accelerator.
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(
                f"report.report_to={[*names]}: there is no tracker {name!r}.{nearest(name, LOGGER_TYPE_TO_CLASS)} "
                f"Name each of those you want: {', '.join(LOGGER_TYPE_TO_CLASS)}."
            )
    if missing := sorted(set(names) - set(map(str, get_available_trackers()))):
        raise ValueError(
            f"report.report_to={[*names]}: {missing} cannot be imported. "
            f"Install with `pip install {' '.join(missing)}`, or remove from report_to."
        )


def _alarms(findings: Sequence[Finding]) -> list[str]:
    """Texts of those that a run warns of; its page shows notes as well."""
    return [finding.warning for finding in findings if finding.level == "alarm"]


def _open(path: Path, resume_step: int | None) -> BinaryIO:
    if resume_step is not None:
        cut_after(path, resume_step)
    return path.open("wb" if resume_step is None else "ab", buffering=0)


def _write_once(path: Path, row: Row) -> None:
    """Write a row unless the file exists: of several processes, the first to fail has the cause."""
    try:
        with path.open("xb", buffering=0) as file:
            _write_row(file, row)
    except FileExistsError:
        pass


def _write_row(file: BinaryIO, row: Row) -> None:
    # default=str: datasets have dates and other non-JSON types in a problem's columns.
    append(file, json.dumps(row, default=str, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """Turn NaN and infinity into null: they are not valid JSON, and readers other than Python's reject them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value


def _spans(scored: "ScoredGroup", index: int) -> Row:
    """By reward: [[start, end, value], …] where it returned spans."""
    values = {name: of_all[index] for name, of_all in scored.breakdown.items()}
    return {name: value.spans for name, value in values.items() if isinstance(value, Spans)}


def _sample_row(step: int, scored: "ScoredGroup", advantages: Sequence[float]) -> Row:
    problem = scored.group.problem
    return {
        "step": step,
        "problem_id": problem.id,
        "prompt": problem.prompt,
        "columns": _finite(problem.columns),
        "completions": [
            {
                "text": completion.text,
                "num_tokens": len(completion.token_ids),
                "finish_reason": completion.finish_reason,
                "reward": _finite(scored.rewards[index]),
                "rewards": {name: _finite(values[index]) for name, values in scored.breakdown.items()},
                "advantage": _finite(advantages[index]),
                **(
                    {"gated": closed}
                    if (closed := [name for name, gates in scored.gated.items() if gates[index]])
                    else {}
                ),
                **({"spans": spans} if (spans := _spans(scored, index)) else {}),
                **({"extras": {c: _finite(v[index]) for c, v in scored.extras.items()}} if scored.extras else {}),
            }
            for index, completion in enumerate(scored.group.completions)
        ],
    }


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """{"trainer": {"seed": 1}} -> {"trainer.seed": 1}: trackers accept only flat values."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
