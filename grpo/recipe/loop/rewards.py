"""A recipe's `rewards`: one entry, and what entries mean nothing together."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from grpo.recipe.algorithm import AlgorithmConfig
from grpo.recipe.section import Section

BELOW_ZERO = ("soft_overlong_punishment", "repetition_penalty", "relative_length")
NOT_IMPORTABLE = "not importable: "  # how recipe.yaml records a Python function that a relaunch cannot find


def _importable(function: str) -> str:
    if function.startswith(NOT_IMPORTABLE):
        name = function.removeprefix(NOT_IMPORTABLE)
        raise ValueError(
            f"{function!r} was passed from Python and cannot be imported. Define {name!r} at the top level of a module "
            "and name it here as path/to/file.py:function, or remove this entry and pass reward_functions again."
        )
    return function


class RewardConfig(Section):
    """One reward function: a built-in name, `package.module:function` or `path/to/file.py:function`."""

    function: Annotated[str, AfterValidator(_importable)]
    weight: Annotated[float, Field(ge=-1e18, le=1e18)] = 1.0  # of its score in the sum; 0: logged, or a gate only
    options: dict[str, Any] = {}  # keyword arguments, fixed for the run
    name: str = ""  # used in metrics and `evaluation.reward`; empty: the function's name
    requires: str | None = None  # counts as 0 unless the completion scores above 0.5 on the reward with this name
    data_sources: list[str] | None = None  # only for problems with one of these in column data_source; None: for all

    @property
    def can_be_negative(self) -> bool:
        """As far as a recipe tells: a function of one's own may be as well."""
        by_default = self.function == "cosine_scaled" and "min_value_wrong" not in self.options
        return self.weight < 0 or by_default or self.function in BELOW_ZERO

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("function"), str):
            return {"name": values["function"].rpartition(":")[2], **values}
        return values


def naming_conflicts(rewards: Sequence[RewardConfig]) -> Iterator[str]:
    """Entries that share a name, or refer to one that there is not."""
    names = [reward.name for reward in rewards]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"rewards: {name!r} is listed {names.count(name)} times, but names must be unique. Give each a `name`."
    for reward in rewards:
        if reward.requires is not None and (reward.requires not in names or reward.requires == reward.name):
            others = ", ".join(name for name in names if name != reward.name) or "none"
            yield (
                f"rewards: {reward.name!r} requires {reward.requires!r}, which is not another reward of this recipe "
                f"({others}). Name one of them, or remove `requires`."
            )


def reward_conflicts(
    rewards: Sequence[RewardConfig], algorithm: AlgorithmConfig, num_generations: int
) -> Iterator[str]:
    """Entries that contradict one another or the estimator."""
    yield from naming_conflicts(rewards)
    for reward in rewards:
        if algorithm.advantage_estimator == "maxrl" and reward.can_be_negative:
            yield (
                f"rewards: {reward.name!r} with advantage_estimator='maxrl': the estimator divides by a group's mean "
                "reward, which this one can make negative. Remove it, or use advantage_estimator='group'."
            )
    if algorithm.multi_objective_aggregation == "normalize_then_sum" and algorithm.scale_rewards != "group":
        yield (
            f"algorithm.scale_rewards={algorithm.scale_rewards} with multi_objective_aggregation=normalize_then_sum: "
            "this aggregation scales each reward within its group and the sum within the batch. "
            "Set algorithm.scale_rewards=group."
        )
    if algorithm.advantage_estimator == "pass_at_k" and algorithm.pass_k >= num_generations:
        yield (
            f"algorithm.pass_k={algorithm.pass_k} with rollout.num_generations={num_generations}: a "
            "group holds one set of that many completions at most, so there is nothing to compare. Lower pass_k, or "
            "raise num_generations."
        )
    if rewards and not any(reward.weight for reward in rewards):
        yield "rewards: all weights are 0, so all advantages are 0. Give at least one reward another weight."
