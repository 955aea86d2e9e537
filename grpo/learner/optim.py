"""AdamW for every stage: what decays and what does not is decided here."""

import torch
from torch import nn

from grpo.recipe.config import AdamWConfig


def adamw(model: nn.Module, config: AdamWConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only: norms, biases and embeddings do not overfit."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trained if p.ndim > 1 and "embed" not in name]
    others = [p for name, p in trained if p.ndim <= 1 or "embed" in name]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )
