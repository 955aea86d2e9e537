"""The section `algorithm`: which policy-gradient method trains the policy. docs/algorithms.md explains the choices."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from grpo.recipe.registry import CORRECTIONS, LOSSES
from grpo.recipe.section import Section
from rollout.support.names import nearest


def _known_loss(name: str) -> str:
    if name not in LOSSES:
        raise ValueError(f"{name!r} is not one of {', '.join(LOSSES)}.{nearest(name, LOSSES)}")
    return name


def _known_correction(name: str) -> str:
    if name not in CORRECTIONS:
        raise ValueError(f"{name!r} is not one of {', '.join(CORRECTIONS)}.{nearest(name, CORRECTIONS)}")
    return name


WIDE_FOR_SEQUENCES = 0.05  # of a clip: a completion's geometric mean of ratios stays closer to 1
RATIO_TO_ENGINE = ("vespo", "dppo")  # losses that compare the policy with the engine, not with the old policy


class AlgorithmConfig(Section):
    """GRPO (2402.03300, 2501.12948) and its variants."""

    loss_type: Annotated[str, AfterValidator(_known_loss)] = "grpo"  # a name in LOSSES; docs/algorithms.md
    importance_sampling_level: Literal["token", "sequence", "sequence_token"] | None = None  # None: the loss's own
    advantage_estimator: Literal[
        "group", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "maxrl", "pass_at_k"
    ] = "group"
    pass_k: PositiveInt = 4  # pass_at_k: completions that count as one attempt
    difficulty_weighting: bool = False  # groups weigh by their pass rate (GRPO-LEAD)
    scale_rewards: Literal["group", "batch", "none"] = "group"  # of the estimator "group"
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"  # or GDPO
    epsilon: PositiveFloat = 0.2  # the ratio is clipped to [1 - epsilon, 1 + epsilon_high]
    epsilon_high: PositiveFloat | None = None  # None: same as epsilon; cispo: the bound of the ratio itself, say 5
    delta: PositiveFloat | None = None  # bound of the ratio where the advantage is negative (dual-clip PPO's c)
    sapo_temperature_pos: PositiveFloat = 1.0  # of the gate of tokens with a positive advantage
    sapo_temperature_neg: PositiveFloat = 1.05  # with a negative one
    dppo_delta: PositiveFloat = 0.2
    dppo_log_ratio_coef: NonNegativeFloat = 1e-3
    cov_ratio: Annotated[float, Field(gt=0, le=1)] = 2e-4  # clip_cov, kl_cov: share of tokens that are held back
    clip_cov_min: float = 1.0  # clip_cov: the covariances it draws from
    clip_cov_max: float = 5.0
    kl_cov_coef: PositiveFloat = 1.0
    vespo_k_pos: PositiveFloat = 2.0  # vespo: of w^k exp(lambda (1 - w)), by the sign of the advantage
    vespo_lambda_pos: PositiveFloat = 3.0
    vespo_k_neg: PositiveFloat = 3.0
    vespo_lambda_neg: PositiveFloat = 2.0
    entropy_coef: NonNegativeFloat = 0.0  # of a bonus for the entropy; 0: none. With a target: the first
    entropy_target: PositiveFloat | None = None  # nats per token; below it the coefficient grows. None: it is fixed
    entropy_coef_delta: PositiveFloat = 0.005  # what it moves by after each update
    entropy_coef_max: PositiveFloat = 1.0
    beta: NonNegativeFloat = 0.0  # KL coefficient; 0: no reference model in memory
    use_bias_correction_kl: bool = False  # KL times the ratio, as DeepSeek-V3.2
    ref_model_sync_steps: NonNegativeInt = 0  # update the reference model every N steps; 0: never
    steps_per_generation: PositiveInt = 1  # optimizer steps (mini-batches) per rollout; R1-Zero: 16
    mask_truncated_completions: bool = False  # those cut by their length limit have no weight
    # Experts of an update: its own (none), those before the rollout's first update (R2), the engine's (R3); docs/moe.md
    routing_replay: Literal["none", "R2", "R3"] = "none"
    sampling_mask: bool = False  # log-probs over what top_p, top_k and min_p of the rollout kept (DeepSeek-V3.2)
    off_policy_mask_threshold: PositiveFloat | None = None  # of DeepSeek-V3.2's mask; None: off
    # For a sampler that is not the trainer's policy: tis, sequence_tis, mis, token_mis, icepop or geometric.
    importance_sampling_correction: Annotated[str, AfterValidator(_known_correction)] | None = None
    importance_sampling_clip_min: NonNegativeFloat | None = None  # None: the correction's own bounds
    importance_sampling_clip_max: PositiveFloat | None = None  # likewise
    # The run stops above this mean |log p_trainer - log p_engine|. None: 1e-3 in float32, 0.05 in bfloat16; ten times
    # that with a correction or dppo, but not before the first step.
    max_logp_difference: PositiveFloat | None = None

    @property
    def clip_high(self) -> float:
        """Of the upper clip."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def is_corrected(self) -> bool:
        """Whether the loss weighs what separates the engine from the trainer."""
        return self.importance_sampling_correction is not None or self.loss_type in RATIO_TO_ENGINE

    @property
    def trains_entropy(self) -> bool:
        """Whether the loss needs the entropy's gradient."""
        return self.entropy_coef > 0 or self.entropy_target is not None

    @property
    def selects_tokens(self) -> bool:
        """Whether tokens are held back by statistics of their whole mini-batch."""
        return self.loss_type in ("clip_cov", "kl_cov")

    @property
    def trains_without_advantage(self) -> bool:
        """Whether a completion whose advantage is 0 has a gradient."""
        penalised = self.loss_type == "dppo" and self.dppo_log_ratio_coef > 0
        return self.beta > 0 or self.trains_entropy or penalised


