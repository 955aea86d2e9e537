"""The student's head against a teacher's in chunks: against the oracle, and against TRL."""

import os
from typing import Any

import numpy as np
import pytest
import torch

from grpo.model.forward import teacher as module
from grpo.model.forward.teacher import Target, TeacherHead, token_divergence
from tests.grpo.algorithm import oracle

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
TOKENS, VOCABULARY, WIDTH, TEACHER_WIDTH = 10, 11, 5, 8
TEMPERATURE, TEACHER_TEMPERATURE = 0.7, 1.3


def tensors(teacher_rows: int = VOCABULARY) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "hidden": normal(TOKENS, WIDTH),
        "weight": normal(VOCABULARY, WIDTH),
        "bias": normal(VOCABULARY),
        "teacher_hidden": normal(TOKENS, TEACHER_WIDTH),
        "teacher_weight": normal(teacher_rows, TEACHER_WIDTH),
        "teacher_bias": normal(teacher_rows),
        "targets": torch.randint(0, min(VOCABULARY, teacher_rows), (TOKENS,), generator=generator),
        "upstream": normal(TOKENS),
    }


def ours(
    t: dict[str, torch.Tensor], beta: float, temperature: float = TEMPERATURE, teacher: float = TEACHER_TEMPERATURE
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Results, and gradients of hidden, weight and bias."""
    leaves = [t[name].clone().requires_grad_() for name in ("hidden", "weight", "bias")]
    target = Target(t["teacher_hidden"], TeacherHead(t["teacher_weight"], t["teacher_bias"], teacher), beta)
    results = token_divergence(leaves[0], leaves[1], t["targets"], target, temperature, leaves[2])
    (results[0] * t["upstream"]).sum().backward()
    return tuple(r.detach() for r in results), tuple(leaf.grad for leaf in leaves)  # type: ignore[return-value]


@pytest.mark.parametrize("chunk_elements", [1, 6 * VOCABULARY, 10**6])
@pytest.mark.parametrize("teacher_rows", [VOCABULARY, 9, 13])  # heads are padded to different sizes
@pytest.mark.parametrize("beta", [0.0, 0.2, 0.5, 1.0])
def test_values_and_gradients_are_the_formulas(
    beta: float, teacher_rows: int, chunk_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.CHUNK_ELEMENTS, "cpu", chunk_elements)
    t = tensors(teacher_rows)
    (distance, logprobs, entropy, teacher_logprobs), gradients = ours(t, beta)

    a = {name: tensor.double().numpy() for name, tensor in t.items()}
    shared = min(VOCABULARY, teacher_rows)
    z = a["hidden"] @ a["weight"].T + a["bias"]
    y = a["teacher_hidden"] @ a["teacher_weight"].T + a["teacher_bias"]
    dz = np.zeros_like(z)
    for row, token in enumerate(t["targets"].tolist()):
        p = oracle.softmax(z[row, :shared], TEMPERATURE)
        q = oracle.softmax(y[row, :shared], TEACHER_TEMPERATURE)
        whole = np.array(oracle.softmax(z[row], TEMPERATURE))
        assert distance[row] == pytest.approx(oracle.divergence(p, q, beta), rel=1e-4, abs=1e-6)
        assert logprobs[row] == pytest.approx(np.log(whole[token]), rel=1e-5, abs=1e-5)
        assert entropy[row] == pytest.approx(-(whole * np.log(whole)).sum(), rel=1e-4)
        assert teacher_logprobs[row] == pytest.approx(np.log(q[token]), rel=1e-5, abs=1e-5)
        formula = np.array(oracle.divergence_gradient_formula(p, q, beta))
        dz[row, :shared] = a["upstream"][row] * formula / TEMPERATURE
    for got, expected in zip(gradients, (dz @ a["weight"], dz.T @ a["hidden"], dz.sum(0)), strict=True):
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_loss_and_gradients_are_those_of_trls_distillation_trainer(beta: float) -> None:
    trainer = pytest.importorskip("trl.trainer.distillation_trainer")
    t = tensors() | {"upstream": torch.full((TOKENS,), 1 / TOKENS)}
    results, gradients = ours(t, beta, temperature=0.9, teacher=0.9)
    hidden, weight, bias = (t[name].clone().requires_grad_() for name in ("hidden", "weight", "bias"))
    loss, entropy, count = trainer._chunked_divergence_loss(
        hidden[None],
        t["teacher_hidden"][None],
        weight,
        t["teacher_weight"],
        torch.ones(1, TOKENS),
        beta,
        student_lm_head_bias=bias,
        teacher_lm_head_bias=t["teacher_bias"],
        temperature=0.9,
    )
    loss.backward()
    assert count == TOKENS
    assert results[0].mean() == pytest.approx(loss.item(), rel=1e-5)
    assert results[2].sum() == pytest.approx(entropy.item(), rel=1e-5)
    for got, leaf in zip(gradients, (hidden, weight, bias), strict=True):
        torch.testing.assert_close(got, leaf.grad, rtol=1e-4, atol=1e-6)


def test_under_autocast_the_gradient_is_that_of_the_logits_that_the_forward_computed() -> None:
    """backward runs outside autocast. The expected gradient is autograd's own, of the same bfloat16 products."""
    t = tensors()
    student, target_hidden = 16 * t["hidden"], 8 * t["teacher_hidden"]

    def gradient(function: Any) -> torch.Tensor:
        hidden = student.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = (function(hidden) * t["upstream"]).sum()
        loss.backward()
        assert hidden.grad is not None
        return hidden.grad

    def plain(hidden: torch.Tensor) -> torch.Tensor:
        log_p = torch.log_softmax(torch.nn.functional.linear(hidden, t["weight"]).float(), -1)
        log_q = torch.log_softmax(torch.nn.functional.linear(target_hidden, t["teacher_weight"]).float(), -1)
        return (log_q.exp() * (log_q - log_p)).sum(-1)

    target = Target(target_hidden, TeacherHead(t["teacher_weight"], None, 1.0), 0.0)
    got = gradient(lambda hidden: token_divergence(hidden, t["weight"], t["targets"], target)[0])
    expected = gradient(plain)
    assert float((got - expected).abs().max()) < 0.01 * float(expected.abs().max())
