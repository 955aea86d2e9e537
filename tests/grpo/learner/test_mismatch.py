"""The check of every step: trainer and engine agree on the sampled tokens, or the run stops with the likely cause."""

import numpy as np
import pytest

from grpo.learner.mismatch import MismatchError, check_mismatch, mismatch
from grpo.report.metrics import values


def measured(difference: list[float]) -> dict[str, float]:
    return values(mismatch([np.array(difference)], [np.zeros(len(difference))]))  # type: ignore[return-value]


def test_below_the_bound_nothing_happens() -> None:
    check_mismatch(measured([1e-4, -3e-4]), 2.1e-4, step=5, updated=True)
    with pytest.raises(MismatchError):
        check_mismatch(measured([1e-4, -3e-4]), 1.9e-4, step=5, updated=True)


@pytest.mark.parametrize(
    ("difference", "updated", "cause"),
    [
        ([0.2] * 100, False, "no update came before this step"),
        ([0.2] * 100, True, "the engine most likely runs older weights"),
        ([5.0] + [0.0] * 99, True, "a near-tie between experts"),
    ],
)
def test_the_cause_follows_from_what_is_off(difference: list[float], updated: bool, cause: str) -> None:
    with pytest.raises(MismatchError, match=rf"step 7: mean .* is .*Likely cause: .*{cause}"):
        check_mismatch(measured(difference), 1e-3, step=7, updated=updated)
