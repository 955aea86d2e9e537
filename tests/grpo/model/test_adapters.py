"""Adapters inside a V3 MoE: what is merged, switched off, saved and refused; peft itself is the reference."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM, PreTrainedModel

from grpo.evaluation.engines import merge
from grpo.model.adapters import (
    attach_adapters,
    base_only,
    check_sendable,
    describe_adapters,
    holding,
    load_adapters,
    save_adapters,
    trained_weights,
)
from grpo.model.load import load_model
from grpo.model.merge import merge_adapter
from grpo.model.weights import checkpoint_weights, save_model
from grpo.recipe.config import ModelConfig
from grpo.recipe.loop.lora import LoRAConfig
from rollout.engines.hf import HFEngine
from rollout.types import Problem, Prompt, Sampling
from tests.conftest import tiny_v4_config

if TYPE_CHECKING:
    from rollout.engines.vllm import VLLMEngine

ATTENTION = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
KINDS = {
    "attention": LoRAConfig(r=4, target_modules=ATTENTION),
    "all-linear": LoRAConfig(r=4),
    "experts": LoRAConfig(r=2, target_parameters=EXPERTS),
    "experts only": LoRAConfig(r=2, target_modules=[], target_parameters=EXPERTS),
    "rslora": LoRAConfig(r=4, use_rslora=True),
    "dora": LoRAConfig(r=4, target_modules=ATTENTION, use_dora=True),
    "head trained whole": LoRAConfig(r=4, target_modules="model.layers.1.*o_proj", modules_to_save=["lm_head"]),
}
IDS = torch.arange(3, 35).reshape(2, 16)


def adapted(path: Path, config: LoRAConfig, seed: int = 0) -> PreTrainedModel:
    """The model with adapters far from their start."""
    model = load_model(ModelConfig(model_name_or_path=str(path)))
    attach_adapters(model, config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> LoRAConfig:
    return KINDS[request.param]


def test_merged_weights_are_the_adapted_model_and_leave_the_base_bit_for_bit(tiny_v3: Path, kind: LoRAConfig) -> None:
    model, base = adapted(tiny_v3, kind), load_model(ModelConfig(model_name_or_path=str(tiny_v3)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = dict(checkpoint_weights(model))
    assert {n: t.shape for n, t in merged.items()} == {n: t.shape for n, t in checkpoint_weights(base)}
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    whole = DeepseekV3ForCausalLM.from_pretrained(None, config=base.config, state_dict=merged)
    torch.testing.assert_close(logits(whole), logits(model), rtol=1e-4, atol=1e-4)
    assert (logits(model) - logits(base)).abs().max() > 0.01


def test_adapters_off_are_the_base_and_held_weights_are_given_back(tiny_v3: Path, kind: LoRAConfig) -> None:
    model, base = adapted(tiny_v3, kind), load_model(ModelConfig(model_name_or_path=str(tiny_v3)))
    own, expected = trained_weights(model), logits(model)
    with base_only(model):
        assert torch.equal(logits(model), logits(base))
    earlier = adapted(tiny_v3, kind, seed=1)
    with holding(model, trained_weights(earlier)):
        assert torch.equal(logits(model), logits(earlier))
    assert torch.equal(logits(model), expected)
    assert trained_weights(model).keys() == own.keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in trained_weights(model).items())


def test_saved_adapters_open_in_peft_and_load_again_bit_for_bit(
    tiny_v3: Path, kind: LoRAConfig, tmp_path: Path
) -> None:
    model = adapted(tiny_v3, kind)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(t.numel() for t in weights.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert not (tmp_path / "model.safetensors").exists()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_v3)
    in_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_v3, dtype=torch.float32), tmp_path)
    torch.testing.assert_close(logits(in_peft), logits(model), rtol=1e-5, atol=1e-5)
    again = adapted(tiny_v3, kind, seed=1)
    load_adapters(again, tmp_path)
    assert torch.equal(logits(again), logits(model))


def test_merged_folder_computes_what_the_adapter_does(tiny_v3: Path, tmp_path: Path) -> None:
    model = adapted(tiny_v3, KINDS["experts"])
    model.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "adapter", tmp_path / "whole")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(logits(whole), logits(model), rtol=1e-4, atol=1e-4)
    assert (tmp_path / "whole/tokenizer_config.json").exists()
    with pytest.raises(ValueError, match="is not empty"):
        merge(tmp_path / "adapter", tmp_path / "whole")
    with pytest.raises(ValueError, match="no adapter_config"):
        merge(tiny_v3, tmp_path / "other")


def test_merging_keeps_what_the_base_has_in_float32(tiny_v3: Path, tmp_path: Path) -> None:
    """Biases near 5 that differ by less than bfloat16's step of 1/32 decide which experts are taken."""
    base = DeepseekV3ForCausalLM.from_pretrained(tiny_v3, dtype=torch.bfloat16)
    bias = torch.tensor([5.0, 5.01, 5.02, 5.005, 5.015, 5.025, 5.03, 5.001])
    base.get_buffer("model.layers.1.mlp.gate.e_score_correction_bias").copy_(bias)
    base.save_pretrained(tmp_path / "base")
    save_adapters(adapted(tmp_path / "base", KINDS["attention"]), tmp_path / "adapter", is_writer=True)
    merge_adapter(tmp_path / "adapter", tmp_path / "whole")
    merged = load_file(tmp_path / "whole/model.safetensors")
    assert torch.equal(merged["model.layers.1.mlp.gate.e_score_correction_bias"], bias)
    assert merged["model.layers.1.self_attn.o_proj.weight"].dtype == torch.bfloat16
    assert merged["lm_head.weight"].dtype == torch.bfloat16


