"""The recipe of stage `held_out`: a model on held-out problems, scored by reward functions."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveInt, model_validator

from grpo.recipe.config import EngineSection, ModelConfig, RewardConfig
from grpo.recipe.data import ProblemsConfig
from grpo.recipe.optimizer import Fraction
from grpo.recipe.section import FolderRecipe, Section
from rollout.engines.build import check_in_process


class HeldOutRollout(EngineSection):
    """How completions are sampled."""

    engine: Annotated[str, AfterValidator(check_in_process)] = "vllm"  # or hf
    num_samples: PositiveInt = 4  # completions per problem (k)
    max_completion_length: PositiveInt = 512
    temperature: NonNegativeFloat = 1.0
    top_p: Fraction = 1.0
    stop: list[Annotated[str, Field(min_length=1)]] = []

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(
                f"num_samples={self.num_samples} at temperature=0: greedy decoding gives the same completion every "
                "time. Set num_samples=1 or a temperature above 0."
            )
        return self


class HeldOutSet(Section):
    """Problems, and the rewards that score them."""

    data: ProblemsConfig
    rewards: Annotated[list[RewardConfig], Field(min_length=1)]
    reward: str | None = None  # the one that decides what is correct (> 0.5); None: the first
    num_problems: PositiveInt = 256


class HeldOutRecipe(FolderRecipe):
    """The recipe of stage `held_out`."""

    stage: Literal["held_out"]
    model: ModelConfig
    rollout: HeldOutRollout = HeldOutRollout()
    sets: Annotated[dict[str, HeldOutSet], Field(min_length=1)]
    output: str = "runs/held_out"
