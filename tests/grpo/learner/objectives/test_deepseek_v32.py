"""DeepSeek-V3.2's four at once (2512.02556, section 3.1): unbiased KL, off-policy sequence mask, keep routing, keep
sampling mask."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from grpo.algorithm.plan import Plan, Shapes
from grpo.learner.batch import Sample, assemble, attach
from grpo.learner.objective import loss_function
from grpo.learner.policy import Policy
from grpo.model.replay import RoutingReplay
from tests.grpo.algorithm import oracle
from tests.grpo.learner.objectives.test_sampling_mask import random_sets
from tests.grpo.learner.policy_gradients import (
    MAX_COMPLETION_LENGTH,
    make_groups,
    other_routes,
    policy_for,
    recipe_for,
    with_noise,
)

SETTINGS: dict[str, Any] = {"beta": 0.05, "use_bias_correction_kl": True, "off_policy_mask_threshold": 0.2}


def policy_and_samples(model: Path, **options: Any) -> tuple[Policy, list[Sample]]:
    """Samples with routes and sets of their own, and log-probs near the policy's under both."""
    recipe = recipe_for(str(model), **SETTINGS, **options)
    groups = make_groups()
    plan = Plan.of(Shapes.of(groups), recipe.algorithm, max_completion_length=MAX_COMPLETION_LENGTH, seed=0)
    samples = other_routes(with_noise(assemble(groups, plan, keep_zero_advantage=True), beta=0.05))
    samples = attach(samples, kept=[random_sets(sample) for sample in samples])
    policy = policy_for(recipe, Accelerator(cpu=True))
    policy.replay = RoutingReplay(policy.model)
    own = policy.logprobs(samples)

    def near(size: float, seed: int) -> list[np.ndarray]:
        draws = [np.random.default_rng([seed, *sample.completion_ids]) for sample in samples]
        return [values + rng.uniform(-size, size, len(values)) for values, rng in zip(own, draws, strict=True)]

    old, engine, reference = near(0.3, 0), near(0.8, 1), near(0.5, 2)
    return policy, attach(samples, old_logprobs=old, sampling_logprobs=engine, ref_logprobs=reference)


def test_the_loss_is_the_papers(tiny_v3: Path) -> None:
    policy, samples = policy_and_samples(tiny_v3)
    sequences = [
        {
            "logprobs": own.astype(float).tolist(),
            "old": np.asarray(sample.old_logprobs).tolist(),
            "behaviour": np.asarray(sample.sampling_logprobs).tolist(),
            "ref": np.asarray(sample.ref_logprobs).tolist(),
            "advantage": float(np.asarray(sample.advantages).flat[0]),
            "masked": False,
        }
        for sample, own in zip(samples, policy.logprobs(samples), strict=True)
    ]
    expected = oracle.loss(sequences, loss_type="grpo", max_completion_length=MAX_COMPLETION_LENGTH, **SETTINGS)
    without = {**SETTINGS, "off_policy_mask_threshold": None}
    unmasked = oracle.loss(sequences, loss_type="grpo", max_completion_length=MAX_COMPLETION_LENGTH, **without)
    assert abs(expected - unmasked) > 1e-3  # the mask leaves some completions out
    got = policy.update(samples, loss_function(recipe_for(str(tiny_v3), **SETTINGS).algorithm))
    assert got["loss"].value == pytest.approx(expected, rel=1e-5)
    assert got["moe/replay_missing_ratio"].value == 0


def test_the_gradient_does_not_depend_on_how_the_batch_is_split(tiny_v3: Path) -> None:
    def gradients(**options: Any) -> dict[str, torch.Tensor]:
        policy, samples = policy_and_samples(tiny_v3, **options)
        policy.update(samples, loss_function(recipe_for(str(tiny_v3), **SETTINGS).algorithm))
        return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}

    whole = gradients()
    largest = max(float(gradient.abs().max()) for gradient in whole.values())
    for options in ({"max_tokens": 40}, {"gradient_checkpointing": True, "max_tokens": 60}):
        split = gradients(**options)
        for name, gradient in whole.items():
            torch.testing.assert_close(split[name], gradient, rtol=1e-4, atol=2e-6 * largest)
