"""Loading a causal language model as a policy, and seeing it as a function from tokens to log-probs."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from grpo.model.adapters import is_adapter
from grpo.model.forward.grouped import keep_attention_fused
from grpo.model.forward.head import Kept, token_logprobs
from grpo.model.forward.mtp import DeepseekV3ForCausalLM, check_loaded, check_mtp, drafts_of_completions
from grpo.model.forward.packed import Segments, segments_for
from grpo.model.forward.teacher import Target, token_divergence
from grpo.model.fp8 import fp8_block, load_dequantized
from grpo.model.moe import cast_grouped_products, moe_layers
from grpo.model.quantized import load_quantized
from grpo.model.sharding import buffers_to, in_parts, reading_parts
from grpo.model.weights import keep_published_keys
from grpo.recipe.config import ModelConfig, PolicyConfig
from grpo.recipe.stages.sft import SFTModel
from rollout.support.weights import REPORTING, whole


def load_model(
    config: ModelConfig | SFTModel,
    path: str | Path | None = None,
    mesh: DeviceMesh | None = None,
    *,
    mtp: Literal["stored", "new"] | None = None,
    **changes: Any,
) -> PreTrainedModel:
    """A causal language model to train: float32 weights, whatever precision it computes in.

    With `dtype: bfloat16` the forward runs in bfloat16 (autocast) and the optimizer updates float32 weights: in
    bfloat16 itself, updates of RL's learning rates round to nothing. FP8 weights in blocks are dequantized. With
    `quantization: 4bit` linear layers cannot be trained, only adapters on them.

    path: a folder whose weights replace those of `config`, such as a checkpoint.
    mesh: the processes to shard over: each reads its part of every parameter, see `reading_parts`.
    mtp: with the folder's multi-token prediction; `new`: with a random one if the folder has none.
    changes: keys of the model's config.json with other values.

    Raises:
        ValueError: it is an adapter's folder, or quantized otherwise, or lacks weights, or cannot have a multi-token
            prediction.
    """
    name = path or config.model_name_or_path
    assert name is not None
    if is_adapter(name):
        raise ValueError(
            f"{name} is an adapter, which cannot be the base of further training. Write it out as a whole model first: "
            "grpo merge ADAPTER OUT."
        )
    revision, remote = None if path else config.revision, config.trust_remote_code
    keywords: dict[str, Any] = {
        "dtype": torch.float32,
        "attn_implementation": config.attn_implementation,
        "trust_remote_code": remote,
    }
    stored = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=remote, **changes)
    block = fp8_block(getattr(stored, "quantization_config", None), str(name))
    if mtp:
        model = _load_with_mtp(stored, str(name), block, revision, may_start=mtp == "new", **keywords, **changes)
    elif isinstance(config, PolicyConfig) and config.quantization:
        how = {"revision": revision, **keywords, **changes}
        model = load_quantized(str(name), getattr(torch, config.dtype), **how)
    elif block is not None:
        model = load_dequantized(stored, block, revision, **keywords)  # read whole, also with a mesh
    else:
        with reading_parts(mesh) as how:
            read: Any = AutoModelForCausalLM.from_pretrained
            model = whole(read(name, revision=revision, **keywords, **how, **changes, **REPORTING), name)
        if mesh is not None and in_parts(model):
            buffers_to(model, mesh.device_type)
    return prepared(model, config)


def _load_with_mtp(
    stored: Any, name: str, block: object, revision: str | None, *, may_start: bool, **keywords: Any
) -> PreTrainedModel:
    check_mtp(stored, name)
    if block is not None:
        raise ValueError(
            f"model.mtp: {name} has FP8 weights, which are read without the multi-token prediction. Write them out "
            f"first: grpo dequantize {name} OUT."
        )
    read: Any = DeepseekV3ForCausalLM.from_pretrained
    loaded = read(name, revision=revision, **keywords, **REPORTING)
    missing = set(loaded[1]["missing_keys"])
    check_loaded(missing, stored, name, may_start=may_start)
    own = f"model.layers.{stored.num_hidden_layers}."
    return whole(loaded, name, new={weight for weight in missing if weight.startswith(own)})


def new_model(config: SFTModel, architecture: PretrainedConfig) -> PreTrainedModel:
    """A causal language model with random float32 weights."""
    make: Any = AutoModelForCausalLM.from_config
    if config.mtp is not None:
        check_mtp(architecture, config.name)
        make = DeepseekV3ForCausalLM._from_config
    model = make(architecture, dtype=torch.float32, attn_implementation=config.attn_implementation)
    model.config.name_or_path = config.name  # for messages
    return prepared(model, config)


def prepared(model: PreTrainedModel, config: ModelConfig | SFTModel) -> PreTrainedModel:
    """The model as it is trained: its experts run as configured, and nothing is dropped unless asked for."""
    keep_attention_fused()
    if moe_layers(model):
        model.set_experts_implementation(config.experts_implementation)
        cast_grouped_products()
    if config.disable_dropout:
        disable_dropout(model)
    keep_published_keys(model)
    return model


def disable_dropout(model: nn.Module) -> None:
    """Switch every dropout off: ratios compare log-probs of two forwards, which must not differ by a random mask."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():  # rates that modules pass to functional dropout
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def logit_multiplier(model: PreTrainedModel) -> float:
    """What the model multiplies its head's output with, under the names architectures have for it."""
    config = model.config.get_text_config()
    multiplier = getattr(config, "logit_scale", None) or 1.0  # Cohere
    multiplier *= getattr(config, "lm_head_multiplier", None) or 1.0  # Falcon-H1
    return multiplier / (getattr(config, "logits_scaling", None) or 1.0)  # Granite


