"""The recipe of stage `pipeline`: a graph of stages, such as R1's."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from grpo.recipe.section import FolderRecipe, Section
from grpo.recipe.stages.held_out import HeldOutRollout, HeldOutSet, check_room


class PipelineEvaluation(Section):
    """How every stage's model is evaluated, and the base before them."""

    rollout: HeldOutRollout = HeldOutRollout()
    sets: dict[str, HeldOutSet] = {}  # none: no evaluation

    @model_validator(mode="after")
    def _has_room(self) -> Self:
        check_room(self.rollout, self.sets)
        return self


class PipelineRecipe(FolderRecipe):
    """The recipe of stage `pipeline`.

    Each entry of `stages` is the recipe of one stage (`stage: grpo` by default). Besides that recipe's own keys it may
    have `from`, the stage whose model it starts from or "base", and `extends`, a recipe file to start from. Anywhere in
    it, "stage:NAME" is the folder that stage NAME wrote. Folder, seed and resuming are the pipeline's affair.
    """

    stage: Literal["pipeline"]
    base: str  # Hugging Face folder or Hub name: what `from: base` means
    output: str = "runs/pipeline"  # each stage writes to a folder of its own in it
    seed: NonNegativeInt = 42  # of every stage that sets none
    stages: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    evaluation: PipelineEvaluation = PipelineEvaluation()
    first: str | None = None  # start here; what comes before must have finished. --from
    last: str | None = None  # stop after this stage. --until

    @property
    def resume_from_checkpoint(self) -> bool | str:
        return True
