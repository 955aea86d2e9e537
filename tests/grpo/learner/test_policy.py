"""The update's gradient against the formula written out plainly, however the work is split."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM

from grpo.algorithm.advantage import group_relative_advantages
from grpo.algorithm.plan import Plan, Shapes
from grpo.learner.batch import MicroBatch, Sample, assemble, collate
from grpo.learner.objective import loss_function
from grpo.learner.policy import Policy
from grpo.model.moe import Routes
from grpo.recipe.algorithm import AlgorithmConfig
from grpo.report.metrics import values
from tests.conftest import save_tiny, tiny_v4_config
from tests.grpo.learner.policy_gradients import (
    MAX_COMPLETION_LENGTH,
    gradients,
    make_groups,
    policy_for,
    recipe_for,
    with_noise,
)


def plain(model_path: Path, loss_type: str, beta: float) -> tuple[dict[str, torch.Tensor], float]:
    """One forward per sample, full logits, the loss as the papers write it; zero-gradient samples included."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    groups = make_groups()
    advantages = group_relative_advantages(Shapes.of(groups).rewards, "group")
    completions = [c for g in groups for c in g.group.completions]
    tokens = sum(len(c.token_ids) for c in completions)
    total = torch.zeros(())
    for scored, row in zip(groups, advantages, strict=True):
        for completion, advantage in zip(scored.group.completions, row, strict=True):
            ids, n = [*scored.group.prompt_ids, *completion.token_ids], len(completion.token_ids)
            logits = model(torch.tensor([ids])).logits[0, -n - 1 : -1]
            logprobs = logits.log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
            sample = Sample(
                problem_id="p",
                prompt_ids=[],
                completion_ids=completion.token_ids,
                sampling_logprobs=0.0,
                advantages=advantage,
                token_weights=1.0,
                mini_batch=0,
            )
            [sample] = with_noise([sample], beta)
            ratio = (logprobs - torch.tensor(sample.old_logprobs, dtype=torch.float32)).exp()
            gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            if beta:
                difference = torch.tensor(sample.ref_logprobs, dtype=torch.float32) - logprobs
                gain = gain - beta * (difference.exp() - difference - 1)
            total -= {
                "grpo": gain.mean() / len(completions),
                "dr_grpo": gain.sum() / (len(completions) * MAX_COMPLETION_LENGTH),
                "dapo": gain.sum() / tokens,
                "bnpo": gain.sum() / tokens,
            }[loss_type]
    total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, total.item()


def assert_equal(got: tuple[dict, float], expected: tuple[dict, float]) -> None:
    assert got[1] == pytest.approx(expected[1], rel=1e-5)
    assert got[0].keys() == expected[0].keys()
    largest = max(float(gradient.abs().max()) for gradient in expected[0].values())
    for name, gradient in expected[0].items():
        torch.testing.assert_close(got[0][name], gradient, rtol=1e-4, atol=1e-6 * largest)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])
@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_gradient_is_the_formulas_on_a_v3_moe(tiny_v3: Path, loss_type: str, beta: float) -> None:
    assert_equal(gradients(recipe_for(str(tiny_v3), loss_type=loss_type, beta=beta)), plain(tiny_v3, loss_type, beta))


def test_gradient_is_the_formulas_with_tied_embeddings(tiny_llama: Path) -> None:
    assert_equal(gradients(recipe_for(str(tiny_llama), loss_type="dapo")), plain(tiny_llama, "dapo", 0.0))


@pytest.mark.parametrize("max_tokens", [1, 40])
def test_gradient_does_not_depend_on_the_token_budget(tiny_v3: Path, max_tokens: int) -> None:
    whole = gradients(recipe_for(str(tiny_v3)))
    assert_equal(gradients(recipe_for(str(tiny_v3), max_tokens=max_tokens)), whole)


def test_gradient_checkpointing_changes_nothing(tiny_v3: Path) -> None:
    whole = gradients(recipe_for(str(tiny_v3)))
    assert_equal(gradients(recipe_for(str(tiny_v3), gradient_checkpointing=True, max_tokens=60)), whole)