class CompletionLogProbs(nn.Module):
    """A causal language model as a function from token rows to log-probs of the sampled tokens.

    One module with one forward, so that DDP sees the whole computation.

    offload_activations: what the backbone keeps for its backward pass waits in host memory; with gradient checkpointing
        that is each layer's input. What a layer computes again in backward stays on the device.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        temperature: float,
        *,
        train_entropy: bool = False,
        train_mtp: bool = False,
        offload_activations: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.train_entropy = train_entropy
        self.train_mtp = train_mtp
        self.offload_activations = offload_activations
        self.set_temperature(temperature)

    def set_temperature(self, temperature: float) -> None:
        """At which completions are sampled, and log-probs computed."""
        self.temperature = temperature / logit_multiplier(
            self.model
        )  # a multiplier of logits is an inverse temperature

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        logit_positions: Tensor,
        targets: Tensor,
        target: Target | None = None,
        segments: Segments | None = None,
        kept: Kept | None = None,
    ) -> tuple:
        """logprobs [T] with gradient and entropy [T], with gradient if asked for; see `MicroBatch` for the shapes.

        With `kept`, both are those of the distribution over the tokens that the sampler kept.

        With a teacher's `target`: logprobs and entropy without gradient, then the divergence [T] from the teacher with
        gradient, and the teacher's log-probs [T]. Last, where a multi-token prediction is trained, its `Drafts`.
        """
        states = self._states(input_ids, position_ids, segments)
        hidden = states.flatten(0, 1)[logit_positions]
        head: Any = self.model.get_output_embeddings()
        found: tuple
        if target is None:
            found = token_logprobs(
                hidden, head.weight, targets, self.temperature, head.bias, kept=kept, train_entropy=self.train_entropy
            )
        else:
            divergence, logprobs, entropy, teacher_logprobs = token_divergence(
                hidden, head.weight, targets, target, self.temperature, head.bias
            )
            found = logprobs, entropy, divergence, teacher_logprobs
        if not (self.train_mtp and torch.is_grad_enabled()):
            return found
        batch = (input_ids, position_ids, states, logit_positions, targets)
        return *found, drafts_of_completions(self.model, *batch, self.temperature, segments)

    def hidden(
        self, input_ids: Tensor, position_ids: Tensor, logit_positions: Tensor, segments: Segments | None = None
    ) -> Tensor:
        """[T, H] the last hidden states from which the tokens are predicted."""
        return self._states(input_ids, position_ids, segments).flatten(0, 1)[logit_positions]

    def _states(self, input_ids: Tensor, position_ids: Tensor, segments: Segments | None) -> Tensor:
        """[B, L, H] the last hidden states."""
        how = segments_for(self.model, segments, input_ids.device)
        offloaded = self.offload_activations and torch.is_grad_enabled()
        with save_on_cpu(pin_memory=input_ids.device.type != "cpu") if offloaded else nullcontext():
            output = self.model.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False, **how)
        return output.last_hidden_state
