"""A model's parameters, activations, cache and FLOPs, from its configuration alone.

    config.json -> meta model -> parameters
                -> fake forward, which allocates nothing: the tensors autograd would save -> activations

Activations agree with a measured peak within about 25% (`test_check.py` measures one).
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from grpo.model.adapters import attach_adapters
from grpo.model.forward.mtp import DeepseekV3ForCausalLM, check_mtp, mtp_layer
from grpo.model.quantized import quantizable_numbers
from grpo.model.sharding import adds_to_weights
from grpo.recipe.loop.lora import LoRAConfig

BYTES = {"float32": 4, "bfloat16": 2}
Texts = tuple[tuple[int, int], ...]  # (how many, tokens of each)
MTP = Literal["kept", "trained"]  # what a stage does with a multi-token prediction


@dataclass(frozen=True, slots=True)
class MTPShape:
    """A multi-token prediction's size, without the trunk's embedding and head.

    MTPShape(total=11_610_067_968, active=688_100_352, trained=True)
    """

    total: int
    active: int
    trained: bool  # else it is only kept: never run, no gradient


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model's size.

    ModelShape(
        config=…,
        total=671_026_404_352,   # parameters, without a multi-token prediction's: what engines and references hold
        active=37_551_990_784,   # parameters a single token uses, of these
        trained=671_026_404_352, # parameters an optimizer step changes, a multi-token prediction's among them
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
    mtp: MTPShape | None = None
    quantized: int = 0  # of the parameters, those held in 4 bits

    @property
    def held(self) -> int:
        """Parameters that a trainer holds."""
        return self.total + (self.mtp.total if self.mtp else 0)

    @property
    def run(self) -> int:
        """Parameters that an update's forward runs."""
        return self.total + (self.mtp.total if self.mtp and self.mtp.trained else 0)

    @property
    def trained_share(self) -> float:
        """Of the parameters that an update runs, those that it changes: 1, or a little with adapters."""
        return self.trained / self.run

    @property
    def layers(self) -> int:
        """Layers that an update's forward runs."""
        return self.config.num_hidden_layers + bool(self.mtp and self.mtp.trained)


def measure_shape(
    config: PretrainedConfig,
    *,
    rows: int,
    length: int,
    width: int,
    lora: LoRAConfig | None = None,
    quantization: str | None = None,
    mtp: MTP | None = None,
) -> ModelShape:
    """Count parameters, and the bytes autograd saves in a forward over `rows` x `length` tokens, `width` per value.

    rows: 0: the model is not trained, nothing is saved.
    lora: what trains in place of the model's own parameters, and is counted with them. Activations are counted as if
            the whole model trained: peft cannot attach to a model that only computes shapes.
    mtp: with a multi-token prediction, kept or trained; None: without, as engines and references are.

    Raises:
        ValueError: `lora` does not fit the model, or it cannot have a multi-token prediction.
    """
    if mtp:
        check_mtp(config, config.name_or_path or "the model")
    config = copy.deepcopy(config)  # which models change
    with torch.device("meta"):
        make: Any = DeepseekV3ForCausalLM._from_config if mtp else AutoModelForCausalLM.from_config
        model = make(config, dtype=torch.bfloat16)
        quantized = quantizable_numbers(model) if quantization else 0
        if lora:
            attach_adapters(model, lora)
    total, active = _count(model.named_parameters(), config)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    module = None
    if (layer := mtp_layer(model)) is not None:
        module = MTPShape(*_count(layer.named_parameters(), config), mtp == "trained")
        total, active = total - module.total, active - module.active
        trained -= 0 if module.trained else module.total
    kept, scores = _kept_by_autograd(config, rows, length, width, mtp=mtp == "trained") if rows else (0, 0)
    return ModelShape(config, total, active, trained, kept, scores, not adds_to_weights(model), module, quantized)


def _count(parameters: Iterable[tuple[str, nn.Parameter]], config: PretrainedConfig) -> tuple[int, int]:
    """(all, those that a single token uses) of named parameters."""
    total, idle = 0, 0.0
    for name, parameter in parameters:
        total += parameter.numel()
        if ".experts." in name and parameter.ndim == 3:  # all experts of a layer are one tensor
            idle += parameter.numel() * (1 - config.num_experts_per_tok / parameter.shape[0])
    return total, round(total - idle)


def _kept_by_autograd(config: PretrainedConfig, rows: int, length: int, width: int, *, mtp: bool) -> tuple[int, int]:
    """Bytes a forward saves for backward, from a forward that computes shapes only: (all but scores, scores)."""
    # The fake grouped matrix product supports bfloat16 only: run in bfloat16, then scale the sizes.
    with FakeTensorMode():
        model = _fake_model(config, mtp=mtp)
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        kept: dict[int, Tensor] = {}  # by storage: views share memory

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()._cdata
            if storage not in weights and tensor.numel() > kept.get(storage, tensor[..., :0]).numel():
                kept[storage] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            base: Any = model.base_model
            ids = torch.ones(rows, length, dtype=torch.long)
            hidden = base(input_ids=ids, use_cache=False).last_hidden_state
            if (layer := mtp_layer(model)) is not None:
                positions = torch.arange(length)[None]
                rotary = base.rotary_emb(hidden, positions)
                layer(base.embed_tokens(ids), hidden, position_ids=positions, position_embeddings=rotary)
        scores = [t for t in kept.values() if t.shape[-2:] == (length, length)]
        all_bytes = sum(_storage_bytes(t, width) for t in kept.values())
        score_bytes = sum(_storage_bytes(t, width) for t in scores)
    return all_bytes - score_bytes, score_bytes


def _fake_model(config: PretrainedConfig, *, mtp: bool) -> PreTrainedModel:
    make: Any = DeepseekV3ForCausalLM._from_config if mtp else AutoModelForCausalLM.from_config
    model: PreTrainedModel = make(config, dtype=torch.bfloat16, attn_implementation="sdpa")
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
    return _flops(shape, texts, shape.active, shape.config.num_hidden_layers)


def mtp_flops(shape: ModelShape, texts: Texts) -> float:
    """FLOPs of a multi-token prediction's own forward and the head's, of what is trained; 0 without one."""
    if not (shape.mtp and shape.mtp.trained):
        return 0.0
    head = shape.config.vocab_size * shape.config.hidden_size
    return _flops(shape, texts, shape.mtp.active + head, 1)


def _flops(shape: ModelShape, texts: Texts, active: int, layers: int) -> float:
    config = shape.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    key = getattr(config, "qk_nope_head_dim", 0) + getattr(config, "qk_rope_head_dim", 0) or head
    value = getattr(config, "v_head_dim", None) or key
    attention = layers * config.num_attention_heads * (key + value)
    return float(sum(count * length * (2 * active + attention * length) for count, length in texts))


def describe(config: Any) -> str:
    """One line: `deepseek_v3, 61 layers, hidden 7168, 256 experts (8 active) and 1 shared`."""
    line = f"{config.model_type}, {config.num_hidden_layers} layers, hidden {config.hidden_size}"
    experts = getattr(config, "n_routed_experts", None) or getattr(config, "num_experts", None)
    if experts:
        shared = getattr(config, "n_shared_experts", 0)
        line += f", {experts} experts ({config.num_experts_per_tok} active)"
        line += f" and {shared} shared" if shared else ""
    return line
