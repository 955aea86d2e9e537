"""Runs made on purpose: rows written by the reporter itself, then diagnosed from the folder."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from rich.console import Console

from grpo.recipe.config import GRPORecipe
from grpo.report.diagnosis.finding import Finding
from grpo.report.diagnosis.run import Diagnosis, diagnose_run
from grpo.report.report import Report

HEALTHY: Mapping[str, Any] = {
    "reward": 0.5,
    "reward_std": 0.25,
    "frac_reward_zero_std": 0.25,
    "frac_unrewarded_samples": 0.0,
    "rewards/accuracy/mean": 0.5,
    "rewards/accuracy/std": 0.5,
    "completions/mean_length": 100.0,
    "completions/clipped_ratio": 0.125,
    "completions/empty_ratio": 0.0,
    "completions/repeated_ratio": 0.25,
    "data/dropped_prompts": 0,
    "entropy": 1.0,
    "grad_norm": 0.5,
    "learning_rate": 3e-4,
    "weight_change": 1e-3,
    "sampling/sampling_logp_difference/mean": 1e-6,
    "moe/load": [[0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]],
    "moe/load_max_violation": 0.1,
    "moe/dead_experts": 0.0,
}


def recipe(folder: Path, **sections: Any) -> GRPORecipe:
    """A resolved recipe, learning rate 3e-4, 16 completions of up to 512 tokens to each of 32 problems."""
    values: dict[str, Any] = {
        "model": {"model_name_or_path": "base"},
        "data": {"task": "countdown"},
        "rewards": [{"function": "accuracy"}],
        "trainer": {"max_steps": 100, "learning_rate": 3e-4, "output_dir": str(folder)},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section if isinstance(section, dict) else section
    return GRPORecipe.model_validate(values)


def made(folder: Path, rows: Iterable[Mapping[str, Any]], **sections: Any) -> Diagnosis:
    """The diagnosis of a run with these rows: healthy ones, changed by each mapping; those with eval/ are evaluations.

    Training rows are steps 1, 2, …; an evaluation belongs to the step before it.
    """
    settings = recipe(folder, **sections)
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    run = Report(folder, settings, accelerator=Accelerator(cpu=True), console=Console(file=io.StringIO()))
    step = 0
    for row in rows:
        if any(key.startswith("eval/") for key in row):
            run.log_evaluation(step, row)
        else:
            step += 1
            run.log(step, {**HEALTHY, **row})
    run.close()
    return diagnose_run(folder)


def only(diagnosis: Diagnosis) -> Finding:
    """The one finding of a run that has one."""
    (finding,) = diagnosis.findings
    return finding


def shown(finding: Finding) -> tuple[str, str, str, str, str]:
    """Level, sentence, figure, steps, suggestion: what tests compare with literal values."""
    return finding.level, finding.says, finding.figure, finding.steps, finding.overrides
