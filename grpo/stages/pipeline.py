"""What a recipe's `stage` runs.

A stage turns a checked recipe into a Hugging Face folder, which the next stage can start from. To add one, write a
module with a recipe class and a function, and add a line to grpo/recipe/registry.py.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from grpo.recipe.config import GRPORecipe
from grpo.recipe.record import check_world, write_resolved
from grpo.recipe.registry import STAGES
from grpo.recipe.section import Section


def run(recipe: GRPORecipe | Section, reward_functions: Sequence[Callable[..., Any]] | None = None) -> Path:
    """Run a recipe's stage in this process; returns the folder it wrote. The resolved recipe goes to `output_dir`.

    Raises:
        ValueError: reward functions were given to a stage that has no rewards.
        grpo.recipe.load.RecipeError: the problems cannot be shared among this many processes.
    """
    values: Any = recipe  # every recipe class has `stage` and `output_dir`
    check_world(recipe, int(os.environ.get("WORLD_SIZE", "1")))
    stage = STAGES[values.stage].function()
    # An evaluation writes it when it knows that the samples that may be there were drawn under the same settings.
    if os.environ.get("RANK", "0") == "0" and values.stage != "eval":
        write_resolved(recipe, values.output_dir)
    if isinstance(recipe, GRPORecipe):
        return stage(recipe, reward_functions)
    if reward_functions:
        raise ValueError(f"stage {values.stage!r} has no rewards, and reward_functions were given. Leave them out.")
    return stage(recipe)
