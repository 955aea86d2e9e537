"""A rollout of dynamic sampling and its two updates under a loss that selects tokens; alone or under torchrun.

    torchrun --nproc_per_node 2 selected_rollouts.py MODEL OUT.pt

The engine is a function of the problem; everything after it is what the loop runs. Each process has its share.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object

from grpo.algorithm.plan import Plan, Shapes
from grpo.learner.batch import assemble
from grpo.learner.objective import loss_function, select_tokens
from grpo.recipe.algorithm import AlgorithmConfig
from grpo.report.metrics import merge, values
from grpo.report.rollout_metrics import Totals
from grpo.stages.collect import refill, teaches
from rewards.runner.score import ScoredGroup
from rollout.data.generated import TaskSource
from rollout.data.prompts import Prompter
from rollout.data.stream import ProblemStream
from rollout.types import Completion, Prompt
from tests.conftest import byte_tokenizer
from tests.grpo.learner.policy_gradients import MAX_COMPLETION_LENGTH, policy_for, recipe_for, with_noise

LOSSES: dict[str, dict[str, Any]] = {
    "clip_cov": {"cov_ratio": 0.1, "clip_cov_min": 0.05, "clip_cov_max": 5.0},
    "kl_cov": {"cov_ratio": 0.1},
}


def sampled(prompts: Sequence[Prompt]) -> list[ScoredGroup]:
    """Four completions of each problem; about a third of the groups have a signal."""
    groups = []
    for prompt in prompts:
        rng = np.random.default_rng(int(prompt.problem.id.rpartition("/")[2]))
        rewards = rng.integers(0, 2, 4).astype(float) if rng.random() < 0.4 else np.ones(4)
        answers = [rng.integers(0, 250, rng.integers(1, MAX_COMPLETION_LENGTH)).tolist() for _ in range(4)]
        completions = [
            Completion(token_ids=ids, logprobs=[-5.0] * len(ids), text="", finish_reason="stop", policy_version=0)
            for ids in answers
        ]
        groups.append(ScoredGroup(prompt.group(completions), rewards.tolist(), {"right": rewards.tolist()}))
    return groups


def train(model: str, loss: str) -> dict[str, Any]:
    """Groups, selected tokens, and loss and gradients of both updates, of all processes."""
    recipe = recipe_for(model, loss_type=loss, steps_per_generation=2, max_tokens=40, **LOSSES[loss])
    algorithm: AlgorithmConfig = recipe.algorithm
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)])
    rank, world = accelerator.process_index, accelerator.num_processes
    prompter = Prompter(byte_tokenizer(), template="{prompt}", max_prompt_length=300)
    problems = ProblemStream(TaskSource("arithmetic", {}), prompter, seed=0, process_index=rank, num_processes=world)
    rollout = refill(
        problems,
        sampled,
        lambda group: teaches(group, algorithm, [1.0]),
        count=6,
        max_rounds=10,
        totals=Totals(),
        processes=accelerator,
    )
    shapes = Shapes.interleave(gather_object([Shapes.of(rollout.groups)]))
    plan = Plan.of(shapes, algorithm, max_completion_length=MAX_COMPLETION_LENGTH, seed=0)
    samples = assemble(rollout.groups, plan.of_process(rank, world), keep_zero_advantage=True)
    samples = select_tokens(with_noise(samples, 0.0), algorithm, seed=0)
    policy = policy_for(recipe, accelerator)
    found: dict[str, Any] = {
        "position": problems.state_dict()["position"],
        "groups": sorted(gather_object([group.group.problem.id for group in rollout.groups])),
        "selected": sorted(
            gather_object([(s.problem_id, s.completion_ids, s.per_token("selected").tolist()) for s in samples])
        ),
        "updates": [],
    }
    for step in range(2):
        metrics = policy.update([s for s in samples if s.mini_batch == step], loss_function(algorithm))
        gradients = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
        found["updates"].append((values(merge(gather_object([metrics]))), gradients))
    return found


if __name__ == "__main__":
    model, out = sys.argv[1:]
    result = {loss: train(model, loss) for loss in LOSSES}
    if Accelerator().is_main_process:
        torch.save(result, out)
