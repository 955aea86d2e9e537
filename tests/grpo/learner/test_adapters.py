"""Training adapters: their gradients are peft's own, and the reference is the model they are attached to."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from grpo.algorithm.plan import Plan, Shapes
from grpo.learner.batch import Sample, assemble
from grpo.learner.objective import loss_function
from grpo.learner.policy import Policy
from grpo.learner.reference import AdapterReference, Reference
from grpo.learner.scoring import Batching
from grpo.model.adapters import attach_adapters
from grpo.model.load import load_model
from grpo.recipe.algorithm import AlgorithmConfig
from grpo.recipe.config import GRPORecipe
from grpo.recipe.loop.lora import LoRAConfig
from tests.grpo.learner.policy_gradients import MAX_COMPLETION_LENGTH, make_groups, recipe_for, with_noise

BATCHING = Batching(200, pad_token_id=0)  # several micro-batches
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


def randomize(model: Any) -> None:
    """The same values for the same adapters, whatever the names before them."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            start = parameter.data if "magnitude" in name else 0.0  # A starts at random, DoRA's magnitude does not
            parameter.data = start + 0.1 * torch.randn(parameter.shape, generator=generator)


def policy_for(recipe: GRPORecipe, lora: LoRAConfig, quantization: Literal["4bit"] | None = None) -> Policy:
    model = load_model(recipe.model.model_copy(update={"lora": lora, "quantization": quantization}))
    attach_adapters(model, lora)
    randomize(model)
    if recipe.trainer.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Policy(model, recipe.trainer, Accelerator(cpu=True), max_steps=1, temperature=1.0, batching=BATCHING)


def samples_for(recipe: GRPORecipe) -> list[Sample]:
    groups = make_groups()
    plan = Plan.of(Shapes.of(groups), recipe.algorithm, max_completion_length=MAX_COMPLETION_LENGTH, seed=0)
    return with_noise(assemble(groups, plan, keep_zero_advantage=False), beta=0.0)


loss = loss_function(AlgorithmConfig())


def peft_gradients(
    model_path: Path, lora: LoRAConfig, samples: list[Sample], quantization: Any = None
) -> list[torch.Tensor]:
    """peft's own model, one forward per sample, full logits, the clipped loss written out."""
    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32, quantization_config=quantization)
    base.train()  # in evaluation mode bitsandbytes packs quantized weights for inference
    model: Any = get_peft_model(base, LoraConfig(**lora.peft_arguments(), task_type="CAUSAL_LM"))
    randomize(model)
    total = torch.zeros(())
    for sample in samples:
        n = len(sample.completion_ids)
        logits = model(input_ids=torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])).logits[0, -n - 1 : -1]
        logprobs = logits.log_softmax(-1).gather(1, torch.tensor(sample.completion_ids)[:, None])[:, 0]
        ratio = (logprobs - torch.tensor(sample.old_logprobs, dtype=torch.float32)).exp()
        advantage = torch.as_tensor(sample.advantages, dtype=torch.float32)
        gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        total -= (gain * torch.as_tensor(sample.token_weights, dtype=torch.float32)).sum()
    total.backward()
    return [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]


KINDS = {
    "experts": LoRAConfig(r=2, target_parameters=EXPERTS),
    "dora": LoRAConfig(r=4, target_modules=["o_proj", "q_b_proj"], use_dora=True, use_rslora=True),
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", KINDS.values(), ids=KINDS)
def test_gradients_are_those_of_plain_peft(tiny_v3: Path, lora: LoRAConfig, checkpointing: bool) -> None:
    recipe = recipe_for(str(tiny_v3), gradient_checkpointing=checkpointing)
    samples, policy = samples_for(recipe), policy_for(recipe, lora)
    policy.update(samples, loss)
    got = [p.grad for p in policy.model.parameters() if p.requires_grad]
    expected = peft_gradients(tiny_v3, lora, samples)
    assert len(got) == len(expected) > 0
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_on_a_quantized_base_are_those_of_plain_peft(tiny_v3: Path, checkpointing: bool) -> None:
    """Also after the reference's pass, in which bitsandbytes would pack the weights for inference on some CPUs."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    lora = LoRAConfig(r=2, target_parameters=EXPERTS)
    recipe = recipe_for(str(tiny_v3), gradient_checkpointing=checkpointing)
    samples, policy = samples_for(recipe), policy_for(recipe, lora, quantization="4bit")
    AdapterReference(policy).logprobs(samples)
    policy.update(samples, loss)
    got = [p.grad for p in policy.model.parameters() if p.requires_grad]
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    expected = peft_gradients(tiny_v3, lora, samples, nf4)
    assert len(got) == len(expected) > 0
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * largest)


def test_a_step_changes_adapters_only_and_the_optimizer_holds_nothing_else(tiny_v3: Path) -> None:
    recipe = recipe_for(str(tiny_v3))
    policy = policy_for(recipe, LoRAConfig(r=2, target_parameters=EXPERTS))
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    policy.update(samples_for(recipe), loss)
    changed = {name for name, p in policy.model.named_parameters() if not torch.equal(p, before[name])}
    trained = {name for name, p in policy.model.named_parameters() if p.requires_grad}
    assert changed == trained
    assert all("lora_" in name for name in trained)
    assert len(policy.optimizer.state) == len(trained)


def test_the_reference_is_the_base_and_follows_a_refresh(tiny_v3: Path) -> None:
    recipe = recipe_for(str(tiny_v3))
    samples, policy = samples_for(recipe), policy_for(recipe, LoRAConfig(r=4))
    reference = AdapterReference(policy)
    base = Reference(load_model(recipe.model), policy.accelerator, temperature=1.0, batching=BATCHING)
    for ours, theirs in zip(reference.logprobs(samples), base.logprobs(samples), strict=True):
        assert (ours == theirs).all()
    own = policy.logprobs(samples)
    reference.refresh(policy.model)
    policy.update(samples, loss)
    for ours, theirs in zip(reference.logprobs(samples), own, strict=True):
        assert (ours == theirs).all()
    assert any((ours != theirs).any() for ours, theirs in zip(policy.logprobs(samples), own, strict=True))
