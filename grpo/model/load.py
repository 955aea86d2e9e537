"""Loading a causal language model as a policy, and seeing it as a function from tokens to log-probs."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from grpo.model.head import token_logprobs
from grpo.model.moe import moe_layers
from grpo.recipe.config import ModelConfig


def load_model(config: ModelConfig, path: str | Path | None = None) -> PreTrainedModel:
    """A causal language model with float log-probs that `token_logprobs` can compute.

    path: a folder whose weights replace those of `config`, such as a checkpoint.
    """
    model = AutoModelForCausalLM.from_pretrained(
        path or config.model_name_or_path,
        revision=None if path else config.revision,
        dtype=getattr(torch, config.dtype),
        attn_implementation=config.attn_implementation,
        trust_remote_code=config.trust_remote_code,
    )
    if moe_layers(model):
        model.set_experts_implementation(config.experts_implementation)
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(model.config, name, None) not in (None, 1.0):
            raise ValueError(
                f"{config.model_name_or_path} sets {name}={getattr(model.config, name)}: the policy computes log-probs "
                "from a plain linear head. Choose a model without it."
            )
    return model


class CompletionLogProbs(nn.Module):
    """A causal language model as a function from token rows to log-probs of the sampled tokens.

    One module with one forward, so that DDP sees the whole computation.
    """

    def __init__(self, model: PreTrainedModel, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, input_ids: Tensor, position_ids: Tensor, logit_positions: Tensor, targets: Tensor) -> tuple:
        """logprobs [T] with gradient and entropy [T]; see `MicroBatch` for the shapes."""
        hidden = self.model.base_model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False
        ).last_hidden_state.flatten(0, 1)
        head: Any = self.model.get_output_embeddings()
        return token_logprobs(hidden[logit_positions], head.weight, targets, self.temperature)