def conflicts(algorithm: AlgorithmConfig) -> Iterator[str]:
    """Options that the chosen loss would ignore, or that mean nothing together."""
    loss, correction = algorithm.loss_type, algorithm.importance_sampling_correction
    changed = {
        name: value
        for name, field in AlgorithmConfig.model_fields.items()
        if (value := getattr(algorithm, name)) != field.default
    }
    clipped = [name for name in LOSSES if name not in ("cispo", "sapo", "kl_cov", "vespo", "dppo")]
    token_level = ("clip_cov", "kl_cov", "vespo", "dppo")
    only = {
        "epsilon": clipped,
        "epsilon_high": [*clipped, "cispo"],
        "delta": clipped,
        "importance_sampling_level": [name for name in LOSSES if name not in token_level],
        "sapo_temperature_pos": ["sapo"],
        "sapo_temperature_neg": ["sapo"],
        "dppo_delta": ["dppo"],
        "dppo_log_ratio_coef": ["dppo"],
        "cov_ratio": ["clip_cov", "kl_cov"],
        "clip_cov_min": ["clip_cov"],
        "clip_cov_max": ["clip_cov"],
        "kl_cov_coef": ["kl_cov"],
        **{f"vespo_{name}": ["vespo"] for name in ("k_pos", "lambda_pos", "k_neg", "lambda_neg")},
    }
    for name, losses in only.items():
        if name in changed and loss not in losses:
            yield (
                f"algorithm.{name}={changed[name]} with loss_type={loss!r}: only {', '.join(losses)} "
                f"use{'s' * (len(losses) == 1)} it. Remove it, or choose one of them."
            )
    if loss == "cispo" and algorithm.clip_high < 1:
        yield (
            f"algorithm.epsilon_high={algorithm.epsilon_high} with loss_type='cispo': it bounds the ratio itself, so "
            "it must be above 1. Set algorithm.epsilon_high=5.0."
        )
    if algorithm.delta is not None and algorithm.delta <= 1 + algorithm.clip_high:
        yield (
            f"algorithm.delta={algorithm.delta}: must be above the clip, which ends at {1 + algorithm.clip_high:g}. "
            "Set a larger one, such as 3.0."
        )
    if algorithm.clip_cov_min >= algorithm.clip_cov_max:
        yield (
            f"algorithm.clip_cov_min={algorithm.clip_cov_min}: must be below clip_cov_max={algorithm.clip_cov_max}. "
            "Exchange them."
        )
    if loss == "kl_cov" and algorithm.steps_per_generation == 1:
        yield (
            "algorithm.loss_type='kl_cov' with steps_per_generation=1: its penalty is |log ratio|, and with one update "
            "per rollout every ratio is 1, so it has no gradient. Set algorithm.steps_per_generation above 1, or use "
            "clip_cov."
        )
    if loss in RATIO_TO_ENGINE and correction:
        yield (
            f"algorithm.importance_sampling_correction={correction!r} with loss_type={loss!r}: its ratio is to the "
            "engine already. Remove the correction."
        )
    yield from _bound_conflicts(algorithm)
    if _clips_sequences(algorithm) and algorithm.steps_per_generation > 1 and algorithm.epsilon >= WIDE_FOR_SEQUENCES:
        yield (
            f"algorithm.epsilon={algorithm.epsilon} with loss_type={loss!r}: it clips a completion's mean ratio, which "
            "hardly leaves 1, so it would clip nothing. Set algorithm.epsilon=3e-4 and epsilon_high=4e-4 (2507.18071)."
        )
    if algorithm.routing_replay == "R2" and algorithm.steps_per_generation == 1:
        yield (
            "algorithm.routing_replay='R2' with steps_per_generation=1: it replays the routes from before a rollout's "
            "first update, which is the only one. Set algorithm.routing_replay=none, or R3 for the engine's routes."
        )
    if algorithm.use_bias_correction_kl and not algorithm.beta:
        yield (
            "algorithm.use_bias_correction_kl=true with algorithm.beta=0: there is no KL term to correct. Set "
            "algorithm.beta above 0, or remove it."
        )
    yield from _entropy_conflicts(algorithm, changed)
    yield from _advantage_conflicts(algorithm, changed)


