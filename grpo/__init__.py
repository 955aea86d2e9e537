"""Reinforcement learning for reasoning: GRPO on DeepSeek-V3-style mixtures of experts.

    import grpo

    grpo.train("recipes/r1_zero.yaml", reward_functions=[my_reward], trainer={"max_steps": 5})

Importing this package loads neither torch nor a recipe.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__version__ = "0.1.0"
__all__ = ["train"]


def train(
    recipe: str | Path, reward_functions: Sequence[Callable[..., Any]] | None = None, **sections: dict[str, Any]
) -> Path:
    """Run the stage of a recipe in this process; returns the folder it wrote, a Hugging Face checkpoint.

    Args:
        recipe: path of a YAML file.
        reward_functions: callables with TRL's signature, `f(prompts, completions, **columns) -> list[float | None]`,
            that join the recipe's own rewards with weight 1.
        sections: values that replace those of the file, such as `trainer={"max_steps": 5}`.

    Raises:
        grpo.recipe.RecipeError: the recipe is wrong; nothing was loaded yet.
    """
    from grpo.pipeline import run
    from grpo.recipe import load_recipe

    return run(load_recipe(recipe, sections=sections), reward_functions)
