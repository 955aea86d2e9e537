"""The objectives against a token-by-token oracle, and what they reduce to."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from grpo.algorithm import loss as objectives
from grpo.algorithm.correction import correction_of, off_policy_mask
from grpo.algorithm.loss import LossOutput
from grpo.algorithm.token_weights import Lengths
from grpo.algorithm.tokens import Tokens
from grpo.recipe.algorithm import AlgorithmConfig
from grpo.recipe.registry import CORRECTIONS, LOSSES
from tests.grpo.algorithm import oracle

LENGTHS = [3, 1, 5, 2, 4, 0]
MASKED = [False, False, True, False, False, False]
NAMES = {"logprobs": "logprobs", "old_logprobs": "old", "behaviour_logprobs": "behaviour", "ref_logprobs": "ref"}


def make_sequences(rng: np.random.Generator, spread: float = 0.5) -> list[dict]:
    return [
        {
            **{name: rng.normal(-1, spread, n).tolist() for name in ("logprobs", "old", "behaviour", "ref")},
            "advantage": float(rng.normal()),
            "masked": masked,
            "selected": (rng.random(n) < 0.3).tolist(),
        }
        for n, masked in zip(LENGTHS, MASKED, strict=True)
    ]


def evaluate(sequences: list[dict], settings: AlgorithmConfig, only: slice = slice(None)) -> tuple[LossOutput, Tokens]:
    """The loss of some of the sequences, as one micro-batch of a mini-batch of all."""
    lengths = Lengths(
        tokens=np.array(LENGTHS),
        active=~np.array(MASKED),
        mini_batch=np.zeros(len(LENGTHS), dtype=np.int64),
        max_completion_length=8,
        steps_per_generation=1,
    )
    objective = getattr(objectives, settings.loss_type)
    part, weights = sequences[only], objective.token_weights(lengths)[only]
    counts = torch.tensor([len(s["logprobs"]) for s in part])

    def per_token(values: Any) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.float64).repeat_interleave(counts)

    flat = {ours: torch.tensor([v for s in part for v in s[name]], dtype=torch.float64) for ours, name in NAMES.items()}
    flat["logprobs"].requires_grad_()
    tokens = Tokens(
        **flat,
        advantages=per_token([s["advantage"] for s in part]),
        token_weights=per_token(weights),
        sequences=torch.arange(len(part)).repeat_interleave(counts),
        selected=torch.tensor([v for s in part for v in s["selected"]], dtype=torch.bool),
    )
    return objective.loss(tokens, settings), tokens


CASES: list[dict[str, Any]] = [
    *({"loss_type": name} for name in LOSSES if name != "cispo"),
    *({"loss_type": name, "epsilon_high": 0.28, "beta": 0.3} for name in ("grpo", "dr_grpo", "dapo", "bnpo", "gspo")),
    {"loss_type": "cispo", "epsilon_high": 1.5},
    {"loss_type": "cispo", "epsilon_high": 1.2, "importance_sampling_level": "sequence"},
    {"loss_type": "grpo", "delta": 1.3},
    {"loss_type": "dapo", "importance_sampling_level": "sequence_token"},
    {"loss_type": "sapo", "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 3.0, "beta": 0.1},
    {"loss_type": "dppo", "dppo_delta": 0.05, "dppo_log_ratio_coef": 0.1},
    {"loss_type": "vespo", "vespo_k_pos": 1.0, "vespo_lambda_pos": 0.5, "vespo_k_neg": 0.3, "vespo_lambda_neg": 0.2},
    {"loss_type": "kl_cov", "kl_cov_coef": 0.2, "beta": 0.1},
    {"loss_type": "clip_cov", "epsilon_high": 0.28, "delta": 1.5},
    {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": True},
    {"loss_type": "gspo", "beta": 0.3, "use_bias_correction_kl": True},
    {"loss_type": "dapo", "off_policy_mask_threshold": 0.1, "beta": 0.1},
    *({"loss_type": "dapo", "importance_sampling_correction": name} for name in CORRECTIONS),
    {"loss_type": "gspo", "importance_sampling_correction": "mis", "importance_sampling_clip_max": 1.1},
    {
        "loss_type": "grpo",
        "importance_sampling_correction": "tis",
        "importance_sampling_clip_min": 0.9,
        "importance_sampling_clip_max": 1.1,
        "beta": 0.2,
    },
    {"loss_type": "grpo", "importance_sampling_correction": "geometric", "importance_sampling_clip_max": 1.5},
]


@pytest.mark.parametrize("options", CASES, ids=lambda options: "-".join(str(value) for value in options.values()))
def test_loss_and_gradient_match_the_oracle(options: dict[str, Any]) -> None:
    sequences = make_sequences(np.random.default_rng(1))
    output, tokens = evaluate(sequences, AlgorithmConfig(**options))
    frozen = copy.deepcopy(sequences)

    def expected() -> float:
        return oracle.loss(sequences, max_completion_length=8, frozen=frozen, **options)

    assert output.loss.item() == pytest.approx(expected(), abs=1e-12)
    output.loss.backward()
    assert tokens.logprobs.grad is not None
    gradient = iter(tokens.logprobs.grad.tolist())
    step = 1e-6
    for sequence in sequences:
        for t in range(len(sequence["logprobs"])):
            value = sequence["logprobs"][t]
            sequence["logprobs"][t] = value + step
            up = expected()
            sequence["logprobs"][t] = value - step
            down = expected()
            sequence["logprobs"][t] = value
            assert next(gradient) == pytest.approx((up - down) / (2 * step), abs=1e-6)


@pytest.mark.parametrize("options", CASES, ids=lambda options: "-".join(str(value) for value in options.values()))
def test_the_loss_does_not_depend_on_the_micro_batches(options: dict[str, Any]) -> None:
    sequences, settings = make_sequences(np.random.default_rng(2)), AlgorithmConfig(**options)
    whole, tokens = evaluate(sequences, settings)
    whole.loss.backward()
    parts = [evaluate(sequences, settings, part) for part in (slice(0, 1), slice(1, 4), slice(4, None))]
    assert sum(output.loss.item() for output, _ in parts) == pytest.approx(whole.loss.item(), abs=1e-12)
    for output, _ in parts:
        output.loss.backward()
    pieces = torch.cat([part.logprobs.grad for _, part in parts if part.logprobs.grad is not None])
    torch.testing.assert_close(pieces, tokens.logprobs.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_in_a_rollouts_first_update_every_loss_is_reinforce(loss_type: str) -> None:
    """Ratio 1: the gradient is that of -w A log pi, for any surrogate; sequence ratios share it among the tokens."""
    sequences = make_sequences(np.random.default_rng(3))
    for sequence in sequences:
        sequence["old"] = sequence["behaviour"] = sequence["logprobs"]
        sequence["selected"] = [False] * len(sequence["selected"])
    output, tokens = evaluate(sequences, AlgorithmConfig(loss_type=loss_type, epsilon_high=5.0))
    output.loss.backward()
    torch.testing.assert_close(tokens.logprobs.grad, -tokens.token_weights * tokens.advantages)


def test_weights_share_one_denominator_or_have_one_per_mini_batch() -> None:
    lengths = Lengths(
        tokens=np.array([2, 6, 4, 4]),
        active=np.ones(4, dtype=bool),
        mini_batch=np.array([0, 0, 1, 1]),
        max_completion_length=10,
        steps_per_generation=2,
    )

    def weights(loss_type: str) -> list[float]:
        return getattr(objectives, loss_type).token_weights(lengths).tolist()

    for name in ("grpo", "gspo", "gspo_token", "sapo"):
        assert weights(name) == pytest.approx([1 / 4, 1 / 12, 1 / 8, 1 / 8])
    assert weights("luspo") == pytest.approx([1 / 2] * 4)
    assert weights("dr_grpo") == pytest.approx([1 / 20] * 4)
    assert weights("bnpo") == pytest.approx([1 / 8] * 4)
    for name in ("dapo", "cispo", "dppo", "clip_cov", "kl_cov", "vespo"):
        assert weights(name) == pytest.approx([2 / 16] * 4)


def tokens_of(ratio: list[float], advantages: list[float], **more: Any) -> Tokens:
    count = len(ratio)
    values = {
        "logprobs": torch.tensor(ratio).log(),
        "old_logprobs": torch.zeros(count),
        "behaviour_logprobs": torch.zeros(count),
        "advantages": torch.tensor(advantages),
        "token_weights": torch.ones(count),
        "sequences": torch.arange(count),
        **more,
    }
    return Tokens(**values)


def test_without_selected_tokens_clip_cov_is_dapo_and_kl_cov_is_dapo_without_clip() -> None:
    sequences = make_sequences(np.random.default_rng(4))
    for sequence in sequences:
        sequence["selected"] = [False] * len(sequence["selected"])

    def loss(**settings: Any) -> float:
        return evaluate(sequences, AlgorithmConfig(**settings))[0].loss.item()

    assert loss(loss_type="clip_cov") == loss(loss_type="dapo")
    # A negative advantage is not clipped above; a wide clip changes nothing for positive ones.
    assert loss(loss_type="kl_cov") == pytest.approx(loss(loss_type="dapo", epsilon=1 - 1e-9, epsilon_high=1e9))


def test_rounding_has_no_penalty_in_kl_cov() -> None:
    tokens = tokens_of([1 + 4e-7, 1 - 4e-7, 1.1], [0.0] * 3, selected=torch.ones(3, dtype=torch.bool))
    tokens.logprobs.requires_grad_()
    objectives.kl_cov.loss(tokens, AlgorithmConfig(loss_type="kl_cov", steps_per_generation=2)).loss.backward()
    assert tokens.logprobs.grad is not None
    assert tokens.logprobs.grad.tolist() == [0.0, 0.0, pytest.approx(1.0)]


def test_clip_ratios_count_only_what_the_clip_stops() -> None:
    tokens = tokens_of([0.5, 0.5, 1.5, 1.5, 1.0], [-1.0, 1.0, -1.0, 1.0, 1.0])
    output = objectives.grpo.loss(tokens, AlgorithmConfig())
    assert output.metrics["clip_ratio/low_mean"].value == pytest.approx(1 / 5)
    assert output.metrics["clip_ratio/high_mean"].value == pytest.approx(1 / 5)
    assert output.metrics["clip_ratio/region_mean"].value == pytest.approx(2 / 5)
    # 0.8 (clipped, A < 0), -0.5, 1.5 (A < 0: pessimistic), -1.2 (clipped), -1
    assert output.loss.item() == pytest.approx(0.8 - 0.5 + 1.5 - 1.2 - 1.0)
    # Dual clip: a ratio of 9 with a negative advantage costs 3, not 9.
    far = tokens_of([9.0], [-1.0])
    assert objectives.grpo.loss(far, AlgorithmConfig()).loss.item() == pytest.approx(9.0)
    assert objectives.grpo.loss(far, AlgorithmConfig(delta=3.0)).loss.item() == pytest.approx(3.0)


def test_kl_is_k3_and_zero_for_the_reference_itself() -> None:
    settings = AlgorithmConfig(beta=1.0)
    logprobs = torch.tensor([-1.0, -2.0])
    same = {"logprobs": logprobs, "old_logprobs": logprobs, "ref_logprobs": logprobs}
    assert objectives.grpo.loss(tokens_of([1, 1], [0, 0], **same), settings).loss.item() == 0.0
    moved = same | {"ref_logprobs": torch.tensor([-1.5, -2.0])}
    loss = objectives.grpo.loss(tokens_of([1, 1], [0, 0], **moved), settings).loss
    assert loss.item() == pytest.approx(math.exp(-0.5) + 0.5 - 1, abs=1e-6)


def test_an_overflowing_ratio_stays_finite() -> None:
    """exp(200) is infinite, and 0 times it is no number."""
    lost = torch.tensor([0.0, -300.0])
    tokens = tokens_of([1, 1], [0.0, 1.0], old_logprobs=torch.tensor([-200.0, 0.0]), logprobs=lost.requires_grad_())
    for name, epsilon in (("grpo", 0.2), ("cispo", 5.0), ("sapo", 0.2), ("gspo", 0.2), ("vespo", 0.2)):
        loss = getattr(objectives, name).loss(tokens, AlgorithmConfig(loss_type=name, epsilon_high=epsilon)).loss
        assert loss.isfinite()
        assert torch.autograd.grad(loss, lost)[0].isfinite().all()


def test_corrections_report_what_they_changed() -> None:
    tokens = tokens_of([1, 1, 1, 1], [1.0] * 4, old_logprobs=torch.tensor([1.0, 3.0, 0.25, 1.0]).log())
    correction = correction_of(AlgorithmConfig(importance_sampling_correction="tis"))
    assert correction is not None
    weights, metrics = correction.weights(tokens)
    assert weights.tolist() == pytest.approx([1.0, 2.0, 0.25, 1.0])
    found = {name.removeprefix("sampling/importance_sampling_ratio/"): m.value for name, m in metrics.items()}
    assert found == pytest.approx(
        {
            "min": 0.25,
            "mean": 5.25 / 4,
            "max": 3.0,
            "clipped_share": 1 / 4,
            "effective_sample_size": 4.25**2 / (4 * (1 + 4 + 0.0625 + 1)),
        }
    )
    merged = metrics["sampling/importance_sampling_ratio/effective_sample_size"]
    assert (merged + merged).value == pytest.approx(merged.value)


def test_the_off_policy_mask_drops_unlikely_completions_with_negative_advantage() -> None:
    tokens = tokens_of(
        [0.5, 0.5, 0.5, 1.0], [-1.0, -1.0, 1.0, -1.0], sequences=torch.tensor([0, 0, 1, 2])
    )  # mean log(mu / pi) is log 2 = 0.69 in the first two completions
    assert off_policy_mask(tokens, 0.5).tolist() == [0, 0, 1, 1]
    assert off_policy_mask(tokens, 0.7).tolist() == [1, 1, 1, 1]
