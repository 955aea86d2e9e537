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

import numpy as np
import torch
from accelerate.utils import gather_object

from grpo.algorithm.plan import Plan, Shapes
from grpo.launch import signals
from grpo.learner.batch import Sample, assemble, attach
from grpo.learner.checkpoint import checkpoint_path
from grpo.learner.mismatch import check_mismatch, mismatch
from grpo.learner.objective import loss_function, select_tokens
from grpo.learner.reference import Reference
from grpo.model.moe import load_metrics
from grpo.recipe.config import GRPORecipe
from grpo.recipe.errors import RunError
from grpo.report.metrics import ExpertLoad, Mean, Metric, merge, per_step, values
from grpo.report.records import METRICS_FILE, is_evaluation, read_rows
from grpo.report.rollout_metrics import rollout_metrics
from grpo.report.schedule import due_within, is_due
from grpo.stages.build import Parts, build
from grpo.stages.parts import refusals
from grpo.stages.rollouts.ahead import Ahead
from grpo.stages.rollouts.base import Rollouts
from grpo.stages.rollouts.lockstep import Lockstep
from grpo.stages.rollouts.tracked import TrackedStream
from grpo.stages.saving import keeping_newest_on_failure, save
from rewards.runner.score import ScoredGroup, TrainerState
from rollout.data.stream import counts
from rollout.engines.base import EngineLostError


def train(recipe: GRPORecipe, reward_functions: Sequence[Callable[..., Any]] | None = None) -> Path:
    """Run a recipe of stage `grpo`; returns the last checkpoint's folder.

    Raises:
        RefusedError: the run cannot be right; nothing was trained.
    """
    with refusals():
        parts = build(recipe, reward_functions)
    with closing(parts), keeping_newest_on_failure(parts):
        trainer = Trainer(parts)
        with closing(trainer.rollouts):
            return trainer.train()


