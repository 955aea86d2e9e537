"""The stages and losses a recipe can name: to add one, write it and add a line here.

References, not objects: a module is imported only when a recipe names what is in it.
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from grpo.recipe.section import Section


@dataclass(frozen=True, slots=True)
class Stage:
    """Stage(recipe="grpo.recipe.config:GRPORecipe", run="grpo.stages.grpo:train")"""

    recipe: str  # the recipe class; it has `stage` and `output_dir`
    run: str  # recipe -> the folder it wrote

    def recipe_class(self) -> type[Section]:
        return pkgutil.resolve_name(self.recipe)

    def function(self) -> Callable[..., Path]:
        return pkgutil.resolve_name(self.run)


STAGES: dict[str, Stage] = {
    "grpo": Stage(recipe="grpo.recipe.config:GRPORecipe", run="grpo.stages.grpo:train"),
    "pretrain": Stage(recipe="grpo.recipe.pretrain:PretrainRecipe", run="grpo.stages.pretrain:run_pretrain"),
    "eval": Stage(recipe="grpo.evaluation.config:EvalRecipe", run="grpo.evaluation.run:run_stage"),
}

# `algorithm.loss_type` -> its Objective.
LOSSES: dict[str, str] = {
    "grpo": "grpo.algorithm.loss:grpo",
    "dr_grpo": "grpo.algorithm.loss:dr_grpo",
    "dapo": "grpo.algorithm.loss:dapo",
    "bnpo": "grpo.algorithm.loss:bnpo",
}