def test_a_merged_folder_has_the_published_names_and_keys(tmp_path: Path) -> None:
    """DeepSeek-V4's are not those that transformers computes with, and vLLM reads the published ones."""
    save_model(AutoModelForCausalLM.from_config(tiny_v4_config()), tmp_path / "base", is_writer=True)
    model = adapted(tmp_path / "base", LoRAConfig(r=2, target_modules=["q_b_proj"]))
    save_adapters(model, tmp_path / "adapter", is_writer=True)
    merge_adapter(tmp_path / "adapter", tmp_path / "whole")
    names = {folder: set(load_file(tmp_path / folder / "model.safetensors")) for folder in ("base", "whole")}
    assert names["whole"] == names["base"] and "embed.weight" in names["whole"]
    saved = json.loads((tmp_path / "whole/config.json").read_text())
    assert (saved["compress_ratios"], saved["num_hash_layers"]) == ([4, 0], 0)


def test_a_module_trained_whole_is_the_one_named(tiny_v3: Path) -> None:
    """peft compares the ends of strings, where `norm` is also every layernorm."""
    model = adapted(tiny_v3, LoRAConfig(r=4, target_modules=["o_proj"], modules_to_save=["norm"]))
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert trained == {"model.norm.modules_to_save.default.weight"}


