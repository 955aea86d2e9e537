"""GRPO: the loop.

    problems --Prompt--> engine.generate --Group--> rewards.score --ScoredGroup--+
                             ^                                                   v
                             |                              Plan: advantages, token weights, mini-batches
                     publisher.publish                                           |
                             ^                            assemble: drop what has no gradient
                             |                                                   v
                       policy.update  <---- mini-batch by mini-batch ----  list of Samples

One rollout feeds `steps_per_generation` optimizer steps. Every process runs this loop on its share of the problems;
they meet to exchange shapes (small), gradients and metrics.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from grpo.algorithm.plan import Plan, Shapes
from grpo.learner import checkpoint as checkpoints
from grpo.learner.batch import Sample, assemble, attach
from grpo.learner.mismatch import check_mismatch, mismatch
from grpo.learner.objective import loss_function
from grpo.model.moe import load_metrics
from grpo.recipe.config import GRPORecipe
from grpo.report.metrics import ExpertLoad, Metric, merge, values
from grpo.report.rollout_metrics import rollout_metrics
from grpo.stages.build import Parts, build
from grpo.stages.collect import collect
from rewards.runner.score import ScoredGroup, TrainerState
from rollout.data.stream import counts


def train(recipe: GRPORecipe, reward_functions: Sequence[Callable[..., Any]] | None = None) -> Path:
    """Run a recipe of stage `grpo`; returns the last checkpoint's folder."""
    with closing(build(recipe, reward_functions)) as parts:
        return Trainer(parts).train()


class Trainer:
    """The parts of a run, and `train_step`, which reads like the picture above."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.recipe = parts.recipe
        self.report = parts.report
        self.step = parts.first_step
        self.loss = loss_function(parts.recipe.algorithm)

    # -- the loop

    def train(self) -> Path:
        """Train to `max_steps`; returns the folder of the last checkpoint."""
        if self.step == 0:
            self.evaluate()
        while self.step < self.recipe.trainer.max_steps:
            self.train_step()
            done = self.step >= self.recipe.trainer.max_steps
            if done or self._is_due(self.recipe.evaluation.eval_steps):
                self.evaluate()
            if done or self._is_due(self.recipe.trainer.save_steps):
                self.save()
        self.report.summary()
        if self.parts.problems.num_dropped and self.parts.accelerator.is_main_process:
            print(f"rows skipped in training: {counts(self.parts.problems.dropped)}")
        return checkpoints.checkpoint_path(self.recipe.output_dir, self.step)

    def train_step(self) -> None:
        """One rollout and the optimizer steps it feeds."""
        started = time.perf_counter()
        policy, reference = self.parts.policy, self.parts.reference
        groups = self.rollout()
        samples, metrics = self.prepare(groups)
        for index in range(self.recipe.algorithm.steps_per_generation):
            with self.report.phase("update"):
                mini_batch = [s for s in samples if s.mini_batch == index]
                metrics = merge([metrics, policy.update(mini_batch, self.loss)])
            self.step += 1
            if self._is_due(self.recipe.algorithm.ref_model_sync_steps) and reference is not None:
                reference.refresh(policy.model)
        with self.report.phase("sync"):
            self.parts.publisher.publish(policy.weights(), self.step)
        self._log(metrics, time.perf_counter() - started)

    def rollout(self) -> list[ScoredGroup]:
        """This process's share of the next problems, sampled and scored."""
        recipe, parts = self.recipe, self.parts
        parts.rewards.state = TrainerState(global_step=self.step, max_steps=recipe.trainer.max_steps)
        return collect(
            parts.problems,
            parts.engine,
            parts.rewards,
            recipe.rollout_sampling(self.step // recipe.algorithm.steps_per_generation),
            count=recipe.problems_per_rollout,
            phase=self.report.phase,
        )

    def prepare(self, groups: list[ScoredGroup]) -> tuple[list[Sample], dict[str, Metric]]:
        """Advantages and token weights from the whole rollout, this process's samples, and the rollout's metrics."""
        algorithm, processes = self.recipe.algorithm, self.parts.accelerator
        policy, reference = self.parts.policy, self.parts.reference
        whole = Plan.of(
            Shapes.interleave(gather_object([Shapes.of(groups)])),
            algorithm,
            max_completion_length=self.recipe.rollout.max_completion_length,
            seed=self.recipe.trainer.seed + self.step,
            reward_weights=self.parts.rewards.reward_weights,
        )
        local = whole.of_process(processes.process_index, processes.num_processes)
        self.report.log_samples(self.step + algorithm.steps_per_generation, groups, local.advantages.tolist())
        samples = assemble(groups, local, keep_zero_advantage=algorithm.beta > 0)
        metrics = rollout_metrics(groups)
        with self.report.phase("score"):
            if algorithm.steps_per_generation > 1:
                samples = attach(samples, old_logprobs=policy.logprobs(samples))
                old = [sample.per_token("old_logprobs") for sample in samples]
                metrics |= mismatch(old, [sample.per_token("sampling_logprobs") for sample in samples])
            if reference is not None:
                samples = attach(samples, ref_logprobs=reference.logprobs(samples))
        return samples, metrics

    # -- around the loop

    def evaluate(self) -> None:
        """pass@1, pass@k and cons@k on the held-out problems."""
        if not self.parts.held_out:
            return
        processes, metrics = self.parts.accelerator, {}
        with self.report.phase("evaluate"):
            for held_out in self.parts.held_out:
                metrics |= held_out.evaluate(
                    self.parts.engine,
                    self.recipe.evaluation_sampling(),
                    process_index=processes.process_index,
                    num_processes=processes.num_processes,
                ).metrics
        self.report.log_evaluation(self.step, metrics)

    def save(self) -> None:
        """Write a checkpoint from which a run continues exactly."""
        parts, processes = self.parts, self.parts.accelerator
        with (
            self.report.phase("save"),
            checkpoints.writing(self.recipe.output_dir, self.step, is_main_process=processes.is_main_process) as folder,
        ):
            processes.wait_for_everyone()
            processes.save_state(str(folder / checkpoints.STATE))
            if processes.is_main_process:
                parts.policy.save(folder)
                parts.tokenizer.save_pretrained(folder)
                if parts.reference is not None and self.recipe.algorithm.ref_model_sync_steps:
                    parts.reference.save(folder)
            processes.wait_for_everyone()
        if processes.is_main_process:
            checkpoints.rotate(self.recipe.output_dir, self.recipe.trainer.save_total_limit)
        processes.wait_for_everyone()

    def _is_due(self, every: int) -> bool:
        """Whether a multiple of `every` lies within the optimizer steps of the last rollout."""
        return every > 0 and self.step // every > (self.step - self.recipe.algorithm.steps_per_generation) // every

    def _log(self, local: dict[str, Metric], seconds: float) -> None:
        merged = merge(gather_object([local]))
        metrics: dict[str, Any] = values(merged)
        if isinstance(load := merged.get("moe/load"), ExpertLoad):
            metrics |= load_metrics(torch.from_numpy(load.counts))
        metrics["step_time"] = seconds
        metrics["data/dropped_prompts"] = self.parts.problems.num_dropped
        self.report.log(self.step, metrics)
        algorithm = self.recipe.algorithm
        check_mismatch(
            metrics,
            algorithm.max_logp_difference,
            step=self.step,
            updated=self.step > algorithm.steps_per_generation,
        )
