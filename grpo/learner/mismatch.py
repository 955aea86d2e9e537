"""Trainer against engine: the log-probs of the sampled tokens, measured at every step.

The two run the same weights through different code. In float32 they agree to 1e-5 on average; where they do not, the
gradient is that of another policy than the one that sampled.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from grpo.recipe.errors import RunError
from grpo.report.metrics import LogHistogram, Max, Mean, Metric

PREFIX = "sampling/sampling_logp_difference"


def mismatch(trainer: Sequence[np.ndarray], engine: Sequence[np.ndarray]) -> dict[str, Metric]:
    """Mean, largest and 99.9th percentile of |log p_trainer - log p_engine| over tokens."""
    if not sum(len(part) for part in trainer):
        return {}
    difference = np.abs(np.concatenate(trainer) - np.concatenate(engine))
    return {
        f"{PREFIX}/mean": Mean.of(difference),
        f"{PREFIX}/max": Max(float(difference.max())),
        f"{PREFIX}/p999": LogHistogram.of(difference),
    }


class MismatchError(RunError, RuntimeError):
    """Trainer and engine do not compute the same log-probs."""


def check_mismatch(metrics: Mapping[str, float], bound: float, *, step: int, updated: bool) -> None:
    """Stop the run when the mean difference exceeds `bound`, and name the likely cause."""
    mean = metrics.get(f"{PREFIX}/mean", 0.0)
    if mean <= bound:
        return
    p999 = metrics[f"{PREFIX}/p999"]
    if not updated:
        cause = (
            "no update came before this step, so the engine computes the model "
            "differently (precision, rotary embedding, attention or expert kernels) or samples with other settings"
        )
    elif p999 < 10 * mean:
        cause = "all tokens are off alike, after updates: the engine most likely runs older weights than the trainer"
    else:
        cause = (
            "few tokens are far off: in a mixture of experts a near-tie between experts falls differently in low "
            "precision"
        )
    raise MismatchError(
        f"step {step}: mean |log p_trainer - log p_engine| is {mean:.2e}, above "
        f"algorithm.max_logp_difference={bound:g} (99.9th percentile {p999:.2e}). Likely cause: {cause}. "
        "Compare with rollout.engine=hf, or use model.dtype=float32."
    )
