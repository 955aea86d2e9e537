"""A model's parameters, activations, cache and FLOPs, from its configuration alone.

    config.json -> meta model -> parameters
                -> fake forward, which allocates nothing: the tensors autograd would save -> activations

Activations agree with a measured peak within about 25% (`test_check.py` measures one).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from grpo.model.adapters import attach_adapters
from grpo.model.quantized import quantizable_numbers
from grpo.model.sharding import adds_to_weights
from grpo.recipe.loop.lora import LoRAConfig

BYTES = {"float32": 4, "bfloat16": 2}
Texts = tuple[tuple[int, int], ...]  # (how many, tokens of each)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model's size.

    ModelShape(
        config=…,
        total=671_026_404_352,   # parameters
        active=37_551_990_784,   # parameters a single token uses
        trained=671_026_404_352, # parameters an optimizer step changes
        kept_bytes=…,            # saved by autograd for one micro-batch, except attention scores
        score_bytes=…,           # attention scores, saved only where attention is not fused
    )
    """

    config: PretrainedConfig
    total: int
    active: int
    trained: int
    kept_bytes: int
    score_bytes: int
    cast_in_parts: bool = True  # sharded layers are gathered in the precision they compute in
    quantized: int = 0  # of the parameters, those held in 4 bits


def measure_shape(
    config: PretrainedConfig,
    *,
    rows: int,
    length: int,
    width: int,
    lora: LoRAConfig | None = None,
    quantization: str | None = None,
) -> ModelShape:
    """Count parameters, and the bytes autograd saves in a forward over `rows` x `length` tokens, `width` per value.

    rows: 0: the model is not trained, nothing is saved.
    lora: what trains in place of the model's own parameters, and is counted with them. Activations are counted as if
            the whole model trained: peft cannot attach to a model that only computes shapes.

    Raises:
        ValueError: `lora` does not fit the model.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        quantized = quantizable_numbers(model) if quantization else 0
        if lora:
            attach_adapters(model, lora)
    total = sum(p.numel() for p in model.parameters())
    idle = sum(
        p.numel() * (1 - config.num_experts_per_tok / p.shape[0])
        for name, p in model.named_parameters()
        if ".experts." in name and p.ndim == 3  # all experts of a layer are one tensor
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kept, scores = _kept_by_autograd(config, rows, length, width) if rows else (0, 0)
    return ModelShape(config, total, round(total - idle), trained, kept, scores, not adds_to_weights(model), quantized)


def _kept_by_autograd(config: PretrainedConfig, rows: int, length: int, width: int) -> tuple[int, int]:
    """Bytes a forward saves for backward, from a forward that computes shapes only: (all but scores, scores)."""
    # The fake grouped matrix product supports bfloat16 only: run in bfloat16, then scale the sizes.
    with FakeTensorMode():
        model = _fake_model(config)
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        kept: dict[int, Tensor] = {}  # by storage: views share memory

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()._cdata
            if storage not in weights and tensor.numel() > kept.get(storage, tensor[..., :0]).numel():
                kept[storage] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.base_model(input_ids=torch.ones(rows, length, dtype=torch.long), use_cache=False)
        scores = [t for t in kept.values() if t.shape[-2:] == (length, length)]
        all_bytes = sum(_storage_bytes(t, width) for t in kept.values())
        score_bytes = sum(_storage_bytes(t, width) for t in scores)
    return all_bytes - score_bytes, score_bytes


def _fake_model(config: PretrainedConfig) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    if getattr(config, "num_experts_per_tok", None):
        model.set_experts_implementation("grouped_mm")
    return model.train()


def _storage_bytes(tensor: Tensor, width: int) -> int:
    size = tensor.untyped_storage().nbytes()
    return size * width // 2 if tensor.dtype == torch.bfloat16 else size


def kv_bytes_per_token(config: PretrainedConfig, width: int, *, compressed: bool) -> int:
    """KV-cache bytes per token; with MLA, for the latents (`compressed`) or for the heads they expand to."""
    if getattr(config, "kv_lora_rank", None):
        if compressed:
            return (config.kv_lora_rank + config.qk_rope_head_dim) * config.num_hidden_layers * width
        key = config.qk_nope_head_dim + config.qk_rope_head_dim
        return 2 * key * config.num_attention_heads * config.num_hidden_layers * width  # values are padded
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return 2 * heads * head * config.num_hidden_layers * width


def forward_flops(shape: ModelShape, texts: Texts) -> float:
    """FLOPs of a forward over texts: 2 per active parameter and token, plus attention over half the text on average."""
    config = shape.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    key = getattr(config, "qk_nope_head_dim", 0) + getattr(config, "qk_rope_head_dim", 0) or head
    value = getattr(config, "v_head_dim", None) or key
    attention = config.num_hidden_layers * config.num_attention_heads * (key + value)
    return float(sum(count * length * (2 * shape.active + attention * length) for count, length in texts))


def describe(config: Any) -> str:
    """One line: `deepseek_v3, 61 layers, hidden 7168, 256 experts (8 active) and 1 shared`."""
    line = f"{config.model_type}, {config.num_hidden_layers} layers, hidden {config.hidden_size}"
    experts = getattr(config, "n_routed_experts", None) or getattr(config, "num_experts", None)
    if experts:
        shared = getattr(config, "n_shared_experts", 0)
        line += f", {experts} experts ({config.num_experts_per_tok} active)"
        line += f" and {shared} shared" if shared else ""
    return line
