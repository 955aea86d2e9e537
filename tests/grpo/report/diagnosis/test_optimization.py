"""Learning rate, KL, clipping, entropy, reference and mismatch: each is made on purpose."""

from pathlib import Path
from typing import Any

import pytest

from tests.grpo.report.diagnosis.made import made, only, shown

MISMATCH = "sampling/sampling_logp_difference/mean"
BETA = {"algorithm": {"beta": 0.04}}


def test_learning_rate_zero(tmp_path: Path) -> None:
    assert shown(only(made(tmp_path, [{}] + [{"learning_rate": 0.0}] * 2)))[:4] == (
        "alarm",
        "The learning rate is zero, so the weights do not change.",
        "learning_rate 0; rule: 0 for 2 rows in a row",
        "steps 2–3",
    )


@pytest.mark.parametrize(
    ("rows", "says", "figure"),
    [
        (
            [{"kl": 0.01}] * 5 + [{"kl": 2.0}] * 5,
            "The policy changes too fast: the KL to the reference model is 2 nats per token.",
            "kl 2; rule: mean of 5 rollouts above 1 nats per token",
        ),
        (
            [{}] * 5 + [{"grad_norm": 0.75}] * 5 + [{"grad_norm": 8.0}] * 5,
            "The policy changes too fast: the gradient norm grew from 0.5 to 8.",
            "grad_norm 8; rule: mean of 5 rollouts above 10 times that of the first 5",
        ),
        (
            [{"clip_ratio/region_mean": 0.25}] * 5,
            "The policy changes too fast: 25% of the tokens have a clipped ratio.",
            "clip_ratio/region_mean 0.25; rule: mean of 5 rollouts above 0.2",
        ),
    ],
)
def test_learning_rate_too_large(tmp_path: Path, rows: list[dict[str, Any]], says: str, figure: str) -> None:
    finding = only(made(tmp_path, rows))
    assert shown(finding)[:3] == ("alarm", says, figure)
    assert finding.kind == "learning_rate_too_large" and finding.changes == {"trainer.learning_rate": 1e-4}


def test_gradient_clipped_at_every_step(tmp_path: Path) -> None:
    rows = [{"grad_norm": 3.0, "reward": 0.3 + 0.01 * i} for i in range(21)]
    assert shown(only(made(tmp_path, rows, trainer={"max_grad_norm": 1.0}))) == (
        "note",
        "The gradient has been clipped at each of the last 20 rows: its norm is usually 3, and the limit 1.",
        "grad_norm 3; rule: above trainer.max_grad_norm=1 in 20 rows in a row",
        "steps 1–21",
        "trainer.max_grad_norm=6",
    )
    rows[10]["grad_norm"] = 0.5
    assert made(tmp_path, rows, trainer={"max_grad_norm": 1.0}).findings == []


def test_entropy_collapse(tmp_path: Path) -> None:
    rows = [{}] * 5 + [{"entropy": entropy} for entropy in (0.11, 0.09, 0.05)]
    assert shown(only(made(tmp_path, rows))) == (
        "alarm",
        "Entropy has collapsed from 1 to 0.05 nats per token: completions of a problem become the same, which ends "
        "exploration.",
        "entropy 0.05; rule: below 10% of the mean of its first 5 values",
        "steps 7–8",
        "trainer.learning_rate=0.0001",
    )


def test_entropy_without_a_baseline_says_nothing(tmp_path: Path) -> None:
    rows = [{"entropy": 1.0}] * 3 + [{"entropy": None}] * 3 + [{"entropy": 0.05}] * 2
    assert made(tmp_path, rows).findings == []


def test_mismatch_near_its_bound(tmp_path: Path) -> None:
    rows = [{MISMATCH: 0.02}, {MISMATCH: 0.03}]
    assert shown(only(made(tmp_path, rows, model={"dtype": "bfloat16"}))) == (
        "alarm",
        "Mean |log p_trainer - log p_engine| is 0.03, near algorithm.max_logp_difference=0.05, where the run stops: "
        "the engine samples from a different policy than the one trained.",
        "sampling/sampling_logp_difference/mean 0.03; rule: above 0.5 of algorithm.max_logp_difference=0.05",
        "step 2",
        "model.dtype=float32",
    )


def test_mismatch_beyond_the_bound_is_left_to_the_error(tmp_path: Path) -> None:
    assert made(tmp_path, [{MISMATCH: 0.6}]).findings == []


def test_stale_reference(tmp_path: Path) -> None:
    rows = [{"kl": 0.02 * i} for i in range(12)]
    assert shown(only(made(tmp_path, rows, **BETA))) == (
        "note",
        "The reference model is stale: the policy is 0.18 nats per token away from it, it is never replaced, and "
        "algorithm.beta=0.04 holds the policy back.",
        "kl 0.18; rule: mean of 5 rollouts above 0.1 nats per token with algorithm.ref_model_sync_steps=0",
        "steps 7–12",
        "algorithm.ref_model_sync_steps=7",
    )
    synced = {"algorithm": {"beta": 0.04, "ref_model_sync_steps": 50}}
    assert made(tmp_path, rows, **synced).findings == []
