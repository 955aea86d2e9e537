"""Which tokens Clip-Cov and KL-Cov hold back (2505.22617): those whose log-prob and advantage covary most.

    cov_t = (log pi_t - mean log pi) (A_t - mean A)        means over all tokens of the mini-batch

Such tokens make the policy surer of itself fastest. Clip-Cov takes its share at random among the covariances in a band,
KL-Cov takes the largest.
"""

import numpy as np


def selection_keys(covariance: np.ndarray, priority: np.ndarray, band: tuple[float, float] | None) -> np.ndarray:
    """[T]: the tokens with the smallest keys are selected; inf is never selected.

    Args:
        covariance: [T]. priority: [T] uniform random numbers.
        band: of Clip-Cov; None: KL-Cov, which leaves out what does not covary at all.
    """
    if band is None:
        return np.where(covariance > 0, -covariance, np.inf)
    return np.where((covariance > band[0]) & (covariance < band[1]), priority, np.inf)


def smallest(keys: np.ndarray, share: float, num_tokens: int) -> np.ndarray:
    """The keys of the selected tokens: max(1, share num_tokens) as published, or fewer if fewer can be.

    keys: of some of the tokens. The smallest of the parts' smallest are those of the whole.
    """
    return np.sort(keys[np.isfinite(keys)])[: max(1, int(share * num_tokens))]
