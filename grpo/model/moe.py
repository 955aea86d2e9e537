"""Mixtures of experts, seen from outside the model: routes, loads, balancing.

Works on any transformers model whose MoE blocks own a `gate` (router) and `experts` called with (hidden_states,
top_k_index, top_k_weights): DeepSeek-V2 to V4, Qwen-MoE, Mixtral and their relatives. Left out: expert parallelism,
token dropping.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# From a router's logits [N, E] to the scores of the experts, of which it takes the best and weighs them.
SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,  # DeepSeek-V3
    "softmax": lambda logits: logits.softmax(-1),  # DeepSeek-V2, Qwen-MoE, Mixtral
    "sqrtsoftplus": lambda logits: nn.functional.softplus(logits).sqrt(),  # DeepSeek-V4
}
SCORE_TOLERANCE = 1e-2  # of an expert's share of a token; wide enough for routers in bfloat16


@dataclass
class Routes:
    """What the routers of the latest forward decided, per MoE layer in order; N = batch x length tokens.

    One layer, top-2 of 4 experts, two tokens:
    Routes(
        indices=[tensor([[3, 1], [0, 2]])],
        logits=[tensor([[-1.4, .4, -2.2, 2.2], [.8, -.8, 1.4, -1.4]])],
        weights=[tensor([[.6, .4], [.5, .5]])],
    )
    """

    indices: list[Tensor] = field(default_factory=list)  # each [N, k], the experts taken, in no particular order
    logits: list[Tensor] = field(default_factory=list)  # each [N, E], the router's, float32 with gradient
    weights: list[Tensor] = field(default_factory=list)  # each [N, k], what the experts' outputs are multiplied with

    @property
    def scores(self) -> list[Tensor]:
        """Each [N, E] with gradient: what the model's own router makes of its logits. Raises as `router_scores`."""
        layers = zip(self.logits, self.indices, self.weights, strict=True)
        return [router_scores(logits, indices, weights) for logits, indices, weights in layers]

    def counts(self, mask: Tensor | None = None) -> Tensor:  # [layers, E]
        """How many tokens each expert received. mask: N numbers in any shape, how often a token counts; None: once."""
        return torch.stack([_count(i, z.shape[-1], mask) for i, z in zip(self.indices, self.logits, strict=True)])

    def compact(self) -> np.ndarray:  # [N, layers, k]
        """The experts taken, in one byte each where there are at most 256."""
        small = self.logits[0].shape[-1] <= 256
        return torch.stack(self.indices, 1).to(torch.uint8 if small else torch.int16).cpu().numpy()

    def differ(self, other: "Routes") -> Tensor:  # [layers, N] bool
        """Where two forwards over the same tokens sent a token to different sets of experts (a flip at a near-tie)."""
        pairs = zip(self.indices, other.indices, strict=True)
        return torch.stack([(a.sort(-1).values != b.sort(-1).values).any(-1) for a, b in pairs])


def moe_layers(model: nn.Module) -> dict[str, Any]:
    """Name -> MoE block, in the order of the layers; empty for a dense model.

    A multi-token prediction is a model of its own: the trunk's forward does not run its experts.
    """
    apart = tuple(f"{name}." for name, module in model.named_modules() if name and hasattr(module, "eh_proj"))
    blocks = {name: m for name, m in model.named_modules() if hasattr(m, "gate") and hasattr(m, "experts")}
    return {name: block for name, block in blocks.items() if not name.startswith(apart)}


def has_balance_bias(model: nn.Module) -> bool:
    """Whether every router has DeepSeek-V3's balance bias; False for a dense model."""
    blocks = moe_layers(model).values()
    return bool(blocks) and all(hasattr(block.gate, "e_score_correction_bias") for block in blocks)


@cache  # which also keeps the library: what it registers ends with it
def cast_grouped_products() -> torch.library.Library:
    """Have autocast cast the experts' grouped matrix products as it casts all others, in this process.

    torch 2.13 leaves them out (pytorch/pytorch#174763), and experts with float32 weights would compute in float32.
    """
    library = torch.library.Library("aten", "IMPL")
    for device in ("cpu", "cuda"):
        key = f"Autocast{device.upper()}"
        if not torch._C._dispatch_has_kernel_for_dispatch_key("aten::_grouped_mm", key):
            library.impl("_grouped_mm", _cast_product(device, key), key)
    return library


