"""`grpo check`: what a recipe needs and whether it fits this machine, without loading weights or data."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from grpo.launch.processes import quieten
from grpo.recipe.load import load_recipe
from grpo.recipe.record import check_world
from grpo.recipe.stages.pipeline import PipelineRecipe
from grpo.report.terminal import PLAIN_WIDTH
from grpo.stages.checks.references import check_references
from grpo.stages.pipeline.graph import build_graph


def check_recipe(path: str | Path, overrides: Sequence[str] = (), *, num_processes: int = 1) -> bool:
    """Print what a recipe needs: for a stage its parameters, memory by part and FLOPs, for a pipeline a line per stage.

    Returns False if it does not fit this machine.

    Raises:
        grpo.recipe.load.RecipeError: the recipe is invalid, or a local model's configuration cannot be read.
    """
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH
    console = Console(highlight=False, soft_wrap=True, width=width)
    recipe = load_recipe(path, overrides)
    check_world(recipe, num_processes)
    nodes = build_graph(recipe) if isinstance(recipe, PipelineRecipe) else []
    check_references(recipe, path)
    console.print(f"{path} is valid.")
    # Only now: the errors above do not wait for torch.
    quieten()
    from grpo.estimate.show_pipeline import show_pipeline
    from grpo.estimate.show_stage import show_stage

    if isinstance(recipe, PipelineRecipe):
        return show_pipeline(console, nodes, recipe.base, num_processes)
    return show_stage(console, recipe, num_processes)
