"""The recipe of on-policy distillation."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from grpo.recipe.algorithm import AlgorithmConfig
from grpo.recipe.config import OnPolicyRecipe, RewardConfig
from grpo.recipe.section import Section


class TeacherConfig(Section):
    """A teacher: a Hugging Face folder or Hub name, with the student's tokenizer. It computes as the student does."""

    model_name_or_path: str
    revision: str | None = None  # branch, tag or commit on the Hub; None: its default branch


class DistillationConfig(Section):
    """How far the student is from its teacher, token by token. The formulas: grpo/algorithm/distillation.py."""

    # sampled: the reverse KL estimated from the sampled token alone, as an advantage; the others: over all tokens.
    loss: Literal["sampled", "reverse_kl", "forward_kl", "jsd"] = "reverse_kl"
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5  # jsd: the teacher's share of the mixture
    teacher_temperature: PositiveFloat | None = None  # None: the rollout's
    epsilon: PositiveFloat = 0.2  # sampled: ratios are clipped as in GRPO, from a rollout's second update on
    epsilon_high: PositiveFloat | None = None  # None: same as epsilon
    steps_per_generation: PositiveInt = 1  # optimizer steps (mini-batches) per rollout
    mask_truncated_completions: bool = False  # those cut by their length limit have no weight
    max_logp_difference: PositiveFloat | None = None  # as in stage grpo

    @property
    def divergence(self) -> float | None:
        """The loss as one number, see grpo/algorithm/distillation.py; None: sampled."""
        return {"sampled": None, "reverse_kl": 1.0, "forward_kl": 0.0, "jsd": self.beta}[self.loss]


class OPDRecipe(OnPolicyRecipe):
    """The recipe of stage `opd`: the model samples, teachers judge every token. Rewards are measured, not learnt."""

    stage: Literal["opd"]
    teachers: Annotated[dict[str, TeacherConfig], Field(min_length=1)]  # by the name that the data uses
    teacher_column: str | None = None  # the column of the data that names a problem's teacher; None: there is one
    rewards: list[RewardConfig] = []
    algorithm: DistillationConfig = DistillationConfig()

    @property
    def learns_rewards(self) -> bool:
        return False

    @property
    def policy_gradient(self) -> AlgorithmConfig:
        """Every token of a rollout weighs the same (TRL's normalisation); the teachers take the place of advantages."""
        shared = self.algorithm.model_dump(include=set(AlgorithmConfig.model_fields) - {"beta"})
        return AlgorithmConfig(loss_type="dapo", scale_rewards="none", **shared)

    @property
    def teacher_temperature(self) -> float:
        return self.algorithm.teacher_temperature or self.rollout.temperature

    @model_validator(mode="after")
    def _teachers_fit(self) -> Self:
        conflicts = list(_conflicts(self))
        if conflicts:
            raise ValueError("\n".join(conflicts))
        return self


def _conflicts(recipe: OPDRecipe) -> Iterator[str]:
    algorithm, evaluation = recipe.algorithm, recipe.evaluation
    if recipe.rollout.max_staleness:
        yield (
            f"rollout.max_staleness={recipe.rollout.max_staleness} with stage opd: distillation has no correction for "
            "stale samples. Set max_staleness=0."
        )
    if len(recipe.teachers) > 1 and recipe.teacher_column is None:
        yield (
            f"teachers: {', '.join(recipe.teachers)} are several, so each problem must name its own. "
            "Set teacher_column to the column of the data that does."
        )
    if algorithm.loss != "jsd" and algorithm.beta != 0.5:
        yield (
            f"algorithm.beta={algorithm.beta} with algorithm.loss={algorithm.loss}: only jsd has a mixture. "
            "Set algorithm.loss=jsd, or remove beta."
        )
    if evaluation.num_problems and not evaluation.tasks and not recipe.rewards:
        yield (
            f"evaluation.num_problems={evaluation.num_problems} without rewards: nothing says which answer is right. "
            "Add a reward, set evaluation.tasks, or set evaluation.num_problems=0."
        )