def test_adapters_of_another_shape_are_refused(tiny_v3: Path, tmp_path: Path) -> None:
    adapted(tiny_v3, KINDS["attention"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not those of"):
        load_adapters(adapted(tiny_v3, KINDS["all-linear"]), tmp_path)


def test_an_adapter_is_no_base_of_training(tiny_v3: Path, tmp_path: Path) -> None:
    adapted(tiny_v3, KINDS["attention"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="grpo merge"):
        load_model(ModelConfig(model_name_or_path=str(tmp_path)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"target_modules": ["q_proj", "o_proj"]}, "'q_proj' matches nothing.*kv_a_proj_with_mqa"),
        ({"target_modules": "layers.9.*"}, "matches nothing"),
        ({"target_parameters": ["experts.up_proj"]}, "'experts.up_proj' matches nothing.*mlp.experts.gate_up_proj"),
        ({"target_modules": ["lm_head"]}, "lm_head: embeddings and head"),
        ({"target_modules": ".*(o_proj|embed_tokens)"}, "embed_tokens: embeddings and head"),
        ({"modules_to_save": ["head"]}, "modules_to_save: 'head' matches nothing"),
        ({"exclude_modules": ["gate"]}, "would adapt mlp.gate.weight"),
        ({"exclude_modules": ["up_proj"]}, "would adapt mlp.experts.gate_up_proj"),
        ({"exclude_modules": ".*experts.*"}, "would adapt mlp.experts"),
    ],
)
def test_targets_that_cannot_work_are_refused_with_what_there_is(
    tiny_v3: Path, config: dict[str, Any], message: str
) -> None:
    model = load_model(ModelConfig(model_name_or_path=str(tiny_v3)))
    with pytest.raises(ValueError, match=message):
        attach_adapters(model, LoRAConfig(**config))


def test_no_embedding_and_no_head_is_offered_as_a_target(tiny_v3: Path) -> None:
    model = load_model(ModelConfig(model_name_or_path=str(tiny_v3)))
    for targets in (["q_proj"], "layers.9.*"):
        with pytest.raises(ValueError, match="There are mlp") as error:
            attach_adapters(model, LoRAConfig(target_modules=targets))
        assert "lm_head" not in str(error.value) and "embed_tokens" not in str(error.value)


def test_half_of_a_tied_pair_is_not_trained(tiny_llama: Path) -> None:
    model = load_model(ModelConfig(model_name_or_path=str(tiny_llama)))
    with pytest.raises(ValueError, match="would separate them"):
        attach_adapters(model, LoRAConfig(modules_to_save=["lm_head"]))


def test_the_log_says_what_trains(tiny_v3: Path) -> None:
    """peft takes a MoE's gate, up and down projections, also those of all-linear, for its routed experts."""
    attention, everything = (describe_adapters(adapted(tiny_v3, KINDS[name])) for name in ("attention", "all-linear"))
    assert "self_attn.o_proj" in attention and "experts" not in attention
    assert "mlp.experts.down_proj, mlp.experts.gate_up_proj, mlp.gate.weight" in everything
    assert "shared" not in everything


def test_dora_on_experts_is_refused(tiny_v3: Path) -> None:
    model = load_model(ModelConfig(model_name_or_path=str(tiny_v3)))
    with pytest.raises(ValueError, match="does not work with use_dora"):
        attach_adapters(model, LoRAConfig(use_dora=True))


def sampled_difference(model: PreTrainedModel, engine: Any) -> float:
    """Mean |log p_model - log p_engine| over sampled tokens, after the engine received the model's weights."""
    engine.publish(checkpoint_weights(model), 1)
    prompts = [Prompt(problem=Problem(id=text, prompt=text), token_ids=list(text.encode())) for text in ("one", "two:")]
    differences = []
    for group in engine.generate(prompts, Sampling(num_generations=4, max_completion_length=12, seed=0)):
        for completion in group.completions:
            ids = torch.tensor([[*group.prompt_ids, *completion.token_ids]])
            with torch.no_grad():
                found = model(input_ids=ids, use_cache=False).logits[0, len(group.prompt_ids) - 1 : -1].log_softmax(-1)
            ours = found.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
            differences.append((ours - torch.tensor(completion.logprobs)).abs())
    return float(torch.cat(differences).mean())


def test_hf_engine_samples_from_the_adapted_model_after_every_sync(tiny_v3: Path, kind: LoRAConfig) -> None:
    engine = HFEngine(str(tiny_v3), dtype="float32", device="cpu", max_num_seqs=8, max_model_len=64)
    for seed in (0, 1):
        assert sampled_difference(adapted(tiny_v3, kind, seed), engine) < 2e-5


@pytest.mark.vllm
def test_vllm_samples_from_the_adapted_model_after_every_sync(tiny_v3: Path, vllm_v3: "VLLMEngine") -> None:
    for name in ("experts", "dora"):
        for seed in (0, 1):
            assert sampled_difference(adapted(tiny_v3, KINDS[name], seed), vllm_v3) < 2e-5


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("all-linear", r"model.lora adapts self_attn\.kv_b_proj, and vLLM multiplies this weight into its latent"),
        ("experts only", r"model.lora adapts mlp\.experts\.\w+, and vLLM takes adapters of modules only"),
        ("attention", r"model.lora adapts self_attn\.kv_b_proj, and vLLM multiplies this weight into its latent"),
    ],
)
def test_adapters_that_vllm_would_ignore_are_not_sent(tiny_v3: Path, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"rollout\.adapters=send: {message}.*set rollout\.adapters=merge\.$"):
        check_sendable(adapted(tiny_v3, KINDS[kind]))
    others = [name for name in ATTENTION if name != "kv_b_proj"]
    check_sendable(adapted(tiny_v3, LoRAConfig(r=4, target_modules=others)))
