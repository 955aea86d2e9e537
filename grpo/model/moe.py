"""DeepSeek-V3's mixture of experts, seen from outside the model: routes, loads, balancing.

Works on any transformers model whose MoE blocks own a `gate` (router) and `experts` called with (hidden_states,
top_k_index, top_k_weights): DeepSeek-V3 and its relatives. Left out: expert parallelism, token dropping, softmax
routers in `sequence_balance_loss`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass
class Routes:
    """What the routers of the latest forward decided, per MoE layer in order; N = batch x length tokens.

    One layer, top-2 of 4 experts, two tokens:
    Routes(indices=[tensor([[3, 1], [0, 2]])], scores=[tensor([[.2, .6, .1, .9], [.7, .3, .8, .2]])])
    """

    indices: list[Tensor] = field(default_factory=list)  # each [N, k], the experts taken, in no particular order
    scores: list[Tensor] = field(default_factory=list)  # each [N, E], sigmoid of the router's logits, with gradient

    def counts(self, mask: Tensor | None = None) -> Tensor:  # [layers, E]
        """How many tokens each expert received. mask: N elements in any shape, 1 for tokens that count; None: all."""
        return torch.stack([_count(i, s.shape[-1], mask) for i, s in zip(self.indices, self.scores, strict=True)])

    def compact(self) -> np.ndarray:  # [N, layers, k]
        """The experts taken, in one byte each where there are at most 256."""
        small = self.scores[0].shape[-1] <= 256
        return torch.stack(self.indices, 1).to(torch.uint8 if small else torch.int16).cpu().numpy()

    def differ(self, other: "Routes") -> Tensor:  # [layers, N] bool
        """Where two forwards over the same tokens sent a token to different sets of experts (a flip at a near-tie)."""
        pairs = zip(self.indices, other.indices, strict=True)
        return torch.stack([(a.sort(-1).values != b.sort(-1).values).any(-1) for a, b in pairs])


def moe_layers(model: nn.Module) -> dict[str, Any]:
    """Name -> MoE block, in the order of the layers; empty for a dense model."""
    return {name: m for name, m in model.named_modules() if hasattr(m, "gate") and hasattr(m, "experts")}


def has_balance_bias(model: nn.Module) -> bool:
    """Whether every router has DeepSeek-V3's balance bias; False for a dense model."""
    blocks = moe_layers(model).values()
    return bool(blocks) and all(hasattr(block.gate, "e_score_correction_bias") for block in blocks)


@contextmanager
def record_routes(model: nn.Module) -> Iterator[Routes]:
    """Record the routes of each forward inside the block; every forward replaces the ones before.

    Hooks sit on the arguments of `experts`, since what the router itself returns changed between transformers 5.17 and
    5.19.
    A layer run again by gradient checkpointing writes the same routes into the same place.
    """
    routes, handles = Routes(), []
    for layer, block in enumerate(moe_layers(model).values()):
        routes.indices.append(torch.empty(0))
        routes.scores.append(torch.empty(0))

        def keep_scores(_module: nn.Module, _args: Any, output: Any, layer: int = layer) -> None:
            logits = output[0] if isinstance(output, tuple) else output
            routes.scores[layer] = logits.flatten(0, -2).float().sigmoid()

        def keep_indices(_module: nn.Module, args: Any, kwargs: dict[str, Any], layer: int = layer) -> None:
            routes.indices[layer] = (kwargs["top_k_index"] if "top_k_index" in kwargs else args[1]).detach()

        handles.append(block.gate.register_forward_hook(keep_scores))
        handles.append(block.experts.register_forward_pre_hook(keep_indices, with_kwargs=True))
    try:
        yield routes
    finally:
        for handle in handles:
            handle.remove()


def load_metrics(counts: Tensor) -> dict[str, float]:
    """Of loads [layers, E]: MaxVio = max / mean - 1 (2408.15664), mean over layers, and experts without a token."""
    counts = counts.float()
    violation = counts.amax(-1) / counts.mean(-1).clamp_min(1e-9) - 1
    return {"moe/load_max_violation": violation.mean().item(), "moe/dead_experts": float((counts == 0).sum().item())}


@torch.no_grad()
def update_balance_bias(model: nn.Module, counts: Tensor, gamma: float) -> None:
    """Auxiliary-loss-free balancing (2408.15664; V3, 2412.19437): b_i += gamma * sign(mean load - load_i).

    counts: loads [layers, E] of the whole batch, summed over processes by the caller. The bias only selects experts and
    has no gradient, so this stands outside autograd and before the optimizer step.
    """
    counts = counts.float()
    steps = gamma * torch.sign(counts.mean(-1, keepdim=True) - counts)
    for block, step in zip(moe_layers(model).values(), steps, strict=True):
        bias = block.gate.e_score_correction_bias
        bias += step.to(bias)


def sequence_balance_loss(scores: Tensor, indices: Tensor, mask: Tensor, alpha: float = 1e-4) -> Tensor:
    """V3's complementary balance loss of one layer (2412.19437, eq. 17-20), mean over the sequences:

        L = alpha sum_i f_i P_i,  f_i = E / (k T) sum_t 1(token t takes expert i),  P_i = 1/T sum_t s_it / sum_j s_jt

    scores: [B, T, E] sigmoid scores with gradient; indices: [B, T, k]; mask: [B, T], 0 for padding, which counts
    nowhere. Equals alpha when the load is even.
    """
    mask = mask.to(scores.dtype)[..., None]  # [B, T, 1]
    length = mask.sum(1).clamp_min(1)  # [B, 1]
    experts, top_k = scores.shape[-1], indices.shape[-1]
    taken = torch.zeros_like(scores).scatter(-1, indices, 1.0)
    f = (taken * mask).sum(1) * experts / (top_k * length)  # [B, E]
    p = (scores / scores.sum(-1, keepdim=True) * mask).sum(1) / length  # [B, E]
    return alpha * (f * p).sum(-1).mean()


def _count(indices: Tensor, experts: int, mask: Tensor | None) -> Tensor:
    if mask is not None:
        indices = indices[mask.flatten().bool()]
    return torch.bincount(indices.flatten(), minlength=experts)
