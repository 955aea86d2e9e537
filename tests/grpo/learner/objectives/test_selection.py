"""The tokens that Clip-Cov and KL-Cov hold back, of whole mini-batches."""

import threading
from typing import Any

import numpy as np
import pytest

from grpo.algorithm.covariance import selection_keys, smallest
from grpo.learner import objective
from grpo.learner.batch import Sample
from grpo.learner.objective import select_tokens
from grpo.recipe.algorithm import AlgorithmConfig
from tests.grpo.algorithm import oracle

COVARIANCE = np.array([0.5, 2.0, 6.0, 3.0, -1.0, 1.5])
PRIORITY = np.array([0.1, 0.9, 0.0, 0.2, 0.3, 0.5])
ALGORITHMS: list[dict[str, Any]] = [
    {"loss_type": "kl_cov", "cov_ratio": 0.2, "steps_per_generation": 2},
    {"loss_type": "clip_cov", "cov_ratio": 0.2, "clip_cov_min": 0.1, "clip_cov_max": 1.0, "steps_per_generation": 2},
]


def selected(band: tuple[float, float] | None, share: float) -> list[int]:
    keys = selection_keys(COVARIANCE, PRIORITY, band)
    return np.flatnonzero(keys <= smallest(keys, share, len(keys)).max(initial=-np.inf)).tolist()


def test_kl_cov_takes_the_largest_covariances() -> None:
    assert selected(None, 0.34) == [2, 3]
    assert selected(None, 1e-4) == [2]  # at least one, as published
    assert selected(None, 1.0) == [0, 1, 2, 3, 5]  # what covaries negatively keeps the policy unsure


def test_clip_cov_draws_inside_its_band_by_priority() -> None:
    assert selected((1.0, 5.0), 0.34) == [3, 5]
    assert selected((1.0, 5.0), 1.0) == [1, 3, 5]  # fewer in the band than asked for
    assert selected((7.0, 8.0), 1.0) == []


def make_samples() -> list[Sample]:
    rng = np.random.default_rng(0)
    return [
        Sample(
            problem_id=str(i),
            prompt_ids=[1],
            completion_ids=rng.integers(0, 50, 6).tolist(),
            mini_batch=i % 4 // 2,
            mask=[True, True, i % 3 > 0, True, True, True],
            sampling_logprobs=rng.normal(-1, 1, 6),
            advantages=float(i % 3 - 1),
            token_weights=0.1,
        )
        for i in range(12)
    ]


@pytest.mark.parametrize("settings", ALGORITHMS, ids=["kl_cov", "clip_cov"])
def test_the_selection_is_the_oracles_of_each_mini_batch(settings: dict[str, Any]) -> None:
    algorithm = AlgorithmConfig(**settings, entropy_coef=0.1)  # with a bonus no sample is dropped
    samples = select_tokens(make_samples(), algorithm, seed=0)
    band = (0.1, 1.0) if algorithm.loss_type == "clip_cov" else None
    for step in (0, 1):
        own = [s for s in samples if s.mini_batch == step]
        sequences = [{"logprobs": s.per_token("sampling_logprobs"), "advantage": s.advantages} for s in own]
        expected, count = oracle.held_back(sequences, share=0.2, band=band)
        got = [(i, int(t)) for i, s in enumerate(own) for t in np.flatnonzero(s.per_token("selected"))]
        assert len(got) == min(count, len(expected)) == 6  # 0.2 of 34 tokens
        assert set(got) <= set(expected)
    assert not any(np.asarray(s.selected)[~s.sampled].any() for s in samples)


@pytest.mark.parametrize("settings", ALGORITHMS, ids=["kl_cov", "clip_cov"])
def test_the_selection_does_not_depend_on_order_or_processes(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm, samples = AlgorithmConfig(**settings), make_samples()
    whole = {s.problem_id: list(s.per_token("selected")) for s in select_tokens(samples, algorithm, seed=0)}
    backwards = {s.problem_id: list(s.per_token("selected")) for s in select_tokens(samples[::-1], algorithm, seed=0)}
    assert backwards == whole
    other = {s.problem_id: list(s.per_token("selected")) for s in select_tokens(samples, algorithm, seed=1)}
    assert (other == whole) == (algorithm.loss_type == "kl_cov")  # Clip-Cov draws anew

    # Two processes, as threads that exchange what `gather_object` is given.
    barrier, boxes = threading.Barrier(2), [[], []]

    def gather(objects: list[Any]) -> list[Any]:
        boxes[int(threading.current_thread().name)] = objects
        barrier.wait(timeout=60)
        everything = [*boxes[0], *boxes[1]]
        barrier.wait(timeout=60)
        return everything

    monkeypatch.setattr(objective, "gather_object", gather)
    split: list[Sample] = []

    def work(own: list[Sample]) -> None:
        split.extend(select_tokens(own, algorithm, seed=0))

    threads = [threading.Thread(name=str(rank), target=work, args=[samples[rank::2]]) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {s.problem_id: list(s.per_token("selected")) for s in split} == whole


def test_what_has_no_gradient_is_dropped_after_it_was_counted() -> None:
    samples = make_samples()
    kept = select_tokens(samples, AlgorithmConfig(**ALGORITHMS[1]), seed=0)
    assert {s.problem_id for s in kept} == {s.problem_id for s in samples if s.advantages}
    balanced = select_tokens(samples, AlgorithmConfig(**ALGORITHMS[1]), seed=0, keep_zero_advantage=True)
    assert [s.problem_id for s in balanced] == [s.problem_id for s in samples]  # a balance loss is of them all
    none = AlgorithmConfig(loss_type="clip_cov", clip_cov_min=50.0, clip_cov_max=60.0, steps_per_generation=2)
    assert not any(np.any(s.selected) for s in select_tokens(samples, none, seed=0))
    assert select_tokens([], none, seed=0) == []
