"""The diagnosis of a run's folder, or of each stage of a pipeline's; as text and as JSON.

for diagnosis in diagnose(Path("runs/r1_zero")):
    print("\n".join(lines(diagnosis)))
"""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from grpo.report.diagnosis.finding import Finding
from grpo.report.diagnosis.history import FEW
from grpo.report.diagnosis.watch import Watch
from grpo.report.records import ERROR_FILE, METRICS_FILE, RECIPE_FILE, Row, read_rows

WIDTH = 100  # columns
# What a run without findings is said to have been judged by, in this order.
LOOKED_AT = {
    "reward": "reward",
    "groups without signal": "frac_reward_zero_std",
    "truncated": "completions/clipped_ratio",
    "length": "completions/mean_length",
    "entropy": "entropy",
    "KL": "kl",
    "gradient norm": "grad_norm",
    "weight change per step": "weight_change",
    "mismatch": "sampling/sampling_logp_difference/mean",
    "busiest expert's overload": "moe/load_max_violation",
    "dead experts": "moe/dead_experts",
    "loss": "loss",
    "held-out pass@1": "eval/pass@1",
}
SHARES = ("frac_reward_zero_std", "completions/clipped_ratio")


@dataclass(frozen=True, slots=True)
class Looked:
    """A metric from a run's start to its end, each a mean of up to FEW values: Looked("reward", "reward", 0.3, 1.1)"""

    label: str
    metric: str
    first: float
    last: float

    def __str__(self) -> str:
        first, last = (f"{value:.1%}" if self.metric in SHARES else f"{value:.3g}" for value in (self.first, self.last))
        return f"{self.label} {last}" if first == last else f"{self.label} {first} → {last}"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A run's findings, alarms first, and the metrics that they come from."""

    name: str
    stage: str
    step: int  # the last one
    findings: list[Finding]
    looked_at: list[Looked]

    @property
    def has_alarms(self) -> bool:
        return any(finding.level == "alarm" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def diagnose(folder: Path) -> list[Diagnosis]:
    """The diagnosis of a run; of a pipeline, that of each stage which has written metrics, in the recipe's order.

    Raises:
        ValueError: the folder holds neither.
    """
    recipe = _recipe(folder)
    if recipe.get("stage") == "pipeline":
        stages = [folder / name for name in recipe["stages"]]
        if found := [diagnose_run(stage) for stage in stages if (stage / METRICS_FILE).exists()]:
            return found
        raise ValueError(f"{folder} is a pipeline's folder in which no stage has written {METRICS_FILE} yet.")
    if not (folder / METRICS_FILE).exists():
        raise ValueError(f"{folder} contains no {METRICS_FILE}. Name a run's output_dir, or a pipeline's output.")
    return [diagnose_run(folder)]


def diagnose_run(folder: Path) -> Diagnosis:
    """The diagnosis of one run's folder."""
    rows, error = list(read_rows(folder / METRICS_FILE)), next(read_rows(folder / ERROR_FILE), None)
    return diagnose_rows(rows, _recipe(folder), error, name=folder.resolve().name)


def diagnose_rows(
    rows: Sequence[Row], recipe: Mapping[str, Any], error: Row | None = None, *, name: str = ""
) -> Diagnosis:
    """Of a run's rows, its resolved recipe as plain values ({} if unknown) and its row of error.json."""
    findings = Watch.of(rows, recipe).findings()
    return Diagnosis(
        name,
        recipe.get("stage", "grpo"),
        max((row["step"] for row in rows), default=0),
        [_stopped(error), *findings] if error else findings,
        list(_looked_at(rows)),
    )


def lines(diagnosis: Diagnosis) -> Iterator[str]:
    """For a terminal."""
    yield f"{diagnosis.name}: stage {diagnosis.stage}, {diagnosis.step} steps"
    for finding in diagnosis.findings:
        yield from _wrapped(f"{finding.level}  ", f"{finding.steps}: {finding.says}")
        yield from _wrapped(" " * 7, finding.figure)
        yield from _wrapped(" " * 7, finding.remedy)
        if finding.overrides:
            yield f"         try {finding.overrides}"
    looked = ", ".join(map(str, diagnosis.looked_at)) or "no metric that a rule reads"
    yield from _wrapped("  ", f"{'Looked at' if diagnosis.findings else 'Nothing stands out. Looked at'}: {looked}.")


def _wrapped(label: str, text: str) -> Iterator[str]:
    indent = " " * (2 + len(label))
    yield from textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"  {label}",
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _stopped(error: Row) -> Finding:
    """Of an error.json. A signal is no fault of the run."""
    return Finding(
        kind="stopped",
        level="note" if error["error"].startswith("Stopped: ") else "alarm",
        says=f"The run stopped after step {error['step']}: {error['error']}",
        metric="step",
        value=float(error["step"]),
        rule=f"{ERROR_FILE} exists",
        first_step=error["step"],
        last_step=error["step"],
        remedy="Do what the message says, and resume with trainer.resume_from_checkpoint=true.",
    )


def _looked_at(rows: Sequence[Row]) -> Iterator[Looked]:
    for label, metric in LOOKED_AT.items():
        found = [row[metric] for row in rows if isinstance(row.get(metric), int | float)]
        values = [value for value in found if math.isfinite(value)]
        few = 1 if metric.startswith("eval/") else FEW
        if values:
            yield Looked(label, metric, _mean(values[:few]), _mean(values[-few:]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _recipe(folder: Path) -> Mapping[str, Any]:
    path = folder / RECIPE_FILE
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}
