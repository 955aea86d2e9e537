"""Algorithms side by side on the embedded base: docs/results/algorithms.md and its chart.

    python benchmarks/algorithms.py                                              # all, three seeds each: hours
    python benchmarks/algorithms.py --algorithms dapo,clip_cov --seeds 42 --steps 4 --output /tmp/algorithms.md

Each run is recipes/r1_zero.yaml with the overrides in ALGORITHMS, in a folder of its own. What a finished run measured
is kept in a file beside the chart, an interrupted run goes on from its last checkpoint: the command can be stopped and
repeated, on another machine too. On-policy algorithms take one update per rollout, where all surrogates are the same;
surrogates are compared with four.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from grpo.report.records import METRICS_FILE, Row, is_evaluation, read_rows

ROOT = Path(__file__).parents[1]
OFF_POLICY = ["steps_per_generation=4"]  # four updates, with 32 problems each, from one rollout of 128
ALGORITHMS: dict[str, list[str]] = {  # keys of the section `algorithm`; what is not named is the recipe's (dapo)
    "dapo": [],
    "grpo": ["loss_type=grpo"],
    "dr_grpo": ["loss_type=dr_grpo", "scale_rewards=none"],
    "bnpo": ["loss_type=bnpo"],
    "rloo": ["advantage_estimator=rloo"],
    "reinforce_plus_plus": ["advantage_estimator=reinforce_plus_plus"],
    "reinforce_plus_plus_baseline": ["advantage_estimator=reinforce_plus_plus_baseline"],
    "maxrl": ["advantage_estimator=maxrl"],
    "pass_at_k": ["advantage_estimator=pass_at_k", "pass_k=4"],
    "gdpo": ["multi_objective_aggregation=normalize_then_sum"],
    "grpo_lead": ["difficulty_weighting=true"],
    "entropy": ["entropy_coef=0.01"],
    "adaptive_entropy": ["entropy_target=0.3", "entropy_coef_delta=0.001"],
    "clip_cov": ["loss_type=clip_cov", "cov_ratio=0.002"],
    "dapo_off": OFF_POLICY,
    "dapo_off_high": ["epsilon_high=0.28", *OFF_POLICY],
    "dual_clip_off": ["delta=3", *OFF_POLICY],
    "gspo_off": ["loss_type=gspo", "epsilon=3e-4", "epsilon_high=4e-4", *OFF_POLICY],
    "gspo_token_off": ["loss_type=gspo_token", "epsilon=3e-4", "epsilon_high=4e-4", *OFF_POLICY],
    "luspo_off": ["loss_type=luspo", "epsilon=3e-4", "epsilon_high=4e-4", *OFF_POLICY],
    "cispo_off": ["loss_type=cispo", "epsilon_high=5", *OFF_POLICY],
    "sapo_off": ["loss_type=sapo", *OFF_POLICY],
    "clip_cov_off": ["loss_type=clip_cov", "cov_ratio=0.002", *OFF_POLICY],
    "kl_cov_off": ["loss_type=kl_cov", "cov_ratio=0.002", *OFF_POLICY],
    "vespo_off": ["loss_type=vespo", *OFF_POLICY],
    "dppo_off": ["loss_type=dppo", *OFF_POLICY],
}
LAST = 5  # steps that metrics of the end are taken over


@dataclass(frozen=True, slots=True)
class Result:
    """What a finished run measured."""

    before: float  # held-out pass@1
    after: float
    low: float  # bounds of the run's own interval for `after`
    high: float
    entropy: float
    length: float
    mismatch: float  # the largest of the steps' means
    seconds: float  # per optimizer step, the median

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Result":
        evaluations = [row for row in rows if is_evaluation(row)]
        steps = [row for row in rows if "step_time" in row]
        updates = steps[1]["step"] - steps[0]["step"] if len(steps) > 1 else steps[0]["step"]
        end = [row for row in steps if row["step"] > steps[-1]["step"] - max(LAST, updates)]

        def measured(name: str, rows: Sequence[Row]) -> list[float]:
            """Without the steps in which no group had a signal: they trained nothing."""
            return [row[name] for row in rows if row.get(name) is not None]

        return cls(
            before=evaluations[0]["eval/pass@1"],
            after=evaluations[-1]["eval/pass@1"],
            low=evaluations[-1]["eval/pass@1_low"],
            high=evaluations[-1]["eval/pass@1_high"],
            entropy=statistics.mean(measured("entropy", end)),
            length=statistics.mean(measured("completions/mean_length", end)),
            mismatch=max(measured("sampling/sampling_logp_difference/mean", steps)),
            seconds=statistics.median(row["step_time"] for row in steps) / updates,
        )


@dataclass(frozen=True, slots=True)
class Run:
    """One training: what recipes/r1_zero.yaml is changed by, seed apart."""

    name: str
    seed: int
    settings: list[str]

    @classmethod
    def of(cls, name: str, seed: int, steps: int, overrides: Sequence[str]) -> "Run":
        own = [f"algorithm.{setting}" for setting in ALGORITHMS[name]]
        return cls(name, seed, [*own, *overrides, f"trainer.max_steps={steps}"])

    @property
    def key(self) -> dict[str, str]:
        return {"algorithm": self.name, "seed": str(self.seed), "settings": " ".join(self.settings)}

    @property
    def folder(self) -> str:
        """Another one for other settings."""
        return f"{self.name}_{self.seed}_{zlib.crc32(self.key['settings'].encode()):08x}"


class Kept:
    """What finished runs measured, one line each in a CSV file. Runs with other settings stay in it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def find(self, run: Run) -> Result | None:
        for row in self._rows():
            if run.key.items() <= row.items():
                return Result(**{field.name: float(row[field.name]) for field in fields(Result)})
        return None

    def add(self, run: Run, result: Result) -> None:
        measured = {key: f"{value:.4g}" for key, value in asdict(result).items()}
        rows = [*self._rows(), {**run.key, **measured}]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("w", encoding="utf-8", newline="") as out:
            writer = csv.DictWriter(out, list(rows[-1]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def _rows(self) -> list[dict[str, str]]:
        if not self.file.exists():
            return []
        with self.file.open(encoding="utf-8", newline="") as lines:
            return list(csv.DictReader(lines))


def train(run: Run, steps: int, folder: Path) -> Result:
    """Train, or read what has been trained."""
    out = folder / run.folder
    metrics = out / METRICS_FILE

    def is_finished() -> bool:
        return any(is_evaluation(row) and row["step"] == steps for row in read_rows(metrics))

    if not is_finished():
        print(f"training {out}", flush=True)
        settings = [
            *run.settings,
            f"trainer.output_dir={out}",
            f"trainer.seed={run.seed}",
            "trainer.resume_from_checkpoint=true",
            "evaluation.eval_steps=0",
        ]
        recipe = ROOT / "recipes" / "r1_zero.yaml"
        with (folder / f"{out.name}.log").open("a") as log:
            subprocess.run(
                [sys.executable, "-m", "grpo", "train", recipe, *settings], check=True, stdout=log, stderr=log
            )
    if not is_finished():
        raise RuntimeError(f"{metrics} has no evaluation at step {steps}. See {folder / out.name}.log.")
    return Result.of(list(read_rows(metrics)))


def interval(results: Sequence[Result]) -> tuple[float, float, float]:
    """Held-out pass@1 and its bounds: the range over seeds, or of one run its own 95% interval."""
    after = [result.after for result in results]
    if len(results) == 1:
        return after[0], results[0].low, results[0].high
    return statistics.mean(after), min(after), max(after)


def table(results: dict[str, list[Result]], seeds: Sequence[int], steps: int, command: str, chart: Path) -> str:
    bounds = "its 95% interval" if len(seeds) == 1 else f"the range over seeds {', '.join(map(str, seeds))}"
    before = statistics.mean(result.before for runs in results.values() for result in runs)
    lines = [
        "# Algorithms on the embedded base",
        "",
        f"    {command}",
        "",
        f"`recipes/r1_zero.yaml` with {steps} optimizer steps and what the command changes. Held-out pass@1 with "
        f"{bounds}; the base has {before:.3f}. Entropy and length are those of the completions that the last {LAST} "
        "steps train on, the mismatch is the largest mean |log p_trainer − log p_engine| of a step. `_off`: four "
        "updates per rollout, else one. Time depends on what else the machine does.",
        "",
        f"![held-out pass@1]({chart.parent.name}/{chart.name})",
        "",
        f"Each run: [{chart.parent.name}/runs.csv]({chart.parent.name}/runs.csv).",
        "",
        "| algorithm | settings | pass@1 | entropy | length | mismatch | s/step |",
        "|---|---|---|---|---|---|---|",
    ]

    def mean(runs: Sequence[Result], value: Callable[[Result], float]) -> float:
        return statistics.mean(value(result) for result in runs)

    for name, runs in sorted(results.items(), key=lambda item: -interval(item[1])[0]):
        middle, low, high = interval(runs)
        settings = " ".join(f"`{setting}`" for setting in ALGORITHMS[name]) or "the recipe's"
        lines.append(
            f"| {name} | {settings} | {middle:.3f} [{low:.3f}, {high:.3f}] | {mean(runs, lambda r: r.entropy):.3f} "
            f"| {mean(runs, lambda r: r.length):.1f} | {max(r.mismatch for r in runs):.1e} "
            f"| {mean(runs, lambda r: r.seconds):.1f} |"
        )
    return "\n".join(lines) + "\n"


def draw(results: dict[str, list[Result]], output: Path) -> None:
    """A line per algorithm: held-out pass@1 with its bounds, beside the base's."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "algorithms"  # the same bytes for the same numbers
    from matplotlib import pyplot

    ranked = sorted(results, key=lambda name: interval(results[name])[0])
    figure, panel = pyplot.subplots(figsize=(6.4, 1.2 + 0.26 * len(ranked)))
    for place, name in enumerate(ranked):
        middle, low, high = interval(results[name])
        panel.plot([low, high], [place, place], color="#7aa6d6", linewidth=3, solid_capstyle="round")
        panel.plot([middle], [place], "o", color="#1f5fa8", markersize=5)
    before = statistics.mean(result.before for runs in results.values() for result in runs)
    panel.axvline(before, color="#888888", linewidth=1, linestyle="--")
    panel.set_yticks(range(len(ranked)), ranked)
    panel.set_xlabel("held-out pass@1 (dashed: the base)")
    panel.grid(axis="x", alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS), help=f"of {', '.join(ALGORITHMS)}")
    parser.add_argument("--seeds", default="42,43,44")
    parser.add_argument("--steps", type=int, default=32, help="optimizer steps, a multiple of 4 for `_off`")
    parser.add_argument("--folder", type=Path, default=Path("runs/algorithms"), help="of the runs")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "algorithms.md")
    parser.add_argument("overrides", nargs="*", help="of the recipe, such as rollout.num_generations=8")
    options = parser.parse_args()
    names, seeds = options.algorithms.split(","), [int(seed) for seed in options.seeds.split(",")]
    if unknown := [name for name in names if name not in ALGORITHMS]:
        parser.error(f"{unknown[0]!r} is not one of {', '.join(ALGORITHMS)}.")
    options.folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[Result]] = {}
    chart = options.output.parent / options.output.stem / "pass_at_1.svg"
    command = f"python {' '.join(['benchmarks/algorithms.py', *sys.argv[1:]])}"
    kept = Kept(chart.with_name("runs.csv"))
    for seed in seeds:  # the first seed of all comes before the second of one
        for name in names:
            run = Run.of(name, seed, options.steps, options.overrides)
            result = kept.find(run)
            if result is None:
                result = train(run, options.steps, options.folder)
                kept.add(run, result)
            results.setdefault(name, []).append(result)
            done = {name: runs for name, runs in results.items() if len(runs) == len(results[name])}
            options.output.write_text(table(done, seeds, options.steps, command, chart), encoding="utf-8")
    draw(results, chart)
    print(options.output.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
