"""What samples say about a model: pass@k, cons@k, and intervals that know which samples belong to one problem.

Plain functions of numbers; every one has its oracle in tests/grpo/evaluation/test_estimators.py.
"""

import math
import statistics
from collections.abc import Iterable, Sequence

_Z = statistics.NormalDist().inv_cdf(0.975)


def mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Chance that at least one of k completions, drawn from num_samples >= k without replacement, is correct.

    Unbiased for pass@k: 1 - C(n-c, k) / C(n, k) (2107.03374, equation 1).
    """
    assert 0 <= num_correct <= num_samples >= k
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def consensus(classes: Sequence[int | None], correct: Sequence[bool]) -> float:
    """cons@k of one problem: 1.0 where the most frequent answer is correct, 0.0 where it is not or nobody answered.

    classes: which answer each sample gives, equal answers under equal numbers; None: no answer, no vote. A tie is
    resolved by expectation: the mean over the answers that are tied.
    """
    votes: dict[int, list[bool]] = {}
    for answer, is_correct in zip(classes, correct, strict=True):
        if answer is not None:
            votes.setdefault(answer, []).append(is_correct)
    most = max(map(len, votes.values()), default=0)
    return mean(mean(judged) for judged in votes.values() if len(judged) == most) if votes else 0.0


def clustered_interval(shares: Sequence[float]) -> tuple[float, float]:
    """95% interval for the mean of each problem's share of correct completions, over new problems and new samples.

    Completions of one problem are alike, so only problems count as independent: SE² = var(shares) / N. The interval is
    Wilson's for the effective sample size p(1-p)/SE², less by (1.96/t)² as SE² itself is estimated (Korn and Graubard
    1998; Dean and Pagano 2015). Unlike p ± 1.96 SE it stays within 0..1 and covers better near the ends: simulated
    93-97% from 30 problems on, 87% for 10 with a mean of 0.1. A problem is worth one sample at least, so that with one
    completion each, or where all problems agree, the interval is Wilson's for N samples.
    """
    p, size = mean(shares), float(len(shares))
    if (variance := statistics.variance(shares) / size if size > 1 else 0.0) > 0:
        size = max(size, p * (1 - p) / variance * (_Z / _student(len(shares) - 1)) ** 2)
    center = (p + _Z * _Z / (2 * size)) / (1 + _Z * _Z / size)
    half = _Z / (1 + _Z * _Z / size) * math.sqrt(p * (1 - p) / size + _Z * _Z / (4 * size * size))
    return max(0.0, center - half), min(1.0, center + half)


def paired_interval(differences: Sequence[float]) -> tuple[float, float]:
    """95% interval for the mean of differences of two models on the same problems: d ± t SE, SE² = var(d) / N.

    What the problems have in common cancels, which makes it narrower than two separate intervals suggest. One problem
    says nothing about others: the interval is then -1..1, and no interval reaches beyond that.
    """
    if len(differences) < 2:
        return -1.0, 1.0
    d, half = (
        mean(differences),
        _student(len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5,
    )
    return max(-1.0, d - half), min(1.0, d + half)


def _student(degrees: int) -> float:
    """97.5% quantile of Student's t, by the expansion around the normal one (Abramowitz and Stegun 26.7.5)."""
    if degrees < 5:  # where the expansion is not good enough
        return (12.706, 4.303, 3.182, 2.776)[degrees - 1]
    z, n = _Z, degrees
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed: percentile(lengths, 0.95)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
