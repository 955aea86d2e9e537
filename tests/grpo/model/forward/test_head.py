"""Log-probs from hidden states in chunks, against plain log_softmax."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from grpo.model.forward import head
from grpo.model.forward.head import Kept, add_product_, token_logprobs


@pytest.mark.parametrize("chunk_elements", [1, 7 * 11, 10**6])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("train_entropy", "waiting_elements"),
    [(True, 10**6), (False, 0), (False, 15 * 11), (False, 10**6)],  # with a chunk per token, 0, 15 and 20 wait
)
def test_values_and_gradients_equal_log_softmax(
    chunk_elements: int, temperature: float, train_entropy: bool, waiting_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(head.CHUNK_ELEMENTS, "cpu", chunk_elements)
    monkeypatch.setattr(head, "WAITING_ELEMENTS", waiting_elements)
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(20, 5), torch.randn(11, 5), torch.randn(11)
    targets, upstream = torch.randint(0, 11, (20,)), torch.randn(20)

    def run(function) -> tuple[torch.Tensor, ...]:
        h, w, b = (tensor.clone().requires_grad_() for tensor in (hidden, weight, bias))
        logprobs, entropy = function(h, w, b)
        loss = (logprobs * upstream).sum()
        (loss + (entropy * upstream.flip(0)).sum() if train_entropy else loss).backward()
        return logprobs.detach(), entropy.detach(), h.grad, w.grad, b.grad  # type: ignore[return-value]

    def plain(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        every = torch.log_softmax((h @ w.T + b) / temperature, dim=-1)
        return every.gather(1, targets[:, None])[:, 0], -(every.exp() * every).sum(-1)

    def chunked(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return token_logprobs(h, w, targets, temperature, b, train_entropy=train_entropy)

    for got, expected in zip(run(chunked), run(plain), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_no_tokens_still_join_the_graph() -> None:
    hidden, weight = torch.randn(0, 5, requires_grad=True), torch.randn(11, 5, requires_grad=True)
    logprobs, _ = token_logprobs(hidden, weight, torch.empty(0, dtype=torch.long))
    logprobs.sum().backward()
    assert weight.grad is not None and not weight.grad.any()


def masked_oracle(
    hidden: np.ndarray,
    weight: np.ndarray,
    targets: np.ndarray,
    temperature: float,
    sets: list[list[int]],
    of_entropy: float,
) -> tuple[np.ndarray, ...]:
    """Float64: log-probs and entropies over each token's own set, and the gradients of sum_t u_t (log p_t + c H_t).

    d log p(y) / dz_v = [v = y] - p_v,  dH / dz_v = -p_v (log p_v + H) for v in the set, and 0 for all others.
    """
    logits = hidden @ weight.T / temperature
    logprobs, entropies, gradient = np.zeros(len(targets)), np.zeros(len(targets)), np.zeros_like(logits)
    for t, (kept, target) in enumerate(zip(sets, targets, strict=True)):
        z = logits[t, kept]
        log_p = z - z.max() - np.log(np.exp(z - z.max()).sum())
        p = np.exp(log_p)
        logprobs[t], entropies[t] = log_p[kept.index(target)], -(p * log_p).sum()
        upstream = 0.1 * (t + 1)
        gradient[t, kept] = -upstream * (p + of_entropy * p * (log_p + entropies[t]))
        gradient[t, target] += upstream
    gradient /= temperature
    return logprobs, entropies, gradient @ weight, gradient.T @ hidden


def kept_of(sets: list[list[int]]) -> Kept:
    return Kept(torch.tensor([i for kept in sets for i in kept], dtype=torch.int32), np.cumsum([0, *map(len, sets)]))


@pytest.mark.parametrize("chunk_elements", [1, 7 * 11, 10**6])
@pytest.mark.parametrize(
    ("train_entropy", "waiting_elements"), [(True, 10**6), (False, 0), (False, 15 * 11), (False, 10**6)]
)
def test_over_kept_tokens_values_and_gradients_equal_the_formula(
    chunk_elements: int, train_entropy: bool, waiting_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(head.CHUNK_ELEMENTS, "cpu", chunk_elements)
    monkeypatch.setattr(head, "WAITING_ELEMENTS", waiting_elements)
    rng = np.random.default_rng(0)
    hidden, weight, targets = rng.normal(size=(20, 5)), rng.normal(size=(11, 5)), rng.integers(0, 11, 20)
    others = [rng.permutation(11)[: rng.integers(0, 11)].tolist() for _ in targets]
    sets = [list(dict.fromkeys([*some, int(target)])) for some, target in zip(others, targets, strict=True)]
    assert min(map(len, sets)) == 1 and max(map(len, sets)) >= 10
    h, w = (torch.tensor(array, dtype=torch.float32, requires_grad=True) for array in (hidden, weight))
    kept, of_entropy = kept_of(sets), 0.5 * train_entropy
    logprobs, entropy = token_logprobs(h, w, torch.tensor(targets), 0.7, kept=kept, train_entropy=train_entropy)
    ((logprobs + of_entropy * entropy) * 0.1 * torch.arange(1, 21)).sum().backward()
    expected = masked_oracle(hidden, weight, targets, 0.7, sets, of_entropy)
    for got, value in zip((logprobs, entropy, h.grad, w.grad), expected, strict=True):
        assert got is not None
        np.testing.assert_allclose(got.detach().numpy(), value, rtol=1e-4, atol=1e-5)


def test_a_token_without_an_alternative_has_log_prob_0_and_no_gradient() -> None:
    hidden, weight = torch.randn(3, 5, requires_grad=True), torch.randn(11, 5, requires_grad=True)
    targets = torch.tensor([4, 0, 10])
    logprobs, entropy = token_logprobs(hidden, weight, targets, kept=kept_of([[4], [0], [10]]), train_entropy=True)
    assert logprobs.tolist() == [0, 0, 0] and entropy.tolist() == [0, 0, 0]
    (logprobs + entropy).sum().backward()
    assert hidden.grad is not None and not hidden.grad.any()
    assert weight.grad is not None and not weight.grad.any()


@pytest.mark.parametrize("train_entropy", [False, True])
def test_under_autocast_the_gradient_is_that_of_the_logits_that_the_forward_computed(train_entropy: bool) -> None:
    """backward runs outside autocast, and logits around 30 lose up to 0.06 in bfloat16.

    The expected gradient is autograd's own, of the same bfloat16 product.
    """
    torch.manual_seed(0)
    hidden, weight = 8 * torch.randn(40, 16), torch.randn(11, 16)
    targets, upstream = torch.randint(0, 11, (40,)), torch.randn(40)

    def gradient(function: Any) -> torch.Tensor:
        h = hidden.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            logprobs, entropy = function(h, weight)
            loss = (logprobs * upstream).sum() + (entropy * upstream.flip(0)).sum() * train_entropy
        loss.backward()
        assert h.grad is not None and h.grad.dtype == torch.float32
        return h.grad

    def plain(h: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        every = torch.log_softmax(torch.nn.functional.linear(h, w).float(), dim=-1)
        return every.gather(1, targets[:, None])[:, 0], -(every.exp() * every).sum(-1)

    got = gradient(lambda h, w: token_logprobs(h, w, targets, train_entropy=train_entropy))
    expected = gradient(plain)
    assert float((got - expected).abs().max()) < 0.01 * float(expected.abs().max())  # gradients are rounded to bfloat16


def test_under_autocast_a_token_that_was_the_only_one_kept_has_no_gradient() -> None:
    torch.manual_seed(0)
    hidden, targets = (8 * torch.randn(20, 16)).requires_grad_(), torch.randint(0, 11, (20,))
    with torch.autocast("cpu", torch.bfloat16):
        kept = kept_of([[int(target)] for target in targets])
        logprobs, _ = token_logprobs(hidden, torch.randn(11, 16), targets, kept=kept)
    logprobs.sum().backward()
    assert hidden.grad is not None and not hidden.grad.any() and not logprobs.any()


class Calls(TorchDispatchMode):
    """Records what torch is asked for inside the block: (operator, shape and dtype of every tensor)."""

    def __init__(self, compute: Callable[..., bool] = lambda operator: True) -> None:
        super().__init__()
        self.compute = compute
        self.seen: list[tuple[str, list[tuple[tuple[int, ...], torch.dtype]]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [(tuple(x.shape), x.dtype) for x in args if isinstance(x, torch.Tensor)]
        self.seen.append((str(func).removeprefix("aten."), tensors))
        return func(*args, **(kwargs or {})) if self.compute(func) else args[0]


def test_the_head_is_cast_once_for_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head.CHUNK_ELEMENTS, "cpu", 3 * 11)  # seven chunks
    monkeypatch.setattr(head, "WAITING_ELEMENTS", 0)
    hidden, weight = torch.randn(20, 5, requires_grad=True), torch.randn(11, 5, requires_grad=True)
    with Calls() as calls:
        with torch.autocast("cpu", torch.bfloat16):
            logprobs, _ = token_logprobs(hidden, weight, torch.arange(20) % 11)
        logprobs.sum().backward()
    casts = [
        name for name, tensors in calls.seen if name == "_to_copy.default" and tensors == [((11, 5), torch.float32)]
    ]
    assert len(casts) == 2  # in forward and in backward


@pytest.mark.parametrize(
    ("device", "dtype", "operator", "product_dtype"),
    [
        ("cuda", torch.bfloat16, "addmm.dtype_out", torch.bfloat16),
        ("cuda", torch.float32, "addmm_.default", torch.float32),
        ("cpu", torch.bfloat16, "addmm_.default", torch.float32),
    ],
)
def test_on_a_gpu_the_head_s_gradient_is_multiplied_in_bfloat16_and_summed_in_float32(
    device: str, dtype: torch.dtype, operator: str, product_dtype: torch.dtype
) -> None:
    """Of tensors without memory: there is no GPU here."""
    with FakeTensorMode(), Calls(lambda operator: "addmm" not in str(operator)) as calls:
        total = torch.zeros(11, 5, device=device)
        add_product_(total, torch.zeros(7, 11, device=device, dtype=dtype), torch.zeros(7, 5, device=device), alpha=-1)
    [(name, tensors)] = [call for call in calls.seen if "addmm" in call[0]]
    assert name == operator
    assert tensors == [((11, 5), torch.float32), ((11, 7), product_dtype), ((7, 5), product_dtype)]