def _clips_sequences(algorithm: AlgorithmConfig) -> bool:
    """Whether the clipped ratio is one per completion."""
    if algorithm.loss_type in ("gspo", "gspo_token", "luspo"):
        return algorithm.importance_sampling_level in (None, "sequence", "sequence_token")
    averaged = algorithm.importance_sampling_level in ("sequence", "sequence_token")
    return averaged and algorithm.loss_type in ("grpo", "dr_grpo", "dapo", "bnpo")


def _bound_conflicts(algorithm: AlgorithmConfig) -> Iterator[str]:
    """A ratio of 1, where sampler and trainer agree, must lie within a correction's bounds."""
    low, high = algorithm.importance_sampling_clip_min, algorithm.importance_sampling_clip_max
    correction = algorithm.importance_sampling_correction
    if not correction and (low, high) != (None, None):
        yield (
            "algorithm.importance_sampling_clip_min and _clip_max bound a correction, and there is none. Set "
            "algorithm.importance_sampling_correction, such as tis."
        )
    elif low is not None and low >= 1:
        yield (
            f"algorithm.importance_sampling_clip_min={low}: must be below 1, the ratio where sampler and trainer "
            "agree. Lower it."
        )
    elif high is not None and (high < 1 or (high == 1 and correction not in ("tis", "sequence_tis"))):
        yield (
            f"algorithm.importance_sampling_clip_max={high}: must be above 1, the ratio where sampler and trainer "
            "agree. Raise it."
        )


def _entropy_conflicts(algorithm: AlgorithmConfig, changed: Mapping[str, Any]) -> Iterator[str]:
    if algorithm.entropy_target is None:
        for name in ("entropy_coef_delta", "entropy_coef_max"):
            if name in changed:
                yield (
                    f"algorithm.{name}={changed[name]} without entropy_target: the coefficient is fixed. Set "
                    "algorithm.entropy_target to an entropy in nats, or remove it."
                )
    elif algorithm.entropy_coef > algorithm.entropy_coef_max:
        yield (
            f"algorithm.entropy_coef={algorithm.entropy_coef}: must not be above "
            f"entropy_coef_max={algorithm.entropy_coef_max}. Raise entropy_coef_max."
        )


def _advantage_conflicts(algorithm: AlgorithmConfig, changed: Mapping[str, Any]) -> Iterator[str]:
    if "pass_k" in changed and algorithm.advantage_estimator != "pass_at_k":
        yield (
            f"algorithm.pass_k={algorithm.pass_k} with advantage_estimator={algorithm.advantage_estimator!r}: only "
            "the estimator 'pass_at_k' uses it. Remove one of them."
        )
    if algorithm.advantage_estimator != "group":
        for name in ("scale_rewards", "multi_objective_aggregation"):
            if name in changed:
                yield (
                    f"algorithm.{name}={changed[name]!r} with advantage_estimator={algorithm.advantage_estimator!r}: "
                    "only the estimator 'group' uses it. Remove one of them."
                )
