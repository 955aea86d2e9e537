"""Training stops at the first value that is not finite, before the optimizer step; bfloat16 updates float32 weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from grpo.algorithm.plan import Plan, Shapes
from grpo.learner.batch import assemble
from grpo.learner.policy import Policy
from grpo.recipe.algorithm import AlgorithmConfig
from grpo.recipe.errors import NonFiniteError
from tests.grpo.learner.policy_gradients import MAX_COMPLETION_LENGTH, make_groups, policy_for, recipe_for
from tests.grpo.learner.test_policy import make_policy, on_policy_loss


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}


def test_a_loss_that_is_not_finite_names_micro_batch_and_cause_and_changes_no_weight(tiny_v3: Path) -> None:
    policy, samples = make_policy(tiny_v3)
    before = weights(policy)
    bad = [replace(samples[0], advantages=float("inf")), *samples[1:]]
    with pytest.raises(NonFiniteError, match=r"micro-batch 1 of 1: the loss is .*Its advantages are not finite\. "):
        policy.update(bad, on_policy_loss)
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.model.state_dict().items())


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_gradient_that_is_not_finite_is_named_and_changes_no_weight(tiny_v3: Path, value: float) -> None:
    policy, samples = make_policy(tiny_v3)
    before = weights(policy)
    policy.model.lm_head.weight.register_hook(lambda gradient: gradient.fill_(value))
    with pytest.raises(NonFiniteError, match=r"the gradient is not finite in 1 parameters \(lm_head\.weight\) while"):
        policy.update(samples, on_policy_loss)
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.model.state_dict().items())


def test_rewards_whose_square_overflows_are_refused() -> None:
    groups = make_groups()
    shapes = replace(Shapes.of(groups), rewards=np.array([[1e308, 0.0, 1e308, -1e308]] * len(groups)))
    with pytest.raises(ValueError, match=r"the rewards reach 1e\+308, and their squares overflow"):
        Plan.of(shapes, AlgorithmConfig(), max_completion_length=8, seed=0)


def test_bfloat16_moves_nearly_every_weight_at_a_learning_rate_of_rl(tiny_llama: Path) -> None:
    """Weights in bfloat16 themselves would keep all but a few: 1e-6 is below half a unit in the last place."""
    recipe = recipe_for(str(tiny_llama))
    AcceleratorState._reset_state(reset_partial_state=True)
    policy = policy_for(recipe, Accelerator(cpu=True, mixed_precision="bf16"))
    groups = make_groups()
    plan = Plan.of(Shapes.of(groups), recipe.algorithm, max_completion_length=MAX_COMPLETION_LENGTH, seed=0)
    before = weights(policy)
    for _ in range(3):
        policy.update(assemble(groups, plan, keep_zero_advantage=False), on_policy_loss)
    AcceleratorState._reset_state(reset_partial_state=True)
    after = policy.model.state_dict()
    used = [name for name in before if "embed" not in name]  # rows of tokens that never occur have no gradient
    moved = sum((after[name] != before[name]).sum().item() for name in used)
    assert all(tensor.dtype == torch.float32 for tensor in after.values())
    assert moved / sum(before[name].numel() for name in used) > 0.9