def test_activation_offloading_moves_each_layer_s_input_and_changes_nothing(
    tiny_v3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CPU what is moved to host memory stays where it is; the calls are those of a GPU."""
    moved: list[tuple[int, ...]] = []
    to_host = torch.Tensor.cpu

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        moved.append(tuple(tensor.shape))
        return to_host(tensor)

    whole = gradients(recipe_for(str(tiny_v3), gradient_checkpointing=True))
    recipe = recipe_for(str(tiny_v3), gradient_checkpointing=True, activation_offloading=True)
    monkeypatch.setattr(torch.Tensor, "cpu", seen)
    assert_equal(gradients(recipe), whole)
    inputs = [shape for shape in moved if len(shape) == 3 and shape[-1] == 64]  # rows, tokens, hidden size
    assert len(inputs) >= 3 and len(set(inputs)) == 1
    assert not any(shape == (263, 64) for shape in moved)  # no weights


def test_gradient_does_not_depend_on_the_number_of_processes(tiny_v3: Path, tmp_path: Path) -> None:
    out = tmp_path / "gradients.pt"
    script = Path(__file__).with_name("policy_gradients.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    options = ["max_tokens=40", "sequence_balance_coefficient=1"]
    subprocess.run([*launcher, str(script), str(tiny_v3), str(out), *options], check=True)
    assert_equal(torch.load(out), gradients(recipe_for(str(tiny_v3), sequence_balance_coefficient=1.0)))


def test_rows_that_do_not_reach_all_weights_train_in_several_processes(tmp_path: Path) -> None:
    """DeepSeek-V4's compressors of 128 tokens: DDP waited for their gradients, and stopped in the second update."""
    (tmp_path / "v4").mkdir()
    model = save_tiny(AutoModelForCausalLM.from_config(tiny_v4_config(compressed=128)), tmp_path / "v4")
    script, out = Path(__file__).with_name("policy_gradients.py"), tmp_path / "gradients.pt"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*launcher, str(script), str(model), str(out), "max_tokens=40", "updates=2"], check=True)
    (found, _), (expected, _) = torch.load(out), gradients(recipe_for(str(model)), updates=2)
    assert found.keys() == expected.keys() and not any("compressor" in name for name in found)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():  # AdamW's first step makes much of gradients near 0
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5 * largest)


def make_policy(
    model: Path, accelerator: Accelerator | None = None, **model_options: float
) -> tuple[Policy, list[Sample]]:
    recipe = recipe_for(str(model))
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=model_options)})
    groups = make_groups()
    whole = Plan.of(Shapes.of(groups), recipe.algorithm, max_completion_length=MAX_COMPLETION_LENGTH, seed=0)
    samples = assemble(groups, whole, keep_zero_advantage=False)
    return policy_for(recipe, accelerator or Accelerator(cpu=True)), samples


on_policy_loss = loss_function(AlgorithmConfig())


@pytest.mark.parametrize("gamma", [0.0, 0.01])
def test_balance_bias_is_frozen_unless_asked_and_then_moves_by_gamma(tiny_v3: Path, gamma: float) -> None:
    policy, samples = make_policy(tiny_v3, balance_bias_update_speed=gamma)
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    before = dict(policy.weights())[name].clone()
    metrics = policy.update(samples, on_policy_loss)
    moved = (dict(policy.weights())[name] - before) / (gamma or 1.0)
    load = metrics["moe/load"].value[0]
    expected = [float(np.sign(1 / 8 - share)) if gamma else 0.0 for share in load]  # 8 experts
    assert moved.tolist() == pytest.approx(expected, abs=1e-4)


