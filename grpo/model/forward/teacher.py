"""The student's head against a teacher's, in chunks: neither model's full-vocabulary logits ever exist.

As in `grpo.model.forward.head`, the forward pass keeps only log-normalisers, and the backward pass computes a chunk's
logits again and turns them into the gradient in place. What is needed of a teacher is its last hidden states and its
head.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo.algorithm.distillation import divergence, divergence_gradient_
from grpo.model.forward.head import CHUNK_ELEMENTS, add_product_, computing_dtype, head_logits


@dataclass(frozen=True, eq=False, slots=True)
class TeacherHead:
    """A teacher's frozen head, in host memory. `on` copies it to a device, where one teacher's head is kept at a time.

    Its hidden size may differ from the student's; only the vocabulary must be the same. Rows beyond the student's, or
    the student's beyond these, belong to no token (heads are padded to different sizes) and are left out.
    """

    weight: Tensor  # [V, H_t]
    bias: Tensor | None  # [V]
    temperature: float

    def on(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Weight and bias on the device."""
        if self.weight.device == device:
            return self.weight, self.bias
        if (self, device) not in _RESIDENT:
            _RESIDENT.clear()  # before the copy: two heads need not fit
            _RESIDENT[self, device] = self.weight.to(device), None if self.bias is None else self.bias.to(device)
        return _RESIDENT[self, device]


_RESIDENT: dict[tuple[TeacherHead, torch.device], tuple[Tensor, Tensor | None]] = {}


@dataclass(frozen=True, slots=True)
class Target:
    """What a teacher says of T sampled tokens, and by which divergence the student's distance is measured."""

    hidden: Tensor  # [T, H_t] its last hidden states at the positions that predict the tokens
    head: TeacherHead
    beta: float  # see grpo.algorithm.distillation

    def to(self, device: torch.device, non_blocking: bool = False) -> "Target":
        return Target(self.hidden.to(device, non_blocking=non_blocking), self.head, self.beta)


@dataclass(frozen=True, slots=True)
class _Head:
    """A head with its chunks' logits."""

    hidden: Tensor
    weight: Tensor  # in the precision that it computes in
    bias: Tensor | None
    temperature: float

    @classmethod
    def of_teacher(cls, hidden: Tensor, head: TeacherHead, dtype: torch.dtype) -> "_Head":
        weight, bias = head.on(hidden.device)
        return cls(hidden, weight.to(dtype), bias, head.temperature)

    def logits(self, part: slice) -> Tensor:
        return head_logits(self.hidden[part], self.weight, self.bias, self.temperature)


class _TokenDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        target: Target,
        chunk: int,
    ) -> tuple[Tensor, ...]:
        dtype = computing_dtype(hidden)
        student = _Head(hidden, weight.to(dtype), bias, temperature)
        teacher = _Head.of_teacher(target.hidden, target.head, dtype)
        shared = min(len(student.weight), len(teacher.weight))
        results = hidden.new_empty(4, len(targets), dtype=torch.float32)
        distance, logprobs, entropy, teacher_logprobs = results
        # Log-normalisers over the shared rows, of student and teacher.
        normalisers = hidden.new_empty(2, len(targets), dtype=torch.float32)
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            chosen = targets[part, None]
            log_p, normalisers[0, part] = _normalised_(student.logits(part))
            logprobs[part] = log_p.gather(-1, chosen)[:, 0]
            entropy[part] = -torch.linalg.vecdot(log_p.exp(), log_p)
            if shared < len(weight):
                log_p, missing = _normalised_(log_p[:, :shared])
                normalisers[0, part] += missing
            log_q, normalisers[1, part] = _normalised_(teacher.logits(part)[:, :shared])
            teacher_logprobs[part] = log_q.gather(-1, chosen)[:, 0]
            distance[part] = divergence(log_p, log_q, target.beta)
        ctx.save_for_backward(hidden, weight, bias, target.hidden, normalisers)
        ctx.head, ctx.beta, ctx.shared = target.head, target.beta, shared
        ctx.temperature, ctx.chunk, ctx.dtype = temperature, chunk, dtype
        ctx.mark_non_differentiable(logprobs, entropy, teacher_logprobs)
        return distance, logprobs, entropy, teacher_logprobs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, teacher_hidden, normalisers = ctx.saved_tensors
        student = _Head(hidden, weight.to(ctx.dtype), bias, ctx.temperature)
        teacher = _Head.of_teacher(teacher_hidden, ctx.head, ctx.dtype)
        upstream = gradients[0] / ctx.temperature
        grad_hidden = torch.empty_like(hidden)
        # A frozen head, as under adapters, needs none.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        rows = slice(0, ctx.shared)  # the gradient of the student's other rows is zero
        for start in range(0, len(hidden), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            log_p = student.logits(part)[:, rows].sub_(normalisers[0, part, None])
            log_q = teacher.logits(part)[:, rows].sub_(normalisers[1, part, None])
            scaled = divergence_gradient_(log_p, log_q, ctx.beta).mul_(upstream[part, None])
            if grad_bias is not None:
                grad_bias[rows] += scaled.sum(0)
            scaled = scaled.to(ctx.dtype)
            grad_hidden[part] = scaled @ student.weight[rows]
            if grad_weight is not None:
                add_product_(grad_weight[rows], scaled, hidden[part])
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _normalised_(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs [T, V], written over the logits, and the normalisers [T]."""
    normaliser = logits.logsumexp(-1)
    return logits.sub_(normaliser[:, None]), normaliser


def token_divergence(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    target: Target,
    temperature: float = 1.0,
    bias: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The student's divergence from a teacher at every token.

    Args:
        hidden: [T, H]. weight: [V, H] and bias: [V], the student's head. targets: [T] the sampled token ids.

    Returns:
        divergence [T], differentiable in hidden, weight and bias. Without gradient: the student's log-probs [T] of the
        sampled tokens, its entropy [T] and the teacher's log-probs [T] of them. All float32, in nats.
    """
    widest = max(len(weight), len(target.head.weight))
    chunk = max(1, CHUNK_ELEMENTS.get(hidden.device.type, 2**27) // (2 * widest))  # two models' logits at once
    return _TokenDivergence.apply(hidden, weight, bias, targets, temperature, target, chunk)  # type: ignore[return-value]
