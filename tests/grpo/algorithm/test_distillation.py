"""Divergences and their gradients against the oracle, in double precision."""

import numpy as np
import pytest
import torch

from grpo.algorithm.distillation import divergence, divergence_gradient_, teacher_advantages
from tests.grpo.algorithm import oracle

BETAS = [0.0, 0.3, 0.9, 1.0]


def logits(rows: int = 5, vocabulary: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, vocabulary)) * 2, rng.normal(size=(rows, vocabulary)) * 2


@pytest.mark.parametrize("beta", BETAS)
def test_divergence_and_gradient_are_the_formulas(beta: float) -> None:
    student, teacher = logits()
    log_p, log_q = (torch.from_numpy(z).log_softmax(-1) for z in (student, teacher))
    values = divergence(log_p, log_q, beta).numpy()
    gradient = divergence_gradient_(log_p, log_q, beta).numpy()
    for row, (z, y) in enumerate(zip(student, teacher, strict=True)):
        p, q = oracle.softmax(z), oracle.softmax(y)
        assert values[row] == pytest.approx(oracle.divergence(p, q, beta), rel=1e-12)
        np.testing.assert_allclose(gradient[row], oracle.divergence_gradient_formula(p, q, beta), rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(gradient[row], oracle.divergence_gradient(z, q, beta), atol=1e-8)


@pytest.mark.parametrize("beta", BETAS)
def test_a_student_that_is_its_teacher_has_no_loss_and_no_gradient(beta: float) -> None:
    log_p = torch.from_numpy(logits()[0]).log_softmax(-1)
    assert divergence(log_p, log_p, beta).abs().max() < 1e-14
    assert divergence_gradient_(log_p.clone(), log_p.clone(), beta).abs().max() < 1e-14


@pytest.mark.parametrize("beta", BETAS)
def test_tokens_that_one_of_the_two_never_chooses_keep_the_gradient_finite(beta: float) -> None:
    extreme = torch.tensor([[0.0, -500.0, 3.0], [900.0, 0.0, 0.0]])
    log_p, log_q = extreme.log_softmax(-1), extreme.flip(0).log_softmax(-1)
    assert divergence(log_p, log_q, beta).isfinite().all()
    assert divergence_gradient_(log_p, log_q, beta).isfinite().all()


def test_the_sampled_form_is_the_reverse_kl_on_average() -> None:
    """Over all tokens y that could have been sampled, weighed by p(y): -A_y grad log p(y) is the gradient of the KL."""
    student, teacher = logits()
    for z, y in zip(student, teacher, strict=True):
        p, q = np.array(oracle.softmax(z)), np.array(oracle.softmax(y))
        scores = teacher_advantages(torch.from_numpy(np.log(p)), torch.from_numpy(np.log(q))).numpy()
        mean = sum(p[v] * -scores[v] * (np.eye(len(p))[v] - p) for v in range(len(p)))
        np.testing.assert_allclose(mean, oracle.divergence_gradient_formula(p.tolist(), q.tolist(), 1.0), atol=1e-12)