def plain_balance_loss(model_path: Path, alpha: float) -> dict[str, torch.Tensor]:
    """Gradients of V3's eq. 17-20, one forward per sample, mean over the samples and summed over the layers."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    gates = {n: m for n, m in model.named_modules() if n.endswith("mlp.gate")}
    seen: list[torch.Tensor] = []
    for gate in gates.values():
        gate.register_forward_hook(lambda _module, _args, output: seen.append(output[0]))
    samples = [(g.group.prompt_ids, c.token_ids) for g in make_groups() for c in g.group.completions]
    for prompt, completion in samples:
        seen.clear()
        model(torch.tensor([[*prompt, *completion]]))
        loss = torch.zeros(())
        for logits in seen:
            scores = logits.sigmoid()
            taken = scores.topk(2).indices
            p = (scores / scores.sum(1, keepdim=True)).mean(0)
            f = torch.tensor([(taken == i).sum().item() for i in range(8)]) * 8 / (2 * len(taken))
            loss = loss + alpha * (f * p).sum()
        (loss / len(samples)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("options", [{}, {"max_tokens": 40}, {"gradient_checkpointing": True, "max_tokens": 60}])
def test_sequence_balance_loss_adds_its_gradient_however_the_batch_is_split(tiny_v3: Path, options: dict) -> None:
    without, loss = gradients(recipe_for(str(tiny_v3), **options))
    balanced, total = gradients(recipe_for(str(tiny_v3), sequence_balance_coefficient=10.0, **options))
    expected = plain_balance_loss(tiny_v3, 10.0)
    assert total > loss + 20  # alpha for each of the two MoE layers, if their loads were even
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in balanced.items():
        part = expected.get(name, torch.zeros(()))  # the last layers' experts and the head have none
        torch.testing.assert_close(gradient - without[name], part.expand_as(gradient), rtol=1e-3, atol=1e-5 * largest)


def test_packed_samples_are_balanced_each_on_its_own(tiny_v3: Path) -> None:
    policy, samples = make_policy(tiny_v3, sequence_balance_coefficient=1.0)
    torch.manual_seed(0)
    packed, rows = (collate(samples, pad_token_id=0, packed=packed) for packed in (True, False))
    logits = torch.randn(packed.input_ids.numel(), 8)
    indices = logits.topk(2).indices
    weights = logits.sigmoid().gather(1, indices)
    spread = torch.zeros(rows.valid.numel(), dtype=torch.int64)
    spread[rows.valid.flatten()] = torch.arange(len(logits))
    one = Routes([indices], [logits], [weights])
    other = Routes([indices[spread]], [logits[spread]], [weights[spread]])
    assert policy._balance_loss(one, packed).item() == pytest.approx(policy._balance_loss(other, rows).item())


def test_padding_is_not_counted_as_expert_load(tiny_v3: Path) -> None:
    policy, samples = make_policy(tiny_v3)
    counts = policy.update(samples, on_policy_loss)["moe/load"].counts  # type: ignore[attr-defined]
    assert counts.sum(axis=1).tolist() == [2 * sum(s.length for s in samples)] * 2  # top-2, two MoE layers


def test_bfloat16_autocast_keeps_float32_weights_and_nearly_the_gradient(tiny_llama: Path) -> None:
    exact, samples = make_policy(tiny_llama)
    exact.update(samples, on_policy_loss)
    AcceleratorState._reset_state(reset_partial_state=True)
    mixed, _ = make_policy(tiny_llama, Accelerator(cpu=True, mixed_precision="bf16"))
    mixed.update(samples, on_policy_loss)
    AcceleratorState._reset_state(reset_partial_state=True)
    a, b = (torch.cat([p.grad.flatten() for p in policy.model.parameters()]) for policy in (exact, mixed))
    assert b.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.99
    assert not torch.equal(a, b)


def test_log_probs_of_samples_come_back_in_their_order(tiny_v3: Path) -> None:
    policy, samples = make_policy(tiny_v3)
    together = policy.logprobs(samples)
    for sample, logprobs in zip(samples, together, strict=True):
        np.testing.assert_allclose(policy.logprobs([sample])[0], logprobs, rtol=1e-4, atol=1e-5)


# -- the largest micro-batch first


def test_a_rehearsal_changes_nothing_that_the_run_computes(tiny_v3: Path) -> None:
    recipe = recipe_for(str(tiny_v3))
    whole = Plan.of(Shapes.of(make_groups()), recipe.algorithm, max_completion_length=MAX_COMPLETION_LENGTH, seed=0)
    samples = with_noise(assemble(make_groups(), whole, keep_zero_advantage=False), beta=0.0)
    results = []
    for rehearse in (False, True):
        AcceleratorState._reset_state()
        torch.manual_seed(0)
        policy = policy_for(recipe, Accelerator(cpu=True))
        if rehearse:
            policy.rehearse(8, MAX_COMPLETION_LENGTH)
            assert all(p.grad is None for p in policy.model.parameters())
        metrics = policy.update(samples, loss_function(recipe.algorithm))
        results.append((values(metrics), torch.get_rng_state(), policy.model.state_dict()))
    (metrics, state, weights), (metrics_after, state_after, weights_after) = results
    assert metrics == metrics_after
    assert torch.equal(state, state_after)
    assert all(torch.equal(weights[name], tensor) for name, tensor in weights_after.items())


def test_a_rehearsal_keeps_the_routes_that_an_update_keeps(tiny_v3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _ = make_policy(tiny_v3, sequence_balance_coefficient=1.0)
    balance_loss, counts = policy._balance_loss, []

    def seen(routes: Routes, batch: MicroBatch) -> torch.Tensor:
        counts.append(routes.counts().sum(-1).tolist())
        return balance_loss(routes, batch)

    monkeypatch.setattr(policy, "_balance_loss", seen)
    policy.batching = replace(policy.batching, max_tokens=40)
    policy.rehearse(8, 12)
    assert counts == [[2 * 40, 2 * 40]]  # top-2 of 40 tokens, two MoE layers


def test_the_rehearsal_is_of_the_largest_micro_batch_and_says_what_to_lower(tiny_v3: Path) -> None:
    recipe = recipe_for(str(tiny_v3), max_tokens=100)
    policy = policy_for(recipe, Accelerator(cpu=True))
    seen = []

    def full(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen.append(tuple(args[0].shape))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …")

    policy.scorer.register_forward_pre_hook(full)
    message = (
        r"max_tokens_per_micro_batch=100: a micro-batch of 5 × 20 tokens does not fit into memory \(CUDA out of memory"
        r"\)\. Lower it, .*trainer\.gradient_checkpointing=true; .*trainer\.sharding=fsdp2"
    )
    with pytest.raises(ValueError, match=message):
        policy.rehearse(20 - MAX_COMPLETION_LENGTH, MAX_COMPLETION_LENGTH)
    assert seen == [(1, 100)]  # one packed row of five samples