class Trainer:
    """The parts of a run, and `train_step`, which reads like the picture above."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.recipe = parts.recipe
        self.report = parts.report
        self.step = parts.first_step
        self.loss = loss_function(parts.recipe.policy_gradient, parts.entropy_bonus)
        self.rollouts = _rollouts(parts)
        self.score: float | None = None  # held-out pass@1 after the current rollout, if evaluated
        self.saved: Path | None = None

    # -- the loop

    def train(self) -> Path:
        """Train to `max_steps`; returns the folder of the last checkpoint.

        Raises:
            RuntimeError: it could not be saved.
        """
        if self._evaluation_is_missing():
            self.evaluate()
            if self.step >= self.recipe.trainer.max_steps:  # all that a signal in the last step had left to do
                self.save()
        signals.defer()
        while self.step < self.recipe.trainer.max_steps:
            before, self.score = self.step, None
            self.train_step()
            done = self.step >= self.recipe.trainer.max_steps
            stop = self._stop_signal()
            if not stop and (done or due_within(before, self.step, self.recipe.evaluation.eval_steps)):
                self.evaluate()
                stop = self._stop_signal()
            if done or stop or due_within(before, self.step, self.recipe.trainer.save_steps):
                self.save()
            if stop:
                raise signals.Stopped(stop, self.step)
        self.report.summary()
        if self.parts.problems.num_dropped and self.parts.accelerator.is_main_process:
            print(f"rows skipped in training: {counts(self.parts.problems.dropped)}")
        if self.saved is None:
            raise RuntimeError(f"step {self.step}, the last one, could not be saved; the warning above says why.")
        return self.saved

    def train_step(self) -> None:
        """One rollout and the optimizer steps it feeds."""
        started = time.perf_counter()
        policy, reference = self.parts.policy, self.parts.reference
        self.follow_schedules()
        groups = self.rollout()
        if self.parts.sleeper is not None:
            with self.report.phase("sync"):
                self.parts.sleeper.sleep()  # until the weights are published
        samples, metrics = self.prepare(groups)
        steps = self.recipe.policy_gradient.steps_per_generation
        for index in range(steps):
            with self.report.phase("update"):
                mini_batch = [s for s in samples if s.mini_batch == index]
                metrics = merge([metrics, per_step(self.update(mini_batch), steps)])
            self.step += 1
            if reference is not None and is_due(self.step, self.recipe.policy_gradient.ref_model_sync_steps):
                reference.refresh(policy.model)
        lost = ""
        with self.report.phase("sync"):
            policy.optimizer.zero_grad()  # an engine that wakes needs the gradients' memory
            try:
                self.parts.publisher.publish(policy.weights(), self.step)
            except EngineLostError as error:
                lost = str(error)
        metrics |= self.rollouts.trained()
        self._log(metrics, time.perf_counter() - started)
        self._stop_if_lost(lost or self.report.unwritten)

    def follow_schedules(self) -> None:
        """Take the recipe's numbers as they are at this step."""
        recipe, reference = self.parts.recipe.at(self.step), self.parts.reference
        if recipe == self.recipe:
            return
        self.recipe = recipe
        self.parts.entropy_bonus.follow(recipe.policy_gradient)
        self.loss = loss_function(recipe.policy_gradient, self.parts.entropy_bonus)
        self.parts.policy.set_temperature(recipe.rollout.temperature)
        if isinstance(reference, Reference):
            reference.set_temperature(recipe.rollout.temperature)

    def update(self, mini_batch: list[Sample]) -> dict[str, Metric]:
        """One optimizer step, after which the entropy bonus follows the entropy of its tokens."""
        measured, bonus = self.parts.policy.update(mini_batch, self.loss), self.parts.entropy_bonus
        if bonus.target is not None:
            measured["entropy_coef"] = Mean(bonus.coef)
            bonus.observe(sum(gather_object([measured["entropy"]]), Mean(0.0, 0.0)).value)
        return measured

    def rollout(self) -> list[ScoredGroup]:
        """This process's share of the next problems, sampled and scored."""
        recipe, parts = self.recipe, self.parts
        parts.rewards.state = TrainerState(global_step=self.step, max_steps=recipe.trainer.max_steps)
        position, groups, lost = parts.problems.state_dict(), [], ""
        try:
            groups = self.rollouts.next(self.step)
        except EngineLostError as error:
            lost = str(error)
        self._stop_if_lost(lost, position)
        return groups

    def prepare(self, groups: list[ScoredGroup]) -> tuple[list[Sample], dict[str, Metric]]:
        """Advantages and token weights from the whole rollout, this process's samples, and the rollout's metrics."""
        algorithm, reference = self.recipe.policy_gradient, self.parts.reference
        local = self.plan(groups)
        self.report.log_samples(self.step + algorithm.steps_per_generation, groups, local.advantages.tolist())
        balanced = self.recipe.model.sequence_balance_coefficient > 0
        keep = algorithm.trains_without_advantage or algorithm.selects_tokens or balanced
        samples = assemble(groups, local, keep_zero_advantage=keep)
        if algorithm.selects_tokens:
            seed = self.recipe.trainer.seed + self.step
            samples = select_tokens(samples, algorithm, seed=seed, keep_zero_advantage=balanced)
        if self.recipe.rollout.max_staleness:
            samples = attach(samples, staleness=[self.step - np.asarray(sample.policy_version) for sample in samples])
        self.parts.policy.check_routes(samples)
        metrics = rollout_metrics(groups)
        metrics["frac_trained_samples"] = Mean(len(samples), sum(len(group.rewards) for group in groups))
        with self.report.phase("score"):
            if algorithm.steps_per_generation > 1:
                samples, measured = self.with_old_logprobs(samples)
                metrics |= measured
            if reference is not None:
                samples = attach(samples, ref_logprobs=reference.logprobs(samples))
        return samples, metrics

    def plan(self, groups: list[ScoredGroup]) -> Plan:
        """This process's part of the plan of the whole rollout."""
        processes = self.parts.accelerator
        whole = Plan.of(
            Shapes.interleave(gather_object([Shapes.of(groups)])),
            self.recipe.policy_gradient,
            max_completion_length=self.recipe.rollout.max_completion_length,
            seed=self.recipe.trainer.seed + self.step,
            reward_weights=self.parts.rewards.reward_weights,
        )
        return whole.of_process(processes.process_index, processes.num_processes)

    def with_old_logprobs(self, samples: list[Sample]) -> tuple[list[Sample], dict[str, Metric]]:
        """The samples with the policy's log-probs before the rollout's first update, and how far the engine's are."""
        policy = self.parts.policy
        if self.recipe.policy_gradient.routing_replay == "R2":
            logprobs, routes = policy.logprobs_and_routes(samples)
            samples = attach(samples, old_logprobs=logprobs, routes=routes)
        else:
            samples = attach(samples, old_logprobs=policy.logprobs(samples))
        fresh = [sample.per_token("staleness") == 0 for sample in samples]
        ours, theirs = (
            [sample.per_token(name)[kept] for sample, kept in zip(samples, fresh, strict=True)]
            for name in ("old_logprobs", "sampling_logprobs")
        )
        return samples, mismatch(ours, theirs)

    # -- around the loop

    def evaluate(self) -> None:
        """pass@1, pass@k and cons@k on the held-out problems.

        Raises:
            RunError: the engine was lost, or the report cannot be written.
        """
        if not self.parts.held_out:
            return
        processes, rows, lost = self.parts.accelerator, [], ""
        share = {"process_index": processes.process_index, "num_processes": processes.num_processes}
        with self.report.phase("evaluate"):
            try:
                sampling = self.parts.recipe.evaluation_sampling()  # the same at every step
                rows = [held_out.samples(self.parts.engine, sampling, **share) for held_out in self.parts.held_out]
            except EngineLostError as error:
                lost = str(error)
        self._stop_if_lost(lost)
        metrics: dict[str, float] = {}
        for held_out, own in zip(self.parts.held_out, rows, strict=True):
            metrics |= held_out.summary(gather_object(own)).metrics
        self.report.log_evaluation(self.step, metrics)
        first = self.parts.held_out[0].name
        self.score = metrics.get(f"eval/{first}/pass@1" if first else "eval/pass@1")
        self._stop_if_lost(self.report.unwritten)

    def save(self) -> None:
        """Write a checkpoint from which a run continues exactly."""
        with self.report.phase("save"):
            self.saved = save(self.parts, self.step, self.score)

    def _stop_if_lost(self, lost: str, position: dict[str, Any] | None = None) -> None:
        """If any process has lost the engine or the report, save what has been trained in all of them and stop.

        position: that of the problems before the lost rollout, from which a resumed run takes them again.

        Raises:
            RunError: with the cause.
        """
        lost = next(filter(None, gather_object([lost])), "")
        if not lost:
            return
        if position is not None:
            self.parts.problems.load_state_dict(position)
        if self.step > self.parts.first_step and not checkpoint_path(self.recipe.output_dir, self.step).exists():
            self.save()
        elsewhere = self.saved is not None and self.saved.parent != self.recipe.output_dir  # on a full disk
        source = str(self.saved) if elsewhere else "true"
        raise RunError(f"stopped at step {self.step}: {lost}. Continue with trainer.resume_from_checkpoint={source}.")

    def _stop_signal(self) -> int:
        """The signal that any process received, in all of them; or 0."""
        return max(gather_object([signals.received()]))

    def _evaluation_is_missing(self) -> bool:
        """Whether this step's evaluation is due and a signal came first, or nothing has been trained yet."""
        if self.step == 0:
            return True
        before = self.step - self.recipe.policy_gradient.steps_per_generation
        due = self.step >= self.recipe.trainer.max_steps or due_within(
            before, self.step, self.recipe.evaluation.eval_steps
        )
        rows = read_rows(self.recipe.output_dir / METRICS_FILE)
        done = any(is_evaluation(row) and row["step"] == self.step for row in rows)
        return gather_object([due and not done])[0]

    def _log(self, local: dict[str, Metric], seconds: float) -> None:
        merged = merge(gather_object([local]))
        metrics: dict[str, Any] = values(merged)
        if isinstance(load := merged.get("moe/load"), ExpertLoad) and load.value is not None:
            metrics |= load_metrics(torch.from_numpy(load.counts))
        metrics["num_tokens"] = self.parts.totals.count(metrics["num_tokens"])
        metrics["step_time"] = seconds
        metrics["data/dropped_prompts"] = self.parts.problems.num_dropped
        passes = [stream.epochs for stream in self.parts.problems.streams.values()]
        if known := [one for one in passes if one is not None]:
            metrics["data/epochs"] = max(known)
        self.report.log(self.step, metrics)
        algorithm = self.recipe.policy_gradient
        check_mismatch(
            metrics,
            self.recipe.max_logp_difference,
            step=self.step,
            updated=self.step > algorithm.steps_per_generation,
        )


def _rollouts(parts: Parts) -> Rollouts:
    """In lockstep, or ahead of the updates."""
    recipe = parts.recipe
    if not recipe.rollout.max_staleness:
        return Lockstep(parts)
    problems, engine = parts.problems, parts.engine
    assert isinstance(problems, TrackedStream)
    streaming: Any = engine  # the recipe allows no other
    return Ahead(
        problems,
        streaming,
        parts.rewards,
        recipe.rollout_sampling(0),  # a group's random numbers follow from its problem
        count=recipe.problems_per_rollout,
        share=recipe.problems_per_rollout // parts.accelerator.num_processes,
        steps=recipe.policy_gradient.steps_per_generation,
        max_staleness=recipe.rollout.max_staleness,
        phase=parts.report.phase,
    )
