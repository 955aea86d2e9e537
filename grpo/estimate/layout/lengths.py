"""How long the texts are: at full length, or as in a finished run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo.recipe.config import OnPolicyRecipe
from grpo.recipe.load import RecipeError, load_recipe
from grpo.report.records import METRICS_FILE, RECIPE_FILE, Row, read_rows


@dataclass(frozen=True, slots=True)
class Lengths:
    """Means over rollouts, in tokens: Lengths(prompt=11, completion=44, longest=142, trained=0.5)"""

    prompt: float
    completion: float
    longest: float  # completion of a rollout
    trained: float = 1.0  # share of samples that reach the update


def full_length(recipe: OnPolicyRecipe, completion: int | None = None) -> Lengths:
    """All at their limits, unless the mean completion has `completion` tokens."""
    longest = recipe.rollout.max_completion_length
    return Lengths(recipe.data.max_prompt_length, min(completion or longest, longest), longest)


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run's recipe and the rows of its rollouts without the first, which warms up."""

    recipe: OnPolicyRecipe
    rows: Sequence[Row]
    lengths: Lengths

    def mean(self, key: str) -> float:
        """Of a metric, over the rollouts; one that a row lacks counts as 0."""
        return _mean(self.rows, key)


def read_run(run: Path) -> FinishedRun:
    """Read a run's folder.

    Raises:
        RecipeError: it is not the folder of a GRPO run with at least two rollouts.
    """
    recipe = load_recipe(run / RECIPE_FILE)
    if not isinstance(recipe, OnPolicyRecipe):
        raise RecipeError(f"{run}: a run of stage {recipe.stage}, not of grpo or opd.")
    rows = [row for row in read_rows(run / METRICS_FILE) if "step_time" in row]
    if len(rows) < 2:
        raise RecipeError(f"{run}: {METRICS_FILE} has {len(rows)} rollouts, and at least two are needed.")
    first, *rest = rows
    samples = recipe.problems_per_rollout * recipe.rollout.num_generations
    # Of all groups that were sampled, as the mean length is.
    sampled = samples * (_mean(rest, "dynamic_sampling/sampled_groups") / recipe.problems_per_rollout or 1.0)
    tokens = (rest[-1]["num_tokens"] - first["num_tokens"]) / len(rest) / sampled
    completion = _mean(rest, "completions/mean_length")
    longest, trained = _mean(rest, "completions/max_length"), _mean(rest, "frac_trained_samples")
    return FinishedRun(recipe, rest, Lengths(tokens - completion, completion, longest, trained))


def _mean(rows: Sequence[Row], key: str) -> float:
    return sum(row.get(key, 0.0) for row in rows) / len(rows)
