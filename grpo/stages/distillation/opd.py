"""On-policy distillation: GRPO's loop with a teacher's judgement of every token in the place of advantages.

    problems --Prompt--> engine.generate --Group--> teachers.judge --> policy.update --> publisher.publish
                             ^                                                                |
                             +----------------------------------------------------------------+

The student samples, so it is corrected where it goes itself, and on every token (2306.13649; DeepSeek-V4's last stage).
Rewards, if the recipe has any, are measured and not learnt.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from grpo.learner.batch import Sample, assemble
from grpo.learner.objective import distillation_function
from grpo.recipe.stages.opd import OPDRecipe
from grpo.report.metrics import Mean, Metric
from grpo.report.rollout_metrics import rollout_metrics
from grpo.stages.build import Parts, build
from grpo.stages.distillation.teachers import check_tokenizers, teacher_of
from grpo.stages.grpo import Trainer
from grpo.stages.parts import refusals
from grpo.stages.saving import keeping_newest_on_failure
from rewards.runner.score import ScoredGroup


def distill(recipe: OPDRecipe, reward_functions: Sequence[Callable[..., Any]] | None = None) -> Path:
    """Run a recipe of stage `opd`; returns the last checkpoint's folder.

    Raises:
        RefusedError: the run cannot be right; nothing was trained.
    """
    with refusals():
        check_tokenizers(recipe)
        parts = build(recipe, reward_functions)
    with closing(parts), keeping_newest_on_failure(parts):
        return Distiller(parts, recipe).train()


class Distiller(Trainer):
    """GRPO's loop; what a completion is worth comes from its teacher."""

    def __init__(self, parts: Parts, recipe: OPDRecipe) -> None:
        super().__init__(parts)
        assert parts.teachers is not None
        self.distillation = recipe
        self.teachers = parts.teachers
        self.loss = distillation_function(recipe.policy_gradient)

    def prepare(self, groups: list[ScoredGroup]) -> tuple[list[Sample], dict[str, Metric]]:
        """Every completion with what its teacher says of its tokens, and the rollout's metrics."""
        steps, local = self.recipe.policy_gradient.steps_per_generation, self.plan(groups)
        self.report.log_samples(self.step + steps, groups, np.full_like(local.advantages, np.nan).tolist())
        samples = assemble(groups, local, keep_zero_advantage=True)
        teacher = {scored.group.problem.id: teacher_of(self.distillation, scored.group.problem) for scored in groups}
        metrics = rollout_metrics(groups)
        # Groups without a spread of rewards, or without any, are trained on here as all others.
        irrelevant = {"reward_std", "frac_reward_zero_std", "frac_unrewarded_samples"}
        irrelevant |= set() if self.parts.rewards.names else {"reward"}
        metrics = {name: metric for name, metric in metrics.items() if name not in irrelevant}
        metrics["frac_trained_samples"] = Mean(len(samples), sum(len(group.rewards) for group in groups))
        with self.report.phase("score"):
            if steps > 1:
                samples, measured = self.with_old_logprobs(samples)
                metrics |= measured
            samples = self.teachers.judge(samples, [teacher[sample.problem_id] for sample in samples])
        return samples, metrics
