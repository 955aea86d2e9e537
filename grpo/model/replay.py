"""Routing replay: a mixture of experts computes with the experts that an earlier forward over the same tokens took.

Only the choice of experts I is replayed. Their weights come from the router's present scores s, so the gradient still
reaches the router; balance bias and groups, which only choose, are passed over:

    w_i = s_i / (sum_{j in I} s_j + 1e-20) * scale,   s = sigmoid(logits)   (DeepSeek-V3, 2412.19437, eq. 13-15)

and as their own block does it for routers with a softmax or without the division. The routes are those of the trainer
before a rollout's first update (R2), or those of the engine that sampled (R3, 2510.11370); 2512.01374 compares the two.

Left out: experts spread over processes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grpo.model.checks import without_flash
from grpo.model.moe import moe_layers
from grpo.model.sharding import computing
from grpo.recipe.errors import RunError

# (layer, logits [N, E], indices [N, k], weights [N, k]) -> the indices and weights that the experts get
Change = Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class RoutesError(RunError, ValueError):
    """Routes that no forward of the model can have taken."""


@dataclass(frozen=True, slots=True)
class RouterRule:
    """How a router turns the scores of the experts it takes into their weights."""

    sigmoid: bool  # else a softmax over all experts
    normalized: bool  # divided by the sum over the experts taken
    scale: float

    def weights(self, logits: Tensor, indices: Tensor) -> Tensor:
        """[N, k] weights of the experts `indices` [N, k] under logits [N, E], in the operations of the block itself."""
        scores = logits.sigmoid() if self.sigmoid else logits.softmax(-1, dtype=torch.float32)
        taken = scores.gather(-1, indices)
        if self.normalized:
            taken = (taken / (taken.sum(-1, keepdim=True) + 1e-20)).to(taken.dtype)
        return taken * self.scale


@dataclass
class Replayed:
    """What a replay changed in the latest forward."""

    num_tokens: int = 0  # that had routes
    changed: list[Tensor] = field(default_factory=list)  # of each layer: tokens whose router would choose other experts


class RoutingReplay:
    """Replays routes in one model, whole or sharded, with or without adapters.

    Raises:
        ValueError: the model has no mixture of experts, or its routers follow no known rule.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        layers = moe_layers(model)
        if not layers:
            raise ValueError(
                f"algorithm.routing_replay: {model.config.name_or_path} ({model.config.model_type}) has no mixture of "
                "experts with a `gate` and `experts`, so there are no routes. Set algorithm.routing_replay=none."
            )
        self.model = model
        self.layer_names = list(layers)
        self.rule, self.num_experts, self.top_k = _learn(model)

    @contextmanager
    def __call__(self, routes: Tensor | None) -> Iterator[Replayed]:
        """Forwards inside the block take these routes; their backward passes must happen inside it too.

        Gradient checkpointing runs layers again, in any order: each finds its routes by its place in the model.

        routes: [..., layers, k] of as many tokens as the forward has; a token with -1 is routed by the model.
            None: all are.
        """
        replayed = Replayed()
        if routes is None:
            yield replayed
            return
        routes = routes.flatten(0, -3)  # [N, layers, k]
        replayed.num_tokens = int((routes[:, 0, 0] >= 0).sum())
        replayed.changed = [torch.zeros(())] * len(self.layer_names)

        def change(layer: int, logits: Tensor, indices: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
            recorded = routes[:, layer]
            chosen = torch.where(recorded >= 0, recorded, indices)
            replayed.changed[layer] = (chosen.sort(-1).values != indices.sort(-1).values).any(-1).sum()
            return chosen, self.rule.weights(logits, chosen).to(weights.dtype)

        with _intercepted(self.model, change):
            yield replayed

    def check(self, routes: np.ndarray, *, sample: str, num_tokens: int) -> None:
        """Raise RoutesError unless these are routes [R, layers, k], R < num_tokens, with k different experts each."""
        rows, *shape = routes.shape
        if shape != [len(self.layer_names), self.top_k] or rows >= num_tokens:
            raise RoutesError(
                f"{sample}: routes of shape {list(routes.shape)}, and its {num_tokens} tokens have at most "
                f"{[num_tokens - 1, len(self.layer_names), self.top_k]} (tokens before the last, layers with experts, "
                "experts per token). The engine runs another model than the trainer, or another version of it."
            )
        wrong = (routes < 0).any(-1) | (routes >= self.num_experts).any(-1)  # [R, layers]
        for i in range(1, self.top_k):
            wrong |= (routes[..., i:] == routes[..., :-i]).any(-1)
        if wrong.any():
            token, layer = np.argwhere(wrong)[0]
            raise RoutesError(
                f"{sample}: token {num_tokens - 1 - rows + token} went to experts {routes[token, layer].tolist()} in "
                f"{self.layer_names[layer]}, which are not {self.top_k} different ones below {self.num_experts}: the "
                "engine did not record its routes. Use another version of it, or set algorithm.routing_replay=R2."
            )


@contextmanager
def _intercepted(model: nn.Module, change: Change) -> Iterator[None]:
    """Put a function between every router and its experts.

    The logits are the router's first or only output: what else it returns differs between versions of transformers.
    """
    handles = []
    for layer, block in enumerate(moe_layers(model).values()):
        latest: list[Tensor] = []

        def keep_logits(_module: nn.Module, _args: Any, output: Any, latest: list[Tensor] = latest) -> None:
            logits = output[0] if isinstance(output, tuple) else output
            latest[:] = [logits.flatten(0, -2)]

        def exchange(
            _module: nn.Module,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            layer: int = layer,
            latest: list[Tensor] = latest,
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            given = dict(zip(("hidden_states", "top_k_index", "top_k_weights"), args, strict=False)) | kwargs
            indices, weights = change(layer, latest.pop(), given["top_k_index"], given["top_k_weights"])
            given |= {"top_k_index": indices, "top_k_weights": weights}
            return tuple(given.values())[: len(args)], {name: given[name] for name in kwargs}

        handles.append(block.gate.register_forward_hook(keep_logits))
        # First, so that whatever else watches the experts sees what they compute with.
        handles.append(block.experts.register_forward_pre_hook(exchange, with_kwargs=True, prepend=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _learn(model: PreTrainedModel) -> tuple[RouterRule, int, int]:
    """The rule that gives the weights of the model's own routers, on a few tokens; number of experts, and per token."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def watch(_layer: int, logits: Tensor, indices: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((logits, indices, weights))
        return indices, weights

    embedding: Any = model.get_input_embeddings()
    tokens = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(0)).to(model.device)
    with without_flash(model), computing(model), _intercepted(model, watch):
        model.base_model(input_ids=tokens % embedding.weight.shape[0], use_cache=False)
    has_bias = all(hasattr(block.gate, "e_score_correction_bias") for block in moe_layers(model).values())
    scales = dict.fromkeys([getattr(model.config.get_text_config(), "routed_scaling_factor", None) or 1.0, 1.0])
    for sigmoid, normalized, scale in product((has_bias, not has_bias), (True, False), scales):
        rule = RouterRule(sigmoid, normalized, scale)
        if all(torch.allclose(rule.weights(logits, indices), weights) for logits, indices, weights in seen):
            return rule, seen[0][0].shape[-1], seen[0][1].shape[-1]
    raise ValueError(
        f"algorithm.routing_replay: the routers of {model.config.name_or_path} ({model.config.model_type}) weigh their "
        "experts neither by sigmoid nor by softmax of their logits, so weights of other experts are not known. Set "
        "algorithm.routing_replay=none."
    )
