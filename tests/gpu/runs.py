"""What the checks on GPUs share: a run of a recipe in processes of its own, and its figures."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parents[2] / "recipes"
BF16 = ("model.dtype=bfloat16", "algorithm.max_logp_difference=1")  # measured here, not refused
SHORT = ("evaluation.num_problems=0", "evaluation.eval_steps=0", "trainer.save_steps=0", "rollout.problems_per_step=8")


def train(
    folder: Path,
    recipe: str,
    overrides: Sequence[str],
    *,
    processes: int = 1,
    environment: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Run a recipe to its end; returns the rows of its rollouts."""
    command = [sys.executable, "-m", "grpo", "train", "--num_processes", str(processes), str(RECIPES / recipe)]
    command += [f"trainer.output_dir={folder}", *overrides]
    done = subprocess.run(command, env={**os.environ, **(environment or {})}, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-4000:]}"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "step_time" in row]


def run_python(source: str, *arguments: object) -> dict[str, float]:
    """Run a program that prints one line of JSON at its end."""
    command = [sys.executable, "-c", source, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def mismatch(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The largest over the steps of each metric of |log p_trainer - log p_engine|."""
    prefix = "sampling/sampling_logp_difference/"
    return {name: max(row[prefix + name] for row in rows) for name in ("mean", "p999", "max")}
