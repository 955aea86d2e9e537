"""Parameters, memory per process, tokens and FLOPs of a recipe's model, from its configuration alone.

    config.json -> meta model -> parameters
                -> fake forward, which allocates nothing: the tensors autograd would save -> activations

Estimates, not bounds. Activations agree with a measured peak within about 25% (`test_check.py` measures one). Not
counted: the interpreter and its libraries (1 to 2 GiB with vLLM), memory fragmentation, mixed precision's weight casts.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from grpo.model.head import CHUNK_ELEMENTS
from grpo.recipe.config import GRPORecipe, ModelConfig
from grpo.recipe.load import RecipeError

BYTES = {"float32": 4, "bfloat16": 2}
_MLA_KERNEL_WIDTH = 576  # kv_lora_rank + qk_rope_head_dim; vLLM on CPU caches latents only at this size


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model's size.

    ModelShape(
        config=…,
        total=671_026_404_352,   # parameters
        active=37_551_990_784,   # parameters a single token uses
        kept_bytes=…,            # saved by autograd for one micro-batch, except attention scores
        score_bytes=…,           # attention scores, saved only where attention is not fused
    )
    """

    config: PretrainedConfig
    total: int
    active: int
    kept_bytes: int
    score_bytes: int


def load_config(model: ModelConfig) -> PretrainedConfig:
    """The model's configuration, without its weights. RecipeError if it cannot be read."""
    try:
        return AutoConfig.from_pretrained(
            model.model_name_or_path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"model.model_name_or_path={model.model_name_or_path!r}: no configuration found "
            f"({str(error).splitlines()[0]}). It must be a folder with config.json (`./` is the recipe's folder) or "
            "a Hub name."
        ) from None


def measure_shape(config: PretrainedConfig, *, rows: int, length: int, width: int) -> ModelShape:
    """Count parameters, and the bytes autograd saves in a forward over `rows` x `length` tokens, `width` per value."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    total = sum(p.numel() for p in model.parameters())
    idle = sum(
        p.numel() * (1 - config.num_experts_per_tok / p.shape[0])
        for name, p in model.named_parameters()
        if ".experts." in name and p.ndim == 3  # all experts of a layer are one tensor
    )
    kept, scores = _kept_by_autograd(config, rows, length, width)
    return ModelShape(config, total, round(total - idle), kept, scores)


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


def micro_batch(recipe: GRPORecipe) -> tuple[int, int]:
    """Rows and length of a micro-batch of full-length samples."""
    length = recipe.data.max_prompt_length + recipe.rollout.max_completion_length
    return max(1, recipe.trainer.max_tokens_per_micro_batch // length), length


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


def caches_latents(recipe: GRPORecipe, config: PretrainedConfig, device: str) -> bool:
    """Whether the engine caches MLA's latents instead of full keys and values."""
    if not getattr(config, "kv_lora_rank", None) or recipe.rollout.engine != "vllm":
        return False
    return device != "cpu" or config.kv_lora_rank + config.qk_rope_head_dim == _MLA_KERNEL_WIDTH


def memory_parts(recipe: GRPORecipe, shape: ModelShape, *, device: str, num_processes: int) -> dict[str, int]:
    """Bytes by part in one process, which holds the whole model."""
    width = BYTES[recipe.model.dtype]
    rows, length = micro_batch(recipe)
    config = shape.config
    # Trained in float32, whatever it computes in.
    state = shape.total * BYTES["float32"]
    parts = {"weights": state, "gradients": state, "AdamW": 2 * state}
    if width < BYTES["float32"]:
        parts["weights, cast for the forward"] = shape.total * width
    if num_processes > 1:
        parts["gradient buckets"] = state
    if recipe.algorithm.beta > 0:
        parts["reference"] = state
    # In backward, one layer at a time needs about as much again for gradients and intermediate values.
    layers = config.num_hidden_layers
    scores = shape.score_bytes if device == "cpu" else 0
    if recipe.trainer.gradient_checkpointing:
        inputs = rows * length * config.hidden_size * width * layers
        parts["activations, checkpointed"] = inputs + 2 * shape.kept_bytes // layers
        scores = 2 * scores // layers
    else:
        parts["activations"] = shape.kept_bytes * (layers + 1) // layers
        scores = scores * (layers + 1) // layers
    if scores:
        parts["attention scores"] = scores
    # A chunk's logits twice, the head weight's gradient in float32, hidden states and their gradient.
    chunk = min(CHUNK_ELEMENTS.get(device, 2**27), rows * length * config.vocab_size)
    hidden = 2 * rows * length * config.hidden_size * width
    parts["LM head, in chunks"] = 2 * 4 * chunk + 4 * config.vocab_size * config.hidden_size + hidden
    return parts | _engine_parts(recipe, shape, device, width)


def _engine_parts(recipe: GRPORecipe, shape: ModelShape, device: str, width: int) -> dict[str, int]:
    if recipe.rollout.engine == "vllm" and device == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory
        return {"engine: weights and KV cache": int(recipe.rollout.gpu_memory_utilization * memory)}
    if recipe.rollout.engine == "vllm":
        cache = int(recipe.rollout.kv_cache_gib * 2**30)
    else:
        per_token = kv_bytes_per_token(shape.config, width, compressed=False)
        cache = per_token * recipe.max_model_len * recipe.rollout.max_num_seqs
    return {"engine: weights": shape.total * width, "engine: KV cache": cache}


def flops_per_step(recipe: GRPORecipe, shape: ModelShape) -> tuple[float, float]:
    """(rollout, update) FLOPs of one optimizer step over all processes, every sample at full length.

    A forward takes 2 FLOPs per active parameter and token, plus attention over half the context on average. Backward
    takes twice that; checkpointing, the reference model and, with several steps per rollout, the old policy take one
    more forward each.
    """
    config = shape.config
    rows, length = recipe.rollout.problems_per_step * recipe.rollout.num_generations, sum(sample_lengths(recipe))
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    key = getattr(config, "qk_nope_head_dim", 0) + getattr(config, "qk_rope_head_dim", 0) or head
    value = getattr(config, "v_head_dim", None) or key
    attention = config.num_hidden_layers * config.num_attention_heads * (key + value) * length
    forward = float(rows * length * (2 * shape.active + attention))
    passes = 3 + recipe.trainer.gradient_checkpointing
    passes += (recipe.algorithm.beta > 0) + (recipe.algorithm.steps_per_generation > 1)
    return forward, passes * forward


def sample_lengths(recipe: GRPORecipe) -> tuple[int, int]:
    """Tokens of the longest prompt and completion."""
    return recipe.data.max_prompt_length, recipe.rollout.max_completion_length


def shardable(parts: dict[str, int]) -> int:
    """Bytes that sharding over processes would divide: everything but activations and caches."""
    whole = ("activations", "attention", "LM head", "engine: KV", "engine: weights and KV")
    return sum(size for name, size in parts.items() if not name.startswith(whole))


def describe(config: Any) -> str:
    """One line: `deepseek_v3, 61 layers, hidden 7168, 256 experts (8 active) and 1 shared`."""
    line = f"{config.model_type}, {config.num_hidden_layers} layers, hidden {config.hidden_size}"
    experts = getattr(config, "n_routed_experts", None) or getattr(config, "num_experts", None)
    if experts:
        shared = getattr(config, "n_shared_experts", 0)
        line += f", {experts} experts ({config.num_experts_per_tok} active)"
        line += f" and {shared} shared" if shared else ""
    return line
