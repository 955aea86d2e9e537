"""Log-probs of chosen tokens straight from hidden states: full-vocabulary logits of a batch never exist.

The language-model head runs in chunks of tokens. Only the log-normaliser of each token is kept; the backward pass
computes the chunk's logits again, one matrix product more, and turns them into the gradient in place.
"""

from typing import Any

import torch
from torch import Tensor

# Logits alive at once. On CPU a chunk should stay in cache, on a GPU it should fill the machine.
CHUNK_ELEMENTS = {"cpu": 2**21, "cuda": 2**27}


def head_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight.to(hidden.dtype), bias).float()
    return logits if temperature == 1.0 else logits.div_(temperature)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk: int,
        train_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        bias = None if bias is None else bias.to(hidden.dtype)
        normaliser = hidden.new_empty(len(targets), dtype=torch.float32)
        logprobs, entropy = torch.empty_like(normaliser), torch.empty_like(normaliser)
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            logits = head_logits(hidden[part], weight, bias, temperature)
            normaliser[part] = logits.logsumexp(-1)
            logits.sub_(normaliser[part, None])
            logprobs[part] = logits.gather(-1, targets[part, None])[:, 0]
            entropy[part] = -torch.linalg.vecdot(logits.exp(), logits)
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser, entropy if train_entropy else None)
        ctx.temperature, ctx.chunk = temperature, chunk
        if not train_entropy:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None, None, None]:
        hidden, weight, bias, targets, normaliser, entropy = ctx.saved_tensors
        upstream, of_entropy = (gradient / ctx.temperature for gradient in gradients)
        grad_hidden = torch.empty_like(hidden)
        # A frozen head, as under adapters, needs none.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        for start in range(0, len(targets), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            # d log p(target) / d logits = onehot(target) - p,   d entropy / d logits = -p (log p + entropy)
            log_p = head_logits(hidden[part], weight, bias, ctx.temperature).sub_(normaliser[part, None])
            if entropy is None:
                scaled = log_p.exp_().mul_(-upstream[part, None])
            else:
                factor = (log_p + entropy[part, None]).mul_(of_entropy[part, None]).add_(upstream[part, None])
                scaled = log_p.exp_().mul_(factor.neg_())
            scaled.scatter_add_(1, targets[part, None], upstream[part, None])
            if grad_bias is not None:
                grad_bias += scaled.sum(0)
            scaled = scaled.to(hidden.dtype)
            grad_hidden[part] = scaled @ weight.to(hidden.dtype)
            if grad_weight is not None:
                grad_weight.addmm_(scaled.T.float(), hidden[part].float())
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    *,
    train_entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probs of `targets` under softmax((hidden @ weight.T + bias) / temperature), and that distribution's entropy.

    Args:
        hidden: [T, H]. weight: [V, H] and bias: [V], the head's. targets: [T] token ids.
        train_entropy: the entropy has a gradient too, for one more chunk of logits in memory.

    Returns:
        logprobs [T], float32, differentiable in hidden, weight and bias; entropy [T], float32, in nats.
    """
    chunk = max(1, CHUNK_ELEMENTS.get(hidden.device.type, 2**27) // weight.shape[0])
    return _TokenLogProbs.apply(hidden, weight, bias, targets, temperature, chunk, train_entropy)  # type: ignore[return-value]
