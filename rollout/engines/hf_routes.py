"""Which experts a transformers MoE model routes tokens to, recorded while it generates."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class RecordedRoutes:
    """The routes of consecutive forwards over one batch, the first over the prompts, the others over a token each."""

    def __init__(self) -> None:
        self._layers: list[list[Tensor]] = []  # of each MoE layer, of each forward: [B * length, k]

    def rows(self, batch_size: int) -> np.ndarray:
        """[B, tokens, layers, k], one byte each if they fit."""
        layers = [torch.cat([part.view(batch_size, -1, part.shape[-1]) for part in parts], 1) for parts in self._layers]
        routes = torch.stack(layers, 2).cpu().numpy()
        return routes.astype(np.uint8 if routes.max() < 256 else np.uint16)


@contextmanager
def recorded_routes(model: nn.Module) -> Iterator[RecordedRoutes]:
    """Record the experts that every forward inside the block calls, in the order of the MoE layers."""
    recorded, handles = RecordedRoutes(), []
    for module in model.modules():
        if not (hasattr(module, "gate") and hasattr(module, "experts")):
            continue
        recorded._layers.append([])

        def keep(
            _module: nn.Module, args: Any, kwargs: dict[str, Any], parts: list[Tensor] = recorded._layers[-1]
        ) -> None:
            parts.append((kwargs["top_k_index"] if "top_k_index" in kwargs else args[1]).to(torch.int16))

        experts: Any = module.experts
        handles.append(experts.register_forward_pre_hook(keep, with_kwargs=True))
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
