"""Gradients of one update on fixed samples; run alone or under `accelerate launch --num_processes 2`.

    python policy_gradients.py MODEL OUT.pt [loss_type=… ] [max_tokens=…] [beta=…]

Each process takes every n-th group, as in training.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from grpo.algorithm.plan import Plan, Shapes
from grpo.learner.batch import Sample, assemble, attach
from grpo.learner.objective import loss_function
from grpo.learner.policy import Policy
from grpo.learner.scoring import Batching
from grpo.model.load import load_model
from grpo.recipe.algorithm import AlgorithmConfig
from grpo.recipe.config import GRPORecipe
from rewards.runner.score import ScoredGroup
from rollout.types import Completion, Group, Problem

MAX_COMPLETION_LENGTH = 12


def make_groups(num_groups: int = 6, size: int = 4) -> list[ScoredGroup]:
    rng = np.random.default_rng(0)
    groups = []
    for g in range(num_groups):
        answers = [rng.integers(0, 250, int(rng.integers(1, MAX_COMPLETION_LENGTH))).tolist() for _ in range(size)]
        completions = [
            Completion(token_ids=ids, logprobs=[-5.0] * len(ids), text="", finish_reason="stop", policy_version=0)
            for ids in answers
        ]
        rewards = rng.integers(0, 2, size).astype(float).tolist() if g else [1.0] * size  # the first has no gradient
        prompt_ids = rng.integers(0, 250, int(rng.integers(2, 6))).tolist()
        group = Group(problem=Problem(id=str(g), prompt=""), prompt_ids=prompt_ids, completions=completions)
        groups.append(ScoredGroup(group=group, rewards=rewards, breakdown={}))
    return groups


def with_noise(samples: list[Sample], beta: float) -> list[Sample]:
    """Old and reference log-probs that differ from the policy's, the same for a sample wherever it is computed."""

    def arrays(low: float, high: float) -> list[np.ndarray]:
        return [np.random.default_rng(sum(s.completion_ids)).uniform(low, high, len(s.completion_ids)) for s in samples]

    samples = attach(samples, old_logprobs=arrays(-9.0, -4.0), sampling_logprobs=arrays(-8.5, -4.5))
    return attach(samples, ref_logprobs=arrays(-8.0, -5.0)) if beta else samples


def other_routes(samples: list[Sample]) -> list[Sample]:
    """Two random experts for every token before the last, the same for a sample wherever it is computed."""
    draws = [np.random.default_rng(sum(s.completion_ids)).random((s.length - 1, 2, 8)) for s in samples]
    return attach(samples, routes=[np.argsort(draw, axis=-1)[..., :2].astype(np.uint8) for draw in draws])


def recipe_for(model: str, **options: object) -> GRPORecipe:
    recipe = GRPORecipe.model_validate(
        {
            "model": {
                "model_name_or_path": model,
                "sequence_balance_coefficient": options.get("sequence_balance_coefficient", 0.0),
            },
            "data": {"task": "countdown"},
            "rollout": {"max_completion_length": MAX_COMPLETION_LENGTH, "num_generations": 4},
            "rewards": [{"function": "countdown"}],
            "algorithm": {name: value for name, value in options.items() if name in AlgorithmConfig.model_fields},
            "trainer": {
                "max_grad_norm": 1e9,
                "gradient_checkpointing": options.get("gradient_checkpointing", False),
                "activation_offloading": options.get("activation_offloading", False),
            },
        }
    )
    # A budget below one full sample is refused in recipes; here it is what puts every sample alone.
    budget = {"max_tokens_per_micro_batch": options.get("max_tokens", 10_000)}
    return recipe.model_copy(update={"trainer": recipe.trainer.model_copy(update=budget)})


def policy_for(recipe: GRPORecipe, accelerator: Accelerator) -> Policy:
    model = load_model(recipe.model)
    if recipe.trainer.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Policy(
        model,
        recipe.trainer,
        accelerator,
        max_steps=recipe.trainer.max_steps,
        temperature=recipe.rollout.temperature,
        batching=Batching(recipe.trainer.max_tokens_per_micro_batch, pad_token_id=0),
        balance_bias_update_speed=recipe.model.balance_bias_update_speed,
        train_entropy=recipe.algorithm.trains_entropy,
        sequence_balance_coefficient=recipe.model.sequence_balance_coefficient,
        offload_activations=recipe.trainer.activation_offloading,
    )


def gradients(
    recipe: GRPORecipe, *, on_policy: bool = False, updates: int = 1
) -> tuple[dict[str, torch.Tensor], float]:
    """Gradient of every parameter in the last update, and its reported loss of all processes."""
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)])
    policy = policy_for(recipe, accelerator)
    algorithm = recipe.algorithm
    rank, world = accelerator.process_index, accelerator.num_processes
    groups = make_groups()
    whole = Plan.of(Shapes.of(groups), algorithm, max_completion_length=MAX_COMPLETION_LENGTH, seed=0)
    keep = algorithm.trains_without_advantage or recipe.model.sequence_balance_coefficient > 0
    samples = assemble(groups[rank::world], whole.of_process(rank, world), keep_zero_advantage=keep)

    for _ in range(updates):
        metrics = policy.update(samples if on_policy else with_noise(samples, algorithm.beta), loss_function(algorithm))
    total = accelerator.reduce(torch.tensor(metrics["loss"].value), "sum")
    grads = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
    return grads, float(total)


if __name__ == "__main__":
    model, out, *options = sys.argv[1:]
    pairs = dict(option.split("=") for option in options)
    updates = int(pairs.pop("updates", 1))
    recipe = recipe_for(model, **{k: int(v) if v.isdigit() else v for k, v in pairs.items()})
    result = gradients(recipe, updates=updates)
    if Accelerator().is_main_process:
        torch.save(result, Path(out))
