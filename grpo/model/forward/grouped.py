"""Grouped-query attention in float32 on a GPU: torch's fused kernels take groups in half precision only.

With groups and float32 it falls back to products that hold every query's scores of every key.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from grpo.model.forward.head import computing_dtype


def keep_attention_fused() -> None:
    """Have transformers' `sdpa` repeat keys and values in such a case, in this process."""
    AttentionInterface.register("sdpa", grouped_attention)


def grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Heads [B, H, L, d], and [B, K, L, d] of keys and values, to [B, L, H, d], as transformers' sdpa."""
    attend = repeated_attention if lacks_kernel(query, key) else sdpa_attention_forward
    return attend(module, query, key, value, attention_mask, **options)


def lacks_kernel(query: Tensor, key: Tensor) -> bool:
    """Whether torch has no fused kernel for these heads unless keys and values are repeated."""
    is_grouped = query.shape[1] > key.shape[1]
    return is_grouped and query.device.type == "cuda" and computing_dtype(query) == torch.float32


def repeated_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The same with a key and a value for every query's head."""
    groups = query.shape[1] // key.shape[1]
    alone: Any = SimpleNamespace(is_causal=getattr(module, "is_causal", True))  # its groups would be asked for again
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    return sdpa_attention_forward(alone, query, key, value, attention_mask, **options)
