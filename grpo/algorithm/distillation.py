"""On-policy distillation: how far a student's distribution is from a teacher's, token by token, and its gradient.

One number names the divergence, as in TRL's DistillationTrainer (2306.13649): with student p, teacher q and the mixture
m = (1 - beta) p + beta q,

    beta = 0        forward KL  L = sum_v q_v (log q_v - log p_v)            dL/dz = p - q
    beta = 1        reverse KL  L = sum_v p_v (log p_v - log q_v)            dL/dz = p (log p - log q - L)
    0 < beta < 1    JSD         L = beta KL(q || m) + (1 - beta) KL(p || m)  dL/dz = (1 - beta) p (log p - log m - K),

where z are the student's logits and K = KL(p || m). Nothing flows into the teacher, nor through the sampling of tokens.
"""

import math

import torch
from torch import Tensor

FORWARD_KL, REVERSE_KL = 0.0, 1.0


def divergence(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """L of every token: [T], in nats. student, teacher: [T, V] log-probs."""
    if beta == FORWARD_KL:
        return _kl(teacher, student)
    if beta == REVERSE_KL:
        return _kl(student, teacher)
    mixture = torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def divergence_gradient_(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """dL/dz of every token: [T, V]. student, teacher: [T, V] log-probs; both are overwritten, one with the result."""
    if beta == FORWARD_KL:
        return student.exp_().sub_(teacher.exp_())
    if beta != REVERSE_KL:
        torch.logaddexp(student + math.log1p(-beta), teacher.add_(math.log(beta)), out=teacher)  # now the mixture
    ratio = torch.sub(student, teacher, out=teacher)
    probabilities = student.exp_()
    ratio.sub_(torch.linalg.vecdot(probabilities, ratio)[:, None]).mul_(probabilities)
    return ratio if beta == REVERSE_KL else ratio.mul_(1 - beta)


def teacher_advantages(student: Tensor, teacher: Tensor) -> Tensor:
    """A_t = log q(y_t) - log p(y_t) of the sampled tokens: [T], no gradient.

    The policy gradient of these advantages is that of the reverse KL per token, estimated from the token that was
    sampled; what a token does to the prefixes that follow it is left out (discount 0).

    Args:
        student: [T] log-probs under the policy that sampled. teacher: [T] log-probs of the same tokens.
    """
    return teacher - student.detach()


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probs [T, V]: [T]."""
    return torch.linalg.vecdot(p.exp(), p - q)
