"""AdamW for every stage: what decays and what does not is decided here."""

import torch
from torch import Tensor, nn

from grpo.recipe.optimizer import AdamWConfig


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


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """AdamW's state by the names of the parameters; where it took no step yet, it is made here, as it would be."""
    state = optimizer.state
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        if not state[parameter]:
            state[parameter] |= {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return {name: state[parameter] for name, parameter in trained.items()}
