"""Updates over recorded sets of tokens: neither how the work is split nor new weights change the sets."""

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from grpo.algorithm.plan import Plan, Shapes
from grpo.learner.batch import Sample, assemble, attach
from grpo.learner.objective import loss_function
from grpo.learner.policy import Policy
from rollout.types import KeptTokens
from tests.grpo.learner.policy_gradients import MAX_COMPLETION_LENGTH, make_groups, policy_for, recipe_for, with_noise


def random_sets(sample: Sample) -> KeptTokens:
    """Each token's own and up to 20 others, the same for a sample wherever it is computed."""
    rng = np.random.default_rng(sum(sample.completion_ids))
    sets = [np.unique([token, *rng.integers(0, 263, rng.integers(0, 20))]) for token in sample.completion_ids]
    return KeptTokens(np.concatenate(sets).astype(np.int32), np.cumsum([0, *map(len, sets)]))


def policy_and_samples(model: Path, **options: object) -> tuple[Policy, list[Sample]]:
    recipe = recipe_for(str(model), entropy_coef=0.1, beta=0.05, **options)
    groups = make_groups()
    plan = Plan.of(Shapes.of(groups), recipe.algorithm, max_completion_length=MAX_COMPLETION_LENGTH, seed=0)
    samples = with_noise(assemble(groups, plan, keep_zero_advantage=True), 0.05)
    near = [np.full(len(s.completion_ids), -2.0) for s in samples]  # the size of log-probs over a few tokens
    samples = attach(samples, kept=[random_sets(s) for s in samples], old_logprobs=near, ref_logprobs=near)
    return policy_for(recipe, Accelerator(cpu=True)), samples


def gradients(model: Path, **options: object) -> dict[str, torch.Tensor]:
    policy, samples = policy_and_samples(model, **options)
    policy.update(samples, loss_function(recipe_for(str(model), entropy_coef=0.1, beta=0.05).algorithm))
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


@torch.no_grad()
def plain(policy: Policy, sample: Sample) -> np.ndarray:
    """Log-probs over the sets from full logits, in float64."""
    logits = policy.model(torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])).logits[0].double().numpy()
    assert sample.kept is not None
    sets, n = np.split(sample.kept.ids, sample.kept.offsets[1:-1]), len(sample.completion_ids)
    rows = zip(sets, logits[-n - 1 : -1], sample.completion_ids, strict=True)
    return np.array([row[token] - np.logaddexp.reduce(row[kept]) for kept, row, token in rows])


def test_the_update_does_not_depend_on_how_it_is_split(tiny_v3: Path) -> None:
    whole = gradients(tiny_v3)
    for options in ({"max_tokens": 40}, {"gradient_checkpointing": True, "max_tokens": 60}):
        split = gradients(tiny_v3, **options)
        largest = max(float(gradient.abs().max()) for gradient in whole.values())
        for name, gradient in whole.items():
            torch.testing.assert_close(split[name], gradient, rtol=1e-4, atol=1e-6 * largest)


def test_after_an_update_log_probs_are_over_the_same_sets(tiny_llama: Path) -> None:
    policy, samples = policy_and_samples(tiny_llama, max_tokens=40)
    before = policy.logprobs(samples)
    for got, sample in zip(before, samples, strict=True):
        np.testing.assert_allclose(got, plain(policy, sample), atol=1e-4)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.5)
    after = policy.logprobs(samples)
    for got, sample in zip(after, samples, strict=True):
        np.testing.assert_allclose(got, plain(policy, sample), atol=1e-4)
    assert max(np.abs(a - b).max() for a, b in zip(before, after, strict=True)) > 1
    alone = [i for i, s in enumerate(samples) if s.kept is not None and np.diff(s.kept.offsets).min() == 1]
    assert alone and all(before[i].max() == 0 for i in alone)
