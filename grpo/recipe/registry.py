"""The stages and losses a recipe can name: to add one, write it and add a line here.

References, not objects: a module is imported only when a recipe names what is in it.
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grpo.recipe.section import StageRecipe


@dataclass(frozen=True, slots=True)
class Stage:
    """Stage(recipe="grpo.recipe.config:GRPORecipe", run="grpo.stages.grpo:train")"""

    recipe: str  # the recipe class
    run: str  # recipe -> the folder it wrote
    makes: Literal["a model", "a dataset", "a reward model", "metrics"] = "a model"  # what that folder holds

    def recipe_class(self) -> type[StageRecipe]:
        return pkgutil.resolve_name(self.recipe)

    def function(self) -> Callable[..., Path]:
        return pkgutil.resolve_name(self.run)

    @property
    def resume(self) -> str:
        """The setting with which an interrupted run goes on in its folder; "": none, or it always does."""
        fields: Any = self.recipe_class().model_fields
        if "resume" in fields:
            return "resume"
        trainer = fields["trainer"].annotation.model_fields if "trainer" in fields else {}
        return "trainer.resume_from_checkpoint" if "resume_from_checkpoint" in trainer else ""


STAGES: dict[str, Stage] = {
    "grpo": Stage(recipe="grpo.recipe.config:GRPORecipe", run="grpo.stages.grpo:train"),
    "opd": Stage(recipe="grpo.recipe.stages.opd:OPDRecipe", run="grpo.stages.distillation.opd:distill"),
    "pretrain": Stage(recipe="grpo.recipe.stages.sft:SFTRecipe", run="grpo.stages.supervised.sft:run_sft"),
    "sft": Stage(recipe="grpo.recipe.stages.sft:SFTRecipe", run="grpo.stages.supervised.sft:run_sft"),
    "rejection": Stage(
        recipe="grpo.recipe.stages.rejection:RejectionRecipe",
        run="grpo.stages.rejection.run:run_rejection",
        makes="a dataset",
    ),
    "pairs": Stage(
        recipe="grpo.recipe.stages.preference:PairsRecipe",
        run="grpo.stages.preference.pairs:run_pairs",
        makes="a dataset",
    ),
    "reward_model": Stage(
        recipe="grpo.recipe.stages.preference:RewardModelRecipe",
        run="grpo.stages.preference.reward_model:run_reward_model",
        makes="a reward model",
    ),
    "eval": Stage(recipe="grpo.evaluation.config:EvalRecipe", run="grpo.evaluation.run:run_stage", makes="metrics"),
    "held_out": Stage(
        recipe="grpo.recipe.stages.held_out:HeldOutRecipe",
        run="grpo.stages.pipeline.held_out:run_held_out",
        makes="metrics",
    ),
    "pipeline": Stage(
        recipe="grpo.recipe.stages.pipeline:PipelineRecipe",
        run="grpo.stages.pipeline.run:run_pipeline",
        makes="metrics",
    ),
}

# `algorithm.importance_sampling_correction` -> its Correction.
CORRECTIONS: dict[str, str] = {
    name: f"grpo.algorithm.correction:{name}"
    for name in ("tis", "sequence_tis", "mis", "token_mis", "icepop", "geometric")
}

# `algorithm.loss_type` -> its Objective.
LOSSES: dict[str, str] = {
    name: f"grpo.algorithm.loss:{name}"
    for name in (
        *("grpo", "dr_grpo", "dapo", "bnpo"),
        *("gspo", "gspo_token", "luspo", "cispo", "sapo", "clip_cov", "kl_cov", "vespo", "dppo"),
    )
}
