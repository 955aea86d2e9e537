"""The objectives against a token-by-token oracle."""

import math

import numpy as np
import pytest
import torch

from grpo.algorithm import loss as objectives
from grpo.algorithm.loss import clipped_surrogate
from grpo.algorithm.token_weights import Lengths
from tests.grpo.algorithm import oracle

LENGTHS = [3, 1, 5, 2, 4, 0]
MASKED = [False, False, True, False, False, False]


def make_sequences(rng: np.random.Generator) -> list[dict]:
    return [
        {
            "logprobs": rng.normal(-1, 0.5, n).tolist(),
            "old": rng.normal(-1, 0.5, n).tolist(),
            "ref": rng.normal(-1, 0.5, n).tolist(),
            "advantage": float(rng.normal()),
            "masked": masked,
        }
        for n, masked in zip(LENGTHS, MASKED, strict=True)
    ]


def flat(sequences: list[dict], name: str) -> torch.Tensor:
    return torch.tensor([v for s in sequences for v in s[name]], dtype=torch.float64)


def per_token(sequences: list[dict], values: list[float]) -> torch.Tensor:
    lengths = torch.tensor([len(s["logprobs"]) for s in sequences])
    return torch.tensor(values, dtype=torch.float64).repeat_interleave(lengths)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_loss_and_gradient_match_the_oracle(loss_type: str, beta: float) -> None:
    sequences = make_sequences(np.random.default_rng(1))
    options = {"epsilon": 0.2, "epsilon_high": 0.28, "beta": beta}
    lengths = Lengths(
        tokens=np.array(LENGTHS),
        active=~np.array(MASKED),
        mini_batch=np.zeros(len(LENGTHS), dtype=np.int64),
        max_completion_length=8,
        steps_per_generation=1,
    )
    weights = getattr(objectives, loss_type).token_weights(lengths)
    logprobs = flat(sequences, "logprobs").requires_grad_()
    output = clipped_surrogate(
        logprobs,
        flat(sequences, "old"),
        per_token(sequences, [s["advantage"] for s in sequences]),
        per_token(sequences, weights.tolist()),
        ref_logprobs=flat(sequences, "ref"),
        **options,
    )

    def expected(changed: list[dict]) -> float:
        return oracle.loss(changed, loss_type=loss_type, max_completion_length=8, **options)

    assert output.loss.item() == pytest.approx(expected(sequences), abs=1e-12)
    output.loss.backward()
    gradient = iter(logprobs.grad.tolist())  # type: ignore[union-attr]
    step = 1e-6
    for sequence in sequences:
        for t in range(len(sequence["logprobs"])):
            value = sequence["logprobs"][t]
            sequence["logprobs"][t] = value + step
            up = expected(sequences)
            sequence["logprobs"][t] = value - step
            down = expected(sequences)
            sequence["logprobs"][t] = value
            assert next(gradient) == pytest.approx((up - down) / (2 * step), abs=1e-6)


def test_mini_batches_have_their_own_denominators_but_dapo_shares_the_rollouts() -> None:
    lengths = Lengths(
        tokens=np.array([2, 6, 4, 4]),
        active=np.ones(4, dtype=bool),
        mini_batch=np.array([0, 0, 1, 1]),
        max_completion_length=10,
        steps_per_generation=2,
    )

    def weights(loss_type: str) -> list[float]:
        return getattr(objectives, loss_type).token_weights(lengths).tolist()

    assert weights("grpo") == pytest.approx([1 / 4, 1 / 12, 1 / 8, 1 / 8])
    assert weights("dr_grpo") == pytest.approx([1 / 20] * 4)
    assert weights("bnpo") == pytest.approx([1 / 8] * 4)
    assert weights("dapo") == pytest.approx([2 / 16] * 4)


def test_clip_ratios_count_only_what_the_clip_stops() -> None:
    ratio = torch.tensor([0.5, 0.5, 1.5, 1.5, 1.0])
    output = clipped_surrogate(
        ratio.log(),
        torch.zeros(5),
        torch.tensor([-1.0, 1.0, -1.0, 1.0, 1.0]),
        torch.ones(5),
        epsilon=0.2,
        epsilon_high=0.2,
    )
    assert output.metrics["clip_ratio/low_mean"].value == pytest.approx(1 / 5)
    assert output.metrics["clip_ratio/high_mean"].value == pytest.approx(1 / 5)
    assert output.metrics["clip_ratio/region_mean"].value == pytest.approx(2 / 5)
    # 0.8 (clipped, A < 0), -0.5, 1.5 (A < 0: pessimistic), -1.2 (clipped), -1
    assert output.loss.item() == pytest.approx(0.8 - 0.5 + 1.5 - 1.2 - 1.0)


def test_kl_is_k3_and_zero_for_the_reference_itself() -> None:
    logprobs = torch.tensor([-1.0, -2.0])
    same = clipped_surrogate(
        logprobs,
        logprobs,
        torch.zeros(2),
        torch.ones(2),
        epsilon=0.2,
        epsilon_high=0.2,
        beta=1.0,
        ref_logprobs=logprobs,
    )
    assert same.loss.item() == 0.0
    moved = clipped_surrogate(
        logprobs,
        logprobs,
        torch.zeros(2),
        torch.ones(2),
        epsilon=0.2,
        epsilon_high=0.2,
        beta=1.0,
        ref_logprobs=torch.tensor([-1.5, -2.0]),
    )
    assert moved.loss.item() == pytest.approx(math.exp(-0.5) + 0.5 - 1, abs=1e-6)
