"""Tables and charts of R1 pipelines that have run: docs/results/r1.md.

    python benchmarks/r1.py table runs/r1 runs/r1_43 runs/r1_44
    python benchmarks/r1.py chart out.svg rewards/language/mean,rewards/countdown/mean \
        'with language reward=runs/r1/rl_reasoning' 'without=runs/without_language'

table: one row per model, the mean over runs and the range. chart: a panel per metric, a line per run.
"""

import argparse
import json
from pathlib import Path

import yaml

from grpo.report.records import METRICS_FILE, read_rows
from grpo.stages.pipeline.held_out import RESULTS_FILE

SHOWN = {
    ("reasoning", "pass@1"): "pass@1",
    ("reasoning", "pass@4"): "pass@4",
    ("reasoning", "rewards/format/mean"): "format",
    ("reasoning", "rewards/language/mean"): "language",
    ("reasoning", "mean_length"): "length",
    ("general", "rewards/courtesy/mean"): "courtesy",
    ("general", "rewards/reward_model/mean"): "preference",
}


def table(runs: list[Path]) -> None:
    results = [
        {path.parent.name: json.loads(path.read_text()) for path in (run / "evaluation").glob(f"*/{RESULTS_FILE}")}
        for run in runs
    ]
    stages = [name for name in ("base", *_stages(runs[0])) if name in results[0]]
    print(f"| model | {' | '.join(SHOWN.values())} |\n|---|{'---|' * len(SHOWN)}")
    for name in stages:
        cells = [_cell([run[name][part][key] for run in results]) for part, key in SHOWN]
        print(f"| `{name}` | {' | '.join(cells)} |")


def _stages(run: Path) -> list[str]:
    """In the order of the recipe."""
    return list(yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))["stages"])


def _cell(values: list[float]) -> str:
    digits = 1 if max(values) >= 10 else 3
    mean = f"{sum(values) / len(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def chart(output: Path, metrics: list[str], runs: dict[str, Path]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "r1"  # the same bytes for the same numbers
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(metrics), figsize=(4.6 * len(metrics), 3.2), squeeze=False)
    for panel, metric in zip(panels[0], metrics, strict=True):
        for label, run in runs.items():
            rows = [row for row in read_rows(run / METRICS_FILE) if row.get(metric) is not None]
            panel.plot([row["step"] for row in rows], [row[metric] for row in rows], label=label, linewidth=1.8)
        panel.set_title(metric, fontsize=10)
        panel.set_xlabel("step")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(output, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    tables = commands.add_parser("table")
    tables.add_argument("runs", type=Path, nargs="+", help="outputs of recipes/r1.yaml")
    charts = commands.add_parser("chart")
    charts.add_argument("output", type=Path)
    charts.add_argument("metrics", help="comma-separated")
    charts.add_argument("runs", nargs="+", help="label=folder of a run")
    options = parser.parse_args()
    if options.command == "table":
        table(options.runs)
    else:
        runs = dict(run.split("=", 1) for run in options.runs)
        chart(options.output, options.metrics.split(","), {label: Path(run) for label, run in runs.items()})


if __name__ == "__main__":
    main()
