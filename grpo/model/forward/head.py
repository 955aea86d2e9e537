"""Log-probs of chosen tokens straight from hidden states: full-vocabulary logits of a batch never exist.

The language-model head runs in chunks of tokens. The probabilities of the first chunks wait for the backward pass, as
many as WAITING_ELEMENTS allows; of the others only each token's log-normaliser is kept, and the backward pass computes
the logits again, one matrix product more. Both become the gradient in place.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Logits alive at once. On CPU a chunk should stay in cache, on a GPU it should fill the machine.
CHUNK_ELEMENTS = {"cpu": 2**21, "cuda": 2**27}
WAITING_ELEMENTS = 2**24  # probabilities that wait for the backward pass, 64 MiB, instead of being computed again
LEFT_OUT = -1e30  # the logit of a token that the sampler left out: finite, so that times a probability of 0 it is 0


@dataclass(frozen=True, eq=False, slots=True)
class Kept:
    """The tokens that the sampler kept: token t was drawn from ids[offsets[t] : offsets[t + 1]]."""

    ids: Tensor  # [K] int32
    offsets: np.ndarray  # [T + 1] int64, in host memory

    def to(self, device: torch.device, non_blocking: bool = False) -> "Kept":
        return Kept(self.ids.to(device, non_blocking=non_blocking), self.offsets)

    def apply_(self, logits: Tensor, start: int) -> Tensor:
        """Leave all others out of the logits [C, V] of tokens start, start + 1, …"""
        offsets = self.offsets[start : start + len(logits) + 1]
        rows = torch.from_numpy(np.repeat(np.arange(len(logits)), np.diff(offsets))).to(logits.device)
        left_out = torch.ones_like(logits, dtype=torch.bool)
        left_out[rows, self.ids[offsets[0] : offsets[-1]].long()] = False
        return logits.masked_fill_(left_out, LEFT_OUT)


def computing_dtype(hidden: Tensor) -> torch.dtype:
    """What a head computes in here: under autocast, which is on in a forward and off in its backward, autocast's."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def head_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """Logits in float32, computed in the weight's dtype."""
    bias = None if bias is None else bias.to(weight.dtype)
    logits = torch.nn.functional.linear(hidden.to(weight.dtype), weight, bias).float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def add_product_(total: Tensor, left: Tensor, right: Tensor, alpha: float = 1.0) -> None:
    """total [V, H] += alpha left.T @ right, summed in float32, of left [C, V] and right [C, H].

    On a GPU in the precision of `left`: float32 products, which a CPU computes, would do without tensor cores.
    """
    if total.is_cuda and left.dtype != torch.float32:
        torch.addmm(total, left.T, right.to(left.dtype), out_dtype=torch.float32, alpha=alpha, out=total)
    else:
        total.addmm_(left.T.float(), right.float(), alpha=alpha)


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
        waiting: int,
        train_entropy: bool,
        kept: Kept | None,
    ) -> tuple[Tensor, Tensor]:
        dtype = computing_dtype(hidden)
        computing = weight.to(dtype)  # once, not in every chunk
        normaliser = hidden.new_empty(len(targets), dtype=torch.float32)
        logprobs, entropy = torch.empty_like(normaliser), torch.empty_like(normaliser)
        ctx.unnormalised = {}
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            logits = head_logits(hidden[part], computing, bias, temperature)
            if kept is not None:
                kept.apply_(logits, start)
            most = logits.amax(-1)
            logits.sub_(most[:, None])
            p = logits.exp()
            total = p.sum(-1)
            log_total = total.log()
            normaliser[part] = most + log_total
            logprobs[part] = logits.gather(-1, targets[part, None])[:, 0] - log_total
            entropy[part] = log_total - logits.mul_(p).sum(-1) / total
            if (start + len(p)) * len(weight) <= waiting:
                ctx.unnormalised[start] = p, total
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser, entropy if train_entropy else None)
        ctx.temperature, ctx.chunk, ctx.kept, ctx.dtype = temperature, chunk, kept, dtype
        if not train_entropy:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normaliser, entropy = ctx.saved_tensors
        computing = weight.to(ctx.dtype)
        upstream, of_entropy = (gradient / ctx.temperature for gradient in gradients)
        grad_hidden = torch.empty_like(hidden)
        # A frozen head, as under adapters, needs none.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        for start in range(0, len(targets), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            # d log p(target) / d logits = onehot(target) - p,   d entropy / d logits = -p (log p + entropy)
            # Each token's factor, usually its upstream gradient, goes to its hidden state, which is narrower.
            factor = upstream[part]
            if start in ctx.unnormalised:
                p, total = ctx.unnormalised.pop(start)
                factor, onehot = factor / total, total
            else:
                # In the forward's precision: less its normaliser, other logits would not be log-probs.
                log_p = head_logits(hidden[part], computing, bias, ctx.temperature)
                if ctx.kept is not None:
                    ctx.kept.apply_(log_p, start)
                log_p.sub_(normaliser[part, None])
                if entropy is None:
                    p, onehot = log_p.exp_(), torch.ones_like(factor)
                else:
                    of_logits = (log_p + entropy[part, None]).mul_(of_entropy[part, None]).add_(factor[:, None])
                    p, onehot, factor = log_p.exp_().mul_(of_logits), factor, torch.ones_like(factor)
            p.scatter_add_(1, targets[part, None], -onehot[:, None])
            if grad_bias is not None:
                grad_bias.addmv_(p.T, factor, alpha=-1)
            p = p.to(ctx.dtype)
            grad_hidden[part] = (p @ computing) * -factor[:, None]
            if grad_weight is not None:
                add_product_(grad_weight, p, hidden[part].float() * factor[:, None], alpha=-1)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None, None


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    *,
    kept: Kept | None = None,
    train_entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probs of `targets` under softmax((hidden @ weight.T + bias) / temperature), and that distribution's entropy.

    With `kept`, the softmax of each token is over its set S alone (DeepSeek-V3.2, 2512.02556, "keep sampling mask"):

        log p(y) = z_y - log sum_{v in S} exp(z_v)        entropy = -sum_{v in S} p(v) log p(v)

    S is a constant: no gradient goes through its choice, and tokens outside it get none.

    Args:
        hidden: [T, H]. weight: [V, H] and bias: [V], the head's. targets: [T] token ids.
        kept: what each target was drawn from, itself included; None: the whole vocabulary.
        train_entropy: the entropy has a gradient too, for one more chunk of logits in memory.

    Returns:
        logprobs [T], float32, differentiable in hidden, weight and bias; entropy [T], float32, in nats.
    """
    chunk = max(1, CHUNK_ELEMENTS.get(hidden.device.type, 2**27) // weight.shape[0])
    waiting = WAITING_ELEMENTS if torch.is_grad_enabled() and not train_entropy else 0
    arguments = hidden, weight, bias, targets, temperature, chunk, waiting, train_entropy, kept
    return _TokenLogProbs.apply(*arguments)  # type: ignore[return-value]
