"""GRPO: the loop.

    problems --Prompt--> engine.generate --Group--> rewards.score --ScoredGroup--+
                             ^                                                   v
                             |                                    plan: advantages, weights, mini-batches
                     engine.load_weights                                         |
                             ^                            assemble: drop what has no gradient
                             |                                                   v
                       policy.update  <---- mini-batch by mini-batch ----  list of Samples

One rollout feeds `steps_per_generation` optimizer steps. Every process runs this loop on its share of the problems;
they meet to exchange shapes (small), gradients and metrics.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object, set_seed
from rich.console import Console
from torch import Tensor
from transformers import AutoTokenizer

from grpo.algorithm.loss import LossOutput, grpo_loss
from grpo.learner import checkpoint as checkpoints
from grpo.learner.batch import MicroBatch, Sample, Shapes, annotate, assemble, plan
from grpo.learner.mismatch import check_mismatch, mismatch
from grpo.learner.moe import load_metrics
from grpo.learner.policy import Policy
from grpo.recipe.config import GRPORecipe
from grpo.report.metrics import ExpertLoad, Metric, merge, rollout_metrics, values
from grpo.report.report import Report
from grpo.stages.build import build_engine, build_held_out, build_problems, build_rewards
from rewards.runner.preflight import check_problems
from rewards.runner.score import ScoredGroup, TrainerState
from rollout.types import Group


class Trainer:
    """Everything a run holds, and `train_step`, which reads like the picture above."""

    def __init__(self, recipe: GRPORecipe, reward_functions: Sequence[Callable[..., Any]] | None = None) -> None:
        self.recipe = recipe
        self.accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)])
        set_seed(recipe.trainer.seed)
        resume = checkpoints.find_checkpoint(recipe.output_dir, recipe.trainer.resume_from_checkpoint)
        self.step = checkpoints.step_of(resume) if resume else 0
        self.tokenizer = AutoTokenizer.from_pretrained(resume or recipe.model.model_name_or_path)
        self.problems = build_problems(recipe, self.tokenizer, self.accelerator)
        self.rewards = build_rewards(recipe, reward_functions)
        self.held_out = build_held_out(recipe, self.tokenizer, self.rewards)
        if self.accelerator.is_main_process:
            ours = [prompt.problem for held_out in self.held_out if not held_out.name for prompt in held_out.prompts]
            source = self.problems.source
            problems = map(source.__getitem__, range(source.size or 1))
            check_problems(problems, source.size, ours, self.rewards, Console(stderr=True))
        self.policy = Policy(recipe, self.accelerator, pad_token_id=self.tokenizer.pad_token_id or 0, checkpoint=resume)
        self.accelerator.register_for_checkpointing(self.problems)
        if resume:
            self.accelerator.load_state(str(resume / checkpoints.STATE))
        self.engine = build_engine(recipe, self.accelerator)
        self.engine.load_weights(self.policy.weights(), self.step)
        self.report = Report(
            recipe.output_dir, recipe, accelerator=self.accelerator, resume_step=self.step if resume else None
        )

    # -- the loop

    def train(self) -> Path:
        """Train to `max_steps`; returns the folder of the last checkpoint."""
        try:
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
        finally:  # an interrupted run has a page, too
            self.report.close()
            for held_out in self.held_out:
                held_out.grader.close()
            self.rewards.close()
            self.engine.close()
        return checkpoints.checkpoint_path(self.recipe.output_dir, self.step)

    def train_step(self) -> None:
        """One rollout and the optimizer steps it feeds."""
        started = time.perf_counter()
        groups = self.rollout()
        samples, metrics = self.prepare(groups)
        for index in range(self.recipe.algorithm.steps_per_generation):
            with self.report.phase("update"):
                mini_batch = [s for s in samples if s.mini_batch == index]
                metrics = merge([metrics, self.policy.update(mini_batch, self.loss)])
            self.step += 1
            if self._is_due(self.recipe.algorithm.ref_model_sync_steps) and self.policy.reference is not None:
                self.policy.refresh_reference()
        with self.report.phase("sync"):
            self.engine.load_weights(self.policy.weights(), self.step)
        self._log(metrics, time.perf_counter() - started)

    def rollout(self) -> list[ScoredGroup]:
        """Sample and score this process's share of the next problems, in the order of the problems."""
        recipe = self.recipe
        prompts = self.problems.take(recipe.problems_per_rollout)
        self.rewards.state = TrainerState(global_step=self.step, max_steps=recipe.trainer.max_steps)
        sampling = recipe.sampling(self.step // recipe.algorithm.steps_per_generation)
        with ExitStack() as phase:
            phase.enter_context(self.report.phase("generate"))

            def generated() -> Iterator[Group]:
                yield from self.engine.generate(prompts, sampling)
                phase.close()
                phase.enter_context(self.report.phase("reward"))  # what scoring takes beyond generation

            scored = list(self.rewards.score(generated()))
        order = {prompt.problem.id: i for i, prompt in enumerate(prompts)}
        return sorted(scored, key=lambda s: order[s.group.problem.id])

    def prepare(self, groups: list[ScoredGroup]) -> tuple[list[Sample], dict[str, Metric]]:
        """Advantages and weights from the whole rollout, the samples of this process, and the rollout's metrics."""
        algorithm, processes = self.recipe.algorithm, self.accelerator
        shapes = Shapes.interleave(gather_object([Shapes.of(groups)]))
        whole = plan(
            shapes,
            algorithm,
            max_completion_length=self.recipe.rollout.max_completion_length,
            seed=self.recipe.trainer.seed + self.step,
            reward_weights=self.rewards.reward_weights,
        )
        local = whole.of_process(processes.process_index, processes.num_processes)
        self.report.log_samples(self.step + algorithm.steps_per_generation, groups, local.advantages.tolist())
        samples = assemble(groups, local, keep_zero_advantage=algorithm.beta > 0)
        metrics = rollout_metrics(groups)
        with self.report.phase("score"):
            if algorithm.steps_per_generation > 1:
                old = self.policy.logprobs(samples)
                metrics |= mismatch(old, [np.asarray(s.sampling_logprobs) for s in samples])
                samples = annotate(samples, "old_logprobs", old)
            if algorithm.beta > 0:
                samples = annotate(samples, "ref_logprobs", self.policy.logprobs(samples, reference=True))
        return samples, metrics

    def loss(self, logprobs: Tensor, batch: MicroBatch) -> LossOutput:
        """The recipe's objective on one micro-batch."""
        algorithm = self.recipe.algorithm
        on_policy = batch.old_logprobs is None
        output = grpo_loss(
            logprobs,
            logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs,
            batch.advantages,
            batch.weights,
            epsilon=algorithm.epsilon,
            epsilon_high=algorithm.epsilon_high or algorithm.epsilon,
            beta=algorithm.beta,
            ref_logprobs=batch.ref_logprobs,
        )
        if not on_policy:
            return output
        measured = mismatch([logprobs.detach().float().cpu().numpy()], [batch.sampling_logprobs.cpu().numpy()])
        return LossOutput(output.loss, {**output.metrics, **measured})

    # -- around the loop

    def evaluate(self) -> None:
        """pass@1, pass@k and cons@k on the held-out problems."""
        if not self.held_out:
            return
        metrics: dict[str, float] = {}
        with self.report.phase("evaluate"):
            for held_out in self.held_out:
                metrics |= held_out.evaluate(
                    self.engine,
                    self.recipe.evaluation_sampling(),
                    process_index=self.accelerator.process_index,
                    num_processes=self.accelerator.num_processes,
                ).metrics
        self.report.log_evaluation(self.step, metrics)

    def save(self) -> None:
        """Write a checkpoint from which a run continues exactly."""
        processes = self.accelerator
        with (
            self.report.phase("save"),
            checkpoints.writing(self.recipe.output_dir, self.step, is_main_process=processes.is_main_process) as folder,
        ):
            processes.wait_for_everyone()
            processes.save_state(str(folder / checkpoints.STATE))
            if processes.is_main_process:
                self.policy.save(folder)
                self.tokenizer.save_pretrained(folder)
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
        metrics["data/dropped_prompts"] = self.problems.num_dropped
        self.report.log(self.step, metrics)
        algorithm = self.recipe.algorithm
        check_mismatch(
            metrics,
            algorithm.max_logp_difference,
            step=self.step,
            updated=self.step > algorithm.steps_per_generation,
        )


def train(recipe: GRPORecipe, reward_functions: Sequence[Callable[..., Any]] | None = None) -> Path:
    """Run a recipe of stage `grpo`; returns the last checkpoint's folder."""
    return Trainer(recipe, reward_functions).train()