def _cast_product(device: str, key: str) -> Callable[..., Tensor]:
    autocast = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def product(
        left: Tensor,
        right: Tensor,
        offs: Tensor | None = None,
        bias: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        dtype = torch.get_autocast_dtype(device)
        with torch._C._ExcludeDispatchKeyGuard(autocast):
            return torch.ops.aten._grouped_mm(left.to(dtype), right.to(dtype), offs, bias, out_dtype)

    return product


@contextmanager
def record_routes(model: nn.Module) -> Iterator[Routes]:
    """Record the routes of each forward inside the block; every forward replaces the ones before.

    Hooks sit on the arguments of `experts`, since what the router itself returns changed between transformers 5.17 and
    5.19.
    A layer that gradient checkpointing runs again in backward takes the same routes. Nothing of it is kept: the logits'
    graph would hold all that the layer computes again until the last backward of the block.
    """
    routes, handles = Routes(), []
    for layer, block in enumerate(moe_layers(model).values()):
        for kept in (routes.indices, routes.logits, routes.weights):
            kept.append(torch.empty(0))

        def keep_logits(_module: nn.Module, _args: Any, output: Any, layer: int = layer) -> None:
            if _in_backward():
                return
            logits = output[0] if isinstance(output, tuple) else output
            routes.logits[layer] = logits.flatten(0, -2).float()

        def keep_indices(_module: nn.Module, args: Any, kwargs: dict[str, Any], layer: int = layer) -> None:
            if _in_backward():
                return
            routes.indices[layer] = (kwargs["top_k_index"] if "top_k_index" in kwargs else args[1]).detach()
            routes.weights[layer] = (kwargs["top_k_weights"] if "top_k_weights" in kwargs else args[2]).detach()

        handles.append(block.gate.register_forward_hook(keep_logits))
        handles.append(block.experts.register_forward_pre_hook(keep_indices, with_kwargs=True))
    try:
        yield routes
    finally:
        for handle in handles:
            handle.remove()


def _in_backward() -> bool:
    """Whether autograd is running here: a forward then is gradient checkpointing's."""
    return torch._C._current_graph_task_id() != -1


def router_scores(logits: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """The scores s [N, E] by which a router with these logits [N, E] weighs the experts it takes [N, k].

    A router does not say which function of its logits it uses, but its weights [N, k] do: whether or not they are
    divided by their sum, and whatever their scale, a token's are in the proportion of its scores.

    Raises:
        ValueError: they are in the proportion of no function in SCORES, or k is 1, where there is no proportion.
    """
    if indices.shape[-1] == 1:
        raise ValueError("with one expert per token, a router's weights do not tell its scores.")
    theirs = _shares(weights.float())
    errors = {
        name: (_shares(score(logits.detach()).gather(-1, indices)) - theirs).abs().mean().item()
        for name, score in SCORES.items()
    }
    name = min(errors, key=lambda name: errors[name])
    if not errors[name] <= SCORE_TOLERANCE:
        raise ValueError(f"its routers weigh experts by neither of {', '.join(SCORES)} of their logits.")
    return SCORES[name](logits)


def _shares(values: Tensor) -> Tensor:
    return values / values.sum(-1, keepdim=True)


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


def sequence_balance_loss(scores: Tensor, top_k: int, sequences: Tensor, alpha: float = 1e-4) -> Tensor:
    """V3's complementary balance loss of one layer (2412.19437, eq. 17-20), of each of the S sequences: [S]

        L = alpha sum_i f_i P_i,  f_i = E / (k T) sum_t 1(s_it among t's k largest),  P_i = 1/T sum_t s_it / sum_j s_jt

    The k largest scores are the experts taken where neither bias nor expert groups nor a replay choose others. With
    softmax scores this is V2's expert-level loss (2405.04434, eq. 23-25).

    scores: [N, E] the router's, with gradient; sequences: [N] which of the S a token belongs to, -1 for padding, which
    counts nowhere. Equals alpha when the load is even.
    """
    numbers = torch.arange(int(sequences.max()) + 1, device=scores.device)
    member = (sequences == numbers[:, None]).to(scores.dtype)  # [S, N]
    length = member.sum(-1, keepdim=True).clamp_min(1)  # [S, 1]
    largest = torch.zeros_like(scores).scatter(-1, scores.topk(top_k).indices, 1.0)
    f = member @ largest * scores.shape[-1] / (top_k * length)  # [S, E]
    p = member @ _shares(scores) / length  # [S, E]
    return alpha * (f * p).sum(-1)


def _count(indices: Tensor, experts: int, mask: Tensor | None) -> Tensor:
    times = torch.ones_like(indices) if mask is None else mask.reshape(-1, 1).to(indices.dtype).expand_as(indices)
    return torch.zeros(experts, dtype=indices.dtype, device=indices.device).scatter_add(
        0, indices.flatten(), times.flatten()
    )
