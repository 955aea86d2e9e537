"""Log-probs from hidden states in chunks, against plain log_softmax."""

import pytest
import torch

from grpo.model import head
from grpo.model.head import token_logprobs


@pytest.mark.parametrize("chunk_elements", [1, 7 * 11, 10**6])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("train_entropy", [False, True])
def test_values_and_gradients_equal_log_softmax(
    chunk_elements: int, temperature: float, train_entropy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(head.CHUNK_ELEMENTS, "cpu", chunk_elements)
    torch.manual_seed(0)
    hidden, weight = torch.randn(20, 5), torch.randn(11, 5)
    targets, upstream = torch.randint(0, 11, (20,)), torch.randn(20)

    def run(function) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        logprobs, entropy = function(h, w)
        loss = (logprobs * upstream).sum()
        (loss + (entropy * upstream.flip(0)).sum() if train_entropy else loss).backward()
        return logprobs.detach(), entropy.detach(), h.grad, w.grad  # type: ignore[return-value]

    def plain(h: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        every = torch.log_softmax(h @ w.T / temperature, dim=-1)
        return every.gather(1, targets[:, None])[:, 0], -(every.exp() * every).sum(-1)

    def chunked(h: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return token_logprobs(h, w, targets, temperature, train_entropy=train_entropy)

    for got, expected in zip(run(chunked), run(plain), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_no_tokens_still_join_the_graph() -> None:
    hidden, weight = torch.randn(0, 5, requires_grad=True), torch.randn(11, 5, requires_grad=True)
    logprobs, _ = token_logprobs(hidden, weight, torch.empty(0, dtype=torch.long))
    logprobs.sum().backward()
    assert weight.grad is not None and not weight.grad.any()
