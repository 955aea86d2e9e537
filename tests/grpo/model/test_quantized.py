"""A base in 4 bits under adapters: what engines are sent and what is merged is what the trainer computes with."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM, PreTrainedModel

from grpo.evaluation.engines import merge
from grpo.model import quantized
from grpo.model.adapters import attach_adapters, base_only, describe_adapters, load_adapters, save_adapters
from grpo.model.load import load_model
from grpo.model.quantized import quantizable_numbers, quantized_numbers
from grpo.model.weights import checkpoint_weights
from grpo.recipe.config import ModelConfig, PolicyConfig
from grpo.recipe.loop.lora import LoRAConfig

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
KINDS = {
    "all-linear": LoRAConfig(r=4),
    "dora": LoRAConfig(r=4, target_modules=["o_proj", "q_b_proj"], use_dora=True),
    "head trained whole": LoRAConfig(r=4, target_modules=["o_proj"], modules_to_save=["lm_head"]),
}
IDS = torch.arange(3, 35).reshape(2, 16)


def bitsandbytes() -> Any:
    return pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


def adapted(path: Path, lora: LoRAConfig, dtype: str = "float32") -> PreTrainedModel:
    """The quantized model with adapters far from their start."""
    bitsandbytes()
    config = PolicyConfig(model_name_or_path=str(path), lora=lora, quantization="4bit", dtype=dtype)
    model = load_model(config)
    attach_adapters(model, lora)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def test_what_is_quantized_and_what_stays(tiny_v3: Path) -> None:
    """Routed experts are 3-D parameters, so bitsandbytes leaves them."""
    model = adapted(tiny_v3, KINDS["all-linear"])
    packed = {name for name, p in model.named_parameters() if p.dtype == torch.uint8}
    assert "model.layers.1.self_attn.o_proj.base_layer.weight" in packed
    assert "model.layers.1.mlp.shared_experts.down_proj.weight" in packed
    assert not any("experts.gate_up_proj" in name or "lm_head" in name or "mlp.gate." in name for name in packed)
    assert {p.dtype for name, p in model.named_parameters() if name not in packed} == {torch.float32}
    layer: Any = model.get_submodule("model.layers.1.self_attn.o_proj.base_layer")
    state = layer.weight.quant_state
    assert (state.quant_type, state.nested, state.blocksize) == ("nf4", True, 64)
    plain = load_model(ModelConfig(model_name_or_path=str(tiny_v3)))
    # Layers' attention 64*32 + 32*128 + 64*40 + 32*160 + 64*64, a dense MLP 3*64*128, two shared experts 3*64*32.
    assert quantized_numbers(model) == quantizable_numbers(plain) == 3 * 17_920 + 24_576 + 2 * 6_144
    assert f"{quantized_numbers(model):,} of the base's are in 4 bits" in describe_adapters(model)


@pytest.mark.parametrize("kind", KINDS)
def test_engines_are_sent_what_the_trainer_computes_with(tiny_v3: Path, kind: str) -> None:
    model = adapted(tiny_v3, KINDS[kind])
    plain = load_model(ModelConfig(model_name_or_path=str(tiny_v3)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sent = dict(checkpoint_weights(model))
    assert {n: (t.shape, t.dtype) for n, t in sent.items()} == {
        n: (t.shape, t.dtype) for n, t in checkpoint_weights(plain)
    }
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    whole = DeepseekV3ForCausalLM.from_pretrained(None, config=plain.config, state_dict=sent)
    torch.testing.assert_close(logits(whole), logits(model), rtol=1e-4, atol=1e-4)


def test_the_reference_is_the_quantized_base(tiny_v3: Path) -> None:
    """Evaluation mode without gradient must not pack the weights, which the next update would then train through."""
    model = adapted(tiny_v3, KINDS["all-linear"])
    plain = load_model(ModelConfig(model_name_or_path=str(tiny_v3)))
    layer: Any = model.get_submodule("model.layers.0.self_attn.o_proj.base_layer")
    packed, expected = layer.weight.data.clone(), logits(model.train())
    with base_only(model.eval()):
        found = logits(model)
    assert (found - logits(plain)).abs().max() > 0.01
    assert torch.equal(layer.weight.data, packed)
    assert torch.equal(logits(model.train()), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_folder_is_the_trained_policy(tiny_v3: Path, kind: str, tmp_path: Path) -> None:
    model = adapted(tiny_v3, KINDS[kind])
    save_adapters(model, tmp_path, is_writer=True)
    recorded = json.loads((tmp_path / "quantization_config.json").read_text())
    assert (recorded["load_in_4bit"], recorded["bnb_4bit_quant_type"]) == (True, "nf4")
    assert not any(t.dtype == torch.uint8 for t in load_file(tmp_path / "adapter_model.safetensors").values())
    merge(tmp_path, tmp_path / "whole")
    assert "quantization" not in (tmp_path / "whole/config.json").read_text()
    whole = load_model(ModelConfig(model_name_or_path=str(tmp_path / "whole")))
    torch.testing.assert_close(logits(whole), logits(model), rtol=1e-4, atol=1e-4)
    sent = dict(checkpoint_weights(model))
    assert all(torch.equal(tensor, sent[name]) for name, tensor in checkpoint_weights(whole))


def test_saved_adapters_load_again_bit_for_bit(tiny_v3: Path, tmp_path: Path) -> None:
    model = adapted(tiny_v3, KINDS["all-linear"])
    save_adapters(model, tmp_path, is_writer=True)
    again = load_model(PolicyConfig(model_name_or_path=str(tiny_v3), lora=KINDS["all-linear"], quantization="4bit"))
    attach_adapters(again, KINDS["all-linear"])
    load_adapters(again, tmp_path)
    assert torch.equal(logits(again), logits(model))


def test_a_tied_embedding_stays_as_it_is(tiny_llama: Path) -> None:
    model = adapted(tiny_llama, KINDS["all-linear"], dtype="bfloat16")
    sent, stored = dict(checkpoint_weights(model)), load_file(tiny_llama / "model.safetensors")
    assert sent.keys() == stored.keys()
    assert torch.equal(sent["model.embed_tokens.weight"], stored["model.embed_tokens.weight"])
    plain: Any = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    plain.load_state_dict(sent, strict=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert (logits(plain) - logits(model)).abs().mean() < 0.03


def test_a_quantized_layer_is_not_trained_whole(tiny_v3: Path) -> None:
    with pytest.raises(ValueError, match=r"modules_to_save matches model\.layers\.0\.mlp\.down_proj, .* in 4 bits"):
        adapted(tiny_v3, LoRAConfig(r=4, target_modules=["o_proj"], modules_to_save=["mlp.down_proj"]))


def test_without_bitsandbytes_the_error_says_what_to_install(tiny_v3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "is_bitsandbytes_available", lambda: False)
    config = PolicyConfig(model_name_or_path=str(tiny_v3), lora=LoRAConfig(), quantization="4bit")
    with pytest.raises(ValueError, match=r"requires bitsandbytes\. Run: pip install bitsandbytes"):
        load_model(config)
