"""The stages a recipe can name. To add one, write its recipe class and its function, and add a line to STAGES."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from grpo.recipe.config import Section


@dataclass(frozen=True, slots=True)
class Stage:
    """Stage(recipe="grpo.recipe.config:GRPORecipe", run="grpo.stages.grpo:train")

    References, not objects: a stage's modules are imported only when a recipe uses the stage.
    """

    recipe: str  # the recipe class; it has `stage` and `output_dir`
    run: str  # recipe -> the folder it wrote

    def recipe_class(self) -> type[Section]:
        return pkgutil.resolve_name(self.recipe)

    def function(self) -> Callable[..., Path]:
        return pkgutil.resolve_name(self.run)


STAGES = {
    "grpo": Stage(recipe="grpo.recipe.config:GRPORecipe", run="grpo.stages.grpo:train"),
    "pretrain": Stage(recipe="grpo.stages.pretrain:PretrainRecipe", run="grpo.stages.pretrain:run_pretrain"),
    "eval": Stage(recipe="grpo.evaluation.config:EvalRecipe", run="grpo.evaluation.run:run_stage"),
}
