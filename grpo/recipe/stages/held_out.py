"""The recipe of stage `held_out`: a model on held-out problems, scored by reward functions."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveInt, model_validator

from grpo.recipe.config import EngineSection, ModelConfig, RewardConfig
from grpo.recipe.data import ProblemsConfig
from grpo.recipe.loop.rewards import naming_conflicts
from grpo.recipe.optimizer import PositiveFraction
from grpo.recipe.section import FolderRecipe, Section
from rollout.engines.build import check_in_process
from rollout.support.names import nearest


class HeldOutRollout(EngineSection):
    """How completions are sampled."""

    engine: Annotated[str, AfterValidator(check_in_process)] = "vllm"  # or hf
    num_samples: PositiveInt = 4  # completions per problem (k)
    max_completion_length: PositiveInt = 512  # tokens
    temperature: NonNegativeFloat = 1.0
    top_p: PositiveFraction = 1.0
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

    @model_validator(mode="after")
    def _rewards_are_there(self) -> Self:
        conflicts, names = list(naming_conflicts(self.rewards)), [reward.name for reward in self.rewards]
        if self.reward is not None and self.reward not in names:
            conflicts.append(
                f"reward={self.reward!r}: must be one of the set's rewards, {', '.join(names)}."
                f"{nearest(self.reward, names) or ' Name one of them, or remove it to use the first.'}"
            )
        if conflicts:
            raise ValueError("\n".join(conflicts))
        return self


def check_room(rollout: HeldOutRollout, sets: Mapping[str, HeldOutSet]) -> None:
    """Raise ValueError if the engine's context cuts completions that max_completion_length allows."""
    needed = longest_sample(rollout, sets) if sets else 0
    if rollout.max_model_len is not None and rollout.max_model_len < needed:
        raise ValueError(
            f"rollout.max_model_len={rollout.max_model_len}: the engine's context must hold the longest prompt and "
            f"completion, {needed} tokens. Set rollout.max_model_len={needed}, or lower the sets' max_prompt_length or "
            "rollout.max_completion_length."
        )


def longest_sample(rollout: HeldOutRollout, sets: Mapping[str, HeldOutSet]) -> int:
    """Tokens of the longest prompt and completion."""
    return max(part.data.max_prompt_length for part in sets.values()) + rollout.max_completion_length


class HeldOutRecipe(FolderRecipe):
    """The recipe of stage `held_out`."""

    stage: Literal["held_out"]
    model: ModelConfig
    rollout: HeldOutRollout = HeldOutRollout()
    sets: Annotated[dict[str, HeldOutSet], Field(min_length=1)]
    output: str = "runs/held_out"

    @model_validator(mode="after")
    def _has_room(self) -> Self:
        check_room(self.rollout, self.sets)
        return self

    @property
    def max_model_len(self) -> int:
        """The engine's context in tokens."""
        return self.rollout.max_model_len or longest_sample(self.rollout, self.sets)
