"""`data.curriculum`: which problems of a dataset are used again, by the pass rates that the run observed."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from grpo.recipe.section import Section

Share = Annotated[float, Field(ge=0, le=1)]


class CurriculumConfig(Section):
    """Rows already used are passed over by their running pass rate. A pass: `evaluation.reward` above 0.5."""

    weighting: Literal["band", "variance"] = "band"  # variance: a row is used with probability 4 p (1 - p)
    low: Share = 0.0  # band: rows with a pass rate within [low, high] are used whenever their turn comes
    high: Share = 0.9
    revisit: Annotated[float, Field(gt=0, le=1)] = 0.1  # the other rows' probability of being used at their turn
    replay_after: NonNegativeInt = 0  # steps until a hard problem is drawn once more; 0: it is not
    replay_below: Share = 0.0  # hard: its group's pass rate is not above this

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low={self.low}: must not be above high={self.high}. Exchange them.")
        if self.weighting == "variance" and self.model_fields_set & {"low", "high"}:
            raise ValueError("low and high with weighting='variance': only a band has them. Remove them.")
        if self.replay_below and not self.replay_after:
            raise ValueError(
                f"replay_below={self.replay_below} with replay_after=0: nothing is drawn again. Set replay_after to "
                "a number of steps."
            )
        return self


def curriculum_conflicts(*, has_rewards: bool, in_evaluation: bool) -> Iterator[str]:
    """What a curriculum needs of the recipe; what it needs of its data is checked there."""
    if not has_rewards:
        yield "data.curriculum without rewards: nothing says which completions pass. Add a reward, or remove it."
    if in_evaluation:
        yield "evaluation.data.curriculum: held-out problems are always the same ones. Move it to data."
