"""Estimators against brute force, intervals against simulation."""

import itertools
import random
import statistics
from collections import Counter

import pytest

from grpo.evaluation.results.estimators import clustered_interval, consensus, paired_interval, pass_at_k, percentile
from grpo.evaluation.results.summary import answer_classes
from rewards.answers.accuracy import equal_answers


def test_pass_at_k_matches_enumeration_of_all_subsets():
    for n in range(1, 7):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            samples = [1] * c + [0] * (n - c)
            chosen = list(itertools.combinations(samples, k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, chosen)) / len(chosen), abs=1e-12)


def test_pass_at_k_is_exact_for_many_samples():
    assert pass_at_k(1024, 1, 512) == 0.5
    assert pass_at_k(10_000, 1, 1) == pytest.approx(1e-4)


def test_consensus_breaks_ties_in_expectation():
    for answers in itertools.product([0, 1, 2, None], repeat=5):
        votes = Counter(answer for answer in answers if answer is not None)
        # max keeps the first of tied answers
        wins = [max(order, key=votes.__getitem__) == 0 for order in itertools.permutations(votes) if order]
        expected = statistics.fmean(wins) if wins else 0.0
        assert consensus(answers, [answer == 0 for answer in answers]) == pytest.approx(expected)


def test_interval_has_93_to_97_percent_coverage():
    """Problems differ in success rate, four samples each; treating samples as independent would cover 79%."""
    rng = random.Random(0)
    for a, b in ((0.1, 0.9), (0.5, 0.5), (1.2, 0.3)):
        covered = 0
        for _ in range(1500):
            rates = [rng.betavariate(a, b) for _ in range(80)]
            low, high = clustered_interval([sum(rng.random() < rate for _ in range(4)) / 4 for rate in rates])
            covered += low <= a / (a + b) <= high
        assert 0.93 <= covered / 1500 <= 0.97


def test_interval_covers_the_truth_with_few_problems():
    """As in AIME or a single subject; without Student's t the coverage would be 89, 90 and 94%."""
    rng = random.Random(2)
    for problems, a, b in ((5, 0.5, 0.5), (10, 1.2, 0.3), (30, 1.2, 0.3)):
        covered = 0
        for _ in range(1500):
            rates = [rng.betavariate(a, b) for _ in range(problems)]
            low, high = clustered_interval([sum(rng.random() < rate for _ in range(16)) / 16 for rate in rates])
            covered += low <= a / (a + b) <= high
        assert 0.925 <= covered / 1500 <= 0.975, (problems, covered / 1500)


def test_interval_with_one_completion_per_problem_is_wilsons():
    assert clustered_interval([1.0] * 6 + [0.0] * 4) == pytest.approx((0.3127, 0.8318), abs=1e-4)


def test_interval_widens_with_clustering_and_stays_within_0_and_1():
    def width(shares):
        low, high = clustered_interval(shares)
        assert 0 <= low <= statistics.fmean(shares) <= high <= 1
        return high - low

    assert width([0.0, 1.0] * 50) > 1.5 * width([0.25, 0.75] * 50)
    assert clustered_interval([1.0] * 100) == pytest.approx((0.963, 1.0), abs=1e-3)
    assert clustered_interval([0.0] * 100) == pytest.approx((0.0, 0.037), abs=1e-3)
    assert width([0.5]) > 0.8


def test_paired_interval_has_93_to_97_percent_coverage():
    """Two models on the same problems with shared difficulty, four samples each."""
    rng = random.Random(1)
    for problems, gain in ((30, 0.1), (80, 0.0), (80, 0.2)):
        covered = 0
        for _ in range(1500):
            differences = []
            for _ in range(problems):
                rate = 0.8 * rng.betavariate(0.7, 0.7)
                a = sum(rng.random() < rate for _ in range(4))
                differences.append((sum(rng.random() < rate + gain for _ in range(4)) - a) / 4)
            low, high = paired_interval(differences)
            covered += low <= gain <= high
        assert 0.93 <= covered / 1500 <= 0.97, (problems, gain, covered / 1500)


def test_pairing_cancels_problem_difficulty():
    shares = [0.0, 0.25, 0.5, 0.75, 1.0] * 20
    better = [min(1.0, share + 0.25) for share in shares]
    low, high = paired_interval([b - a for a, b in zip(shares, better, strict=True)])
    assert low == pytest.approx(0.2 - 1.984 * statistics.stdev([0.25] * 80 + [0.0] * 20) / 10, abs=1e-4)
    assert high - low < 0.25 * (clustered_interval(better)[1] - clustered_interval(shares)[0])


def test_paired_interval_uses_students_t_and_is_vacuous_for_one_problem():
    for n, quantile in ((2, 12.706), (5, 2.776), (6, 2.571), (10, 2.262), (30, 2.045), (1000, 1.962)):
        differences = [0.1, -0.1] * (n // 2) + [0.0] * (n % 2)
        low, high = paired_interval(differences)
        expected = min(1.0, quantile * statistics.stdev(differences) / n**0.5)
        assert (high - low) / 2 == pytest.approx(expected, rel=2e-3), n
    assert paired_interval([0.5]) == (-1.0, 1.0)


def test_equal_differences_leave_room_for_problems_with_others() -> None:
    """If more than 1 - 0.025^(1/N) of all problems were otherwise, N without one would be rarer than 1 in 40."""
    assert paired_interval([0.5, 0.5, 0.5]) == pytest.approx((-0.5614, 0.8538), abs=1e-4)
    assert paired_interval([1.0] * 3) == pytest.approx((-0.4152, 1.0), abs=1e-4)
    assert paired_interval([0.0] * 100) == pytest.approx((-0.0362, 0.0362), abs=1e-4)
    assert paired_interval([1 / 3, 2 / 3 - 1 / 3, 1 - 2 / 3]) == pytest.approx((-0.6101, 0.8051), abs=1e-4)


def test_percentile_is_the_smallest_value_covering_the_share():
    for values in ([7], [3, 1, 2], list(range(100)), [5] * 10 + [9]):
        for share in (0.5, 0.95, 1.0):
            found = percentile(values, share)
            assert found == min(v for v in values if sum(w <= v for w in values) >= share * len(values))


def test_answers_vote_by_value_or_by_text() -> None:
    said = [("1+2", "right"), ("2+1", "right"), ("9", "wrong"), ("9", "wrong"), (None, "wrong")]
    rows = [{"answer": answer, "verdict": verdict} for answer, verdict in said]
    classes = {voting: answer_classes([rows], voting)[0] for voting in ("text", equal_answers)}
    assert list(classes.values()) == [[0, 1, 2, 2, None], [0, 0, 1, 1, None]]
    right = [row["verdict"] == "right" for row in rows]
    assert [consensus(found, right) for found in classes.values()] == [0.0, 0.5]
