"""Attention with fewer heads of keys than of queries."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from grpo.model.forward.grouped import grouped_attention, lacks_kernel, repeated_attention
from grpo.model.load import prepared
from grpo.recipe.config import ModelConfig

GROUPED: Any = SimpleNamespace(num_key_value_groups=2, is_causal=True)


class Asked(TorchFunctionMode):
    """Records how torch's attention is called inside the block, and computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, bool]] = []  # heads of keys, whether they are grouped

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.calls.append((args[1].shape[1], kwargs.get("enable_gqa", False)))
        return args[0]


@pytest.mark.parametrize(
    ("heads", "device", "dtype", "expected"),
    [
        (2, "cuda", torch.float32, True),  # torch's grouped kernels have no float32
        (4, "cuda", torch.float32, False),
        (2, "cuda", torch.bfloat16, False),
        (2, "cpu", torch.float32, False),
    ],
)
def test_groups_in_float32_have_no_kernel_on_a_gpu(heads: int, device: str, dtype: torch.dtype, expected: bool) -> None:
    """Of tensors without memory: there is no GPU here."""
    with FakeTensorMode():
        query, key = (torch.zeros(1, n, 5, 8, device=device, dtype=dtype) for n in (4, heads))
        assert lacks_kernel(query, key) == expected


@pytest.mark.parametrize(("lacking", "asked"), [(True, (4, False)), (False, (2, True))])
def test_keys_are_repeated_where_there_is_no_kernel(
    lacking: bool, asked: tuple[int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grpo.model.forward.grouped.lacks_kernel", lambda *_: lacking)
    with Asked() as found:
        grouped_attention(GROUPED, torch.zeros(1, 4, 5, 8), torch.zeros(1, 2, 5, 8), torch.zeros(1, 2, 5, 8), None)
    assert found.calls == [asked]


def test_repeated_keys_change_nothing() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    expected = sdpa_attention_forward(GROUPED, query, key, value, None, scaling=0.3)[0]
    torch.testing.assert_close(repeated_attention(GROUPED, query, key, value, None, scaling=0.3)[0], expected)


def test_models_that_are_trained_attend_so(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    config.num_key_value_heads = 1
    model = prepared(LlamaForCausalLM(config), ModelConfig(model_name_or_path="-"))
    asked: list[torch.Size] = []

    def attend(module: Any, query: torch.Tensor, key: torch.Tensor, *rest: Any, **options: Any) -> Any:
        asked.append(key.shape)
        return sdpa_attention_forward(module, query, key, *rest, **options)

    monkeypatch.setattr("grpo.model.forward.grouped.sdpa_attention_forward", attend)
    model(input_ids=torch.arange(3)[None])
    assert asked == [(1, 1, 3, 4)]
