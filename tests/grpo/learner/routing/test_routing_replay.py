"""Routes travel with their samples: recorded in the old-log-prob pass, replayed in every update of the rollout."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from grpo.algorithm.plan import Plan, Shapes
from grpo.learner.batch import Sample, assemble, attach, collate
from grpo.learner.objective import loss_function
from grpo.learner.policy import Policy
from grpo.learner.scoring import Batching
from grpo.model.adapters import attach_adapters
from grpo.model.load import load_model
from grpo.model.moe import moe_layers
from grpo.model.replay import RoutingReplay
from grpo.recipe.algorithm import AlgorithmConfig
from grpo.recipe.loop.lora import LoRAConfig
from rollout.engines.hf import HFEngine
from rollout.types import Sampling
from tests.grpo.learner.policy_gradients import MAX_COMPLETION_LENGTH, make_groups, other_routes, recipe_for, with_noise
from tests.rollout.engines.agreement import make_prompts

loss = loss_function(AlgorithmConfig())


def make_policy(
    model_path: Path, *, max_tokens: int = 10_000, checkpointing: bool = False, lora: LoRAConfig | None = None
) -> Policy:
    recipe = recipe_for(str(model_path))
    model = load_model(recipe.model)
    if lora:
        attach_adapters(model, lora)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batching = Batching(max_tokens, pad_token_id=0)
    settings: Any = {"max_steps": 2, "temperature": 1.0, "batching": batching, "replay": RoutingReplay(model)}
    return Policy(model, recipe.trainer, Accelerator(cpu=True), **settings)


def make_samples() -> list[Sample]:
    groups = make_groups()
    whole = Plan.of(Shapes.of(groups), AlgorithmConfig(), max_completion_length=MAX_COMPLETION_LENGTH, seed=0)
    return with_noise(assemble(groups, whole, keep_zero_advantage=False), beta=0.0)


def move_router(policy: Policy) -> None:
    """Another balance bias: the same scores, but other experts for most tokens."""
    for block in moe_layers(policy.model).values():
        block.gate.e_score_correction_bias.copy_(torch.linspace(-1, 1, 8).flip(0))


def test_recorded_routes_give_the_log_probs_they_were_recorded_with(tiny_v3: Path) -> None:
    policy, samples = make_policy(tiny_v3, max_tokens=60), make_samples()
    logprobs, routes = policy.logprobs_and_routes(samples)
    assert [len(r) for r in routes] == [sample.length - 1 for sample in samples]
    move_router(policy)
    kept = policy.logprobs(attach(samples, routes=routes))
    np.testing.assert_allclose(np.concatenate(kept), np.concatenate(logprobs), atol=1e-6)
    moved = policy.logprobs(attach(samples, routes=routes), replay=False)
    assert np.abs(np.concatenate(moved) - np.concatenate(logprobs)).max() > 1e-2


def test_the_first_update_changes_no_route_and_later_ones_count_those_they_change(tiny_v3: Path) -> None:
    policy, samples = make_policy(tiny_v3), make_samples()
    logprobs, routes = policy.logprobs_and_routes(samples)
    samples = attach(samples, old_logprobs=logprobs, routes=routes)
    metrics = policy.update(samples, loss)
    assert metrics["moe/replay_changed_ratio"].value == 0
    assert metrics["moe/replay_missing_ratio"].value == 0
    assert metrics["clip_ratio/low_mean"].value == 0
    move_router(policy)
    assert 0.3 < policy.update(samples, loss)["moe/replay_changed_ratio"].value <= 1  # type: ignore[operator]


def gradients(policy: Policy, samples: list[Sample]) -> dict[str, torch.Tensor]:
    policy.update(samples, loss)
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("options", [{"max_tokens": 1}, {"max_tokens": 60, "checkpointing": True}])
def test_gradient_under_replay_does_not_depend_on_how_the_work_is_split(tiny_v3: Path, options: dict[str, Any]) -> None:
    samples = other_routes(make_samples())
    whole, split = gradients(make_policy(tiny_v3), samples), gradients(make_policy(tiny_v3, **options), samples)
    for name, gradient in whole.items():
        torch.testing.assert_close(split[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))


def test_adapters_train_under_replay_and_their_reference_has_its_own_routes(tiny_v3: Path) -> None:
    targets = ["experts.gate_up_proj", "experts.down_proj"]
    samples = other_routes(make_samples())
    policy = make_policy(tiny_v3, lora=LoRAConfig(target_modules=["o_proj"], target_parameters=targets))
    replayed, base = policy.logprobs(samples), make_policy(tiny_v3)
    np.testing.assert_allclose(np.concatenate(replayed), np.concatenate(base.logprobs(samples)), atol=1e-5)
    native = np.concatenate(policy.logprobs(samples, replay=False))
    np.testing.assert_allclose(native, np.concatenate(base.logprobs(make_samples())), atol=1e-5)
    assert policy.update(samples, loss)["moe/replay_changed_ratio"].value > 0.5  # type: ignore[operator]


def test_routes_lie_where_their_tokens_are() -> None:
    """Of the tokens before the last, without a beginning that came from a cache; -1 elsewhere."""
    common: Any = {"mini_batch": 0, "sampling_logprobs": 0.0, "advantages": 1.0, "token_weights": 1.0}
    ids = {"problem_id": "p", "prompt_ids": [1, 2], **common}
    routes = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    samples = [
        Sample(completion_ids=[3, 4], **ids, routes=routes),
        Sample(completion_ids=[5], **ids, routes=routes[1:2]),
        Sample(completion_ids=[6, 7], **ids),
    ]
    first = [[0, 1], [4, 5], [8, 9], [-1, -1]]  # of layer 0
    padded = collate(samples, pad_token_id=0).routes
    assert padded is not None and padded.shape == (3, 4, 2, 2)
    none = [[-1, -1]]
    assert padded[:, :, 0].tolist() == [first, [*none, [4, 5], *none, *none], none * 4]
    packed = collate(samples, pad_token_id=0, packed=True).routes
    assert packed is not None and packed.shape == (1, 11, 2, 2)
    assert packed[0, :, 0].tolist() == [*first, *none, [4, 5], *none, *none * 4]
    assert collate(samples[2:], pad_token_id=0).routes is None


def test_missing_routes_are_counted_and_impossible_ones_name_their_sample(tiny_v3: Path) -> None:
    policy, samples = make_policy(tiny_v3), other_routes(make_samples()[:4])
    without_prompt = [s.routes[len(s.prompt_ids) :] for s in samples if s.routes is not None]
    samples = attach(samples, routes=without_prompt)
    policy.check_routes(samples)
    missing = sum(len(s.prompt_ids) for s in samples) / sum(s.length - 1 for s in samples)
    assert policy.update(samples, loss)["moe/replay_missing_ratio"].value == pytest.approx(missing)
    without_prompt[1][-1, 0] = 3
    with pytest.raises(ValueError, match=rf"{samples[1].problem_id}: token \d+ went to experts \[3, 3\]"):
        policy.check_routes(samples)


@torch.no_grad()
def test_a_packed_row_replays_each_sample_with_its_own_routes(tiny_v3: Path) -> None:
    policy, samples = make_policy(tiny_v3), other_routes(make_samples()[:5])
    padded = policy.logprobs(samples)
    policy.batching = Batching(10_000, pad_token_id=0, packed=True)
    np.testing.assert_allclose(np.concatenate(policy.logprobs(samples)), np.concatenate(padded), atol=1e-5)


def test_a_trainer_with_other_routers_agrees_with_the_engine_whose_routes_it_replays(tiny_v3: Path) -> None:
    """Prompts of different lengths and completions of different lengths in one batch of the engine."""
    options: Any = {"dtype": "float32", "device": "cpu", "max_num_seqs": 12, "max_model_len": 64}
    engine = HFEngine(str(tiny_v3), **options, return_routes=True)
    groups = engine.generate(make_prompts(4), Sampling(num_generations=2, max_completion_length=8))
    samples = [
        Sample(
            problem_id=group.problem.id,
            prompt_ids=group.prompt_ids,
            completion_ids=completion.token_ids,
            mini_batch=0,
            sampling_logprobs=completion.logprobs,
            advantages=1.0,
            token_weights=1.0,
            routes=completion.routes,
        )
        for group in groups
        for completion in group.completions
    ]
    assert all(s.routes is not None and s.routes.shape == (s.length - 1, 2, 2) for s in samples)
    assert all(s.routes is not None and s.routes.dtype == np.uint8 for s in samples)
    policy = make_policy(tiny_v3)
    move_router(policy)
    policy.check_routes(samples)
    engines = np.concatenate([sample.per_token("sampling_logprobs") for sample in samples])
    assert np.abs(np.concatenate(policy.logprobs(samples)) - engines).mean() < 1e-6
    assert np.abs(np.concatenate(policy.logprobs(samples, replay=False)) - engines).mean() > 1e-2
    assert policy.update(samples, loss)["moe/replay_missing_ratio"].value == 0


def test_replay_shares_the_prompts_whose_routes_are_the_same(tiny_v3: Path) -> None:
    """Recorded once for a group, and replayed once: the gradients are those of samples that share nothing."""
    policy, samples = make_policy(tiny_v3), make_samples()
    assert policy.batching.shared
    logprobs, routes = policy.logprobs_and_routes(samples)
    samples = attach(samples, old_logprobs=logprobs, routes=routes)
    one = policy.batching.collate(samples, torch.device("cpu"))
    assert one.segments is not None and len(one.segments.prompts) < len(samples)
    move_router(policy)
    shared = gradients(policy, samples)
    alone = make_policy(tiny_v3)
    alone.batching = replace(alone.batching, shared=False)
    move_router(alone)
    for name, gradient in gradients(alone, samples).items():
        torch.testing.assert_close(shared[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))
