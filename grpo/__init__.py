"""Reinforcement learning for reasoning: GRPO on DeepSeek-V3-style mixtures of experts.

    import grpo

    grpo.train("recipes/r1_zero.yaml", reward_functions=[my_reward], trainer={"max_steps": 5})

    grpo.evaluate(model="runs/r1_zero/checkpoint-40", tasks=["countdown"], template="{prompt} :").tasks

Importing this package does not import torch.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpo.evaluation.results.store import Results

__version__ = "0.1.0"
__all__ = ["evaluate", "train"]


def train(
    recipe: str | Path, reward_functions: Sequence[Callable[..., Any]] | None = None, **sections: dict[str, Any]
) -> Path:
    """Run a recipe's stage in this process; returns the folder it wrote, a Hugging Face checkpoint.

    Args:
        recipe: path of a YAML file.
        reward_functions: callables with TRL's signature, `f(prompts, completions, **columns) -> list[float | None]`,
            added to the recipe's rewards with weight 1.
        sections: values that override the file's, such as `trainer={"max_steps": 5}`.

    Raises:
        grpo.recipe.load.RecipeError: the recipe is invalid; raised before anything is loaded.
    """
    from grpo.launch.processes import quieten

    quieten()
    from grpo.recipe.load import load_recipe
    from grpo.stages.run import run

    return run(load_recipe(recipe, sections=sections), reward_functions)


def evaluate(recipe: str | Path | None = None, *, model: str | None = None, **sections: Any) -> "Results":
    """Evaluate a checkpoint on tasks in this process, like `grpo eval`. The results are also written to `output`.

    Args:
        recipe: path of a YAML file with `stage: eval`; None: all values are given here.
        model: a Hugging Face folder or Hub name, or a LoRA adapter's folder.
        sections: values that override the file's, such as `tasks=["gsm8k"]`, `protocol="greedy"`,
            `sampling={"num_samples": 4}`, `engine={"name": "hf"}`, `output="runs/eval"`.

    Raises:
        grpo.recipe.load.RecipeError: the recipe is invalid; raised before anything is loaded.
        ValueError: a task, a column, the template or the model is invalid.
    """
    from grpo.launch.processes import quieten

    quieten()
    from grpo.evaluation.run import run_evaluation
    from grpo.recipe.load import load_recipe

    if model is not None:
        sections["model"] = {"model_name_or_path": model, **sections.get("model", {})}
    return run_evaluation(load_recipe(recipe, sections={"stage": "eval", **sections}))  # pyright: ignore[reportArgumentType]
