"""Advantages of steps (2402.03300 section 4.1.3), and the plan that they reach."""

import math
from typing import Any

import numpy as np
import pytest

from grpo.algorithm.advantage import group_relative_advantages, step_advantages
from grpo.algorithm.plan import Plan, Shapes, check_steps
from grpo.learner.batch import assemble
from grpo.recipe.algorithm import AlgorithmConfig
from rewards.runner.score import ScoredGroup
from rewards.runner.values import LAST, Steps
from rollout.types import Completion, Group, Problem
from tests.grpo.algorithm import oracle


def scored(steps: list[Steps], length: int = 6) -> ScoredGroup:
    one = Completion(token_ids=[5] * length, logprobs=[-1.0] * length, text="x", finish_reason="stop", policy_version=0)
    group = Group(problem=Problem(id="p", prompt="q"), prompt_ids=[1], completions=[one] * len(steps))
    totals = [sum(reward for _, reward in of_one) for of_one in steps]
    return ScoredGroup(group=group, rewards=totals, breakdown={"r": list(totals)}, steps=steps)


def plan(groups: list[ScoredGroup], **settings: Any) -> Plan:
    return Plan.of(Shapes.of(groups), AlgorithmConfig(**settings), max_completion_length=6, seed=0)


def by_hand(groups: list[list[Steps]], length: int) -> list[list[list[float]]]:
    """The advantage of every token, one token at a time: steps that end at or after it, normalised in the group."""
    result = []
    for group in groups:
        rewards = [reward for steps in group for _, reward in steps]
        mean = sum(rewards) / len(rewards)
        deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)) + 1e-4
        result.append(
            [[sum((r - mean) / deviation for end, r in steps if end >= t) for t in range(length)] for steps in group]
        )
    return result


def test_a_token_gets_the_normalised_rewards_of_the_steps_that_end_at_or_after_it() -> None:
    """Rewards 1, 0, 1, 2 have mean 1 and deviation sqrt(2 / 3)."""
    z = 1 / (math.sqrt(2 / 3) + 1e-4)
    ((first, second),) = step_advantages([[[(1, 1.0), (4, 0.0)], [(2, 1.0), (LAST, 2.0)]]], "group")
    assert first == [(1, pytest.approx(-z)), (4, pytest.approx(-z))]
    assert second == [(2, pytest.approx(z)), (LAST, pytest.approx(z))]


def test_the_plan_equals_the_formula_token_by_token() -> None:
    rng = np.random.default_rng(0)
    groups = [
        [[(int(end), float(rng.normal())) for end in np.unique(rng.integers(0, 6, 3))] for _ in range(4)]
        for _ in range(3)
    ]
    made = plan([scored(group) for group in groups])
    for g, rows in enumerate(by_hand(groups, 6)):
        for i, row in enumerate(rows):
            np.testing.assert_allclose(made.of_tokens((g, i), 6), row, atol=1e-12)
            assert made.advantages[g, i] == pytest.approx(row[0], abs=1e-12)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_one_step_at_the_end_is_the_scalar_case_exactly(scale: Any) -> None:
    """Also beside a group without spans."""
    rewards = [[0.1, 0.7, 0.2, 0.2], [1.0, 0.0, 0.0, 3.0]]
    groups = [scored([[(LAST, r)] for r in row]) for row in rewards]
    groups[1] = ScoredGroup(group=groups[1].group, rewards=rewards[1], breakdown={"r": list(rewards[1])})
    made = plan(groups, scale_rewards=scale)
    expected = group_relative_advantages(np.array(rewards), scale)
    assert made.advantages.tolist() == expected.tolist()
    assert all(made.of_tokens((g, i), 3).tolist() == [expected[g, i]] * 3 for g in range(2) for i in range(4))  # type: ignore[union-attr]
    np.testing.assert_allclose(made.advantages, oracle.advantages(rewards, scale), rtol=1e-9)


def test_a_completion_whose_first_token_has_no_advantage_is_trained_on() -> None:
    """Rewards 1, -1 and 0, 0: the steps of the first add up to 0 at its first token, not at its later ones."""
    group = scored([[(1, 1.0), (3, -1.0)], [(1, 0.0), (3, 0.0)]], length=6)
    made = plan([group])
    assert made.advantages.tolist() == [[0, 0]] and made.has_advantage.tolist() == [[True, False]]
    (sample,) = assemble([group], made, keep_zero_advantage=False)
    z = 1 / (math.sqrt(2 / 3) + 1e-4)
    np.testing.assert_allclose(sample.per_token("advantages"), [0, 0, -z, -z, 0, 0], rtol=1e-9)


def test_processes_see_the_same_plan() -> None:
    groups = [scored([[(1, float(g)), (LAST, 1.0)], [(2, 0.5)]]) for g in range(4)]
    shares = [Shapes.of(groups[0::2]), Shapes.of(groups[1::2])]
    whole = Plan.of(Shapes.interleave(shares), AlgorithmConfig(), max_completion_length=6, seed=0)
    alone = plan(groups)
    assert whole.steps is not None and alone.steps is not None and whole.steps.tolist() == alone.steps.tolist()
    part = whole.of_process(1, 2).steps
    assert part is not None and part.tolist() == alone.steps[1::2].tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"advantage_estimator": "rloo"},
        {"advantage_estimator": "pass_at_k", "pass_k": 2},
        {"advantage_estimator": "maxrl"},
        {"multi_objective_aggregation": "normalize_then_sum"},
        {"difficulty_weighting": True},
        {"loss_type": "gspo"},
        {"loss_type": "luspo"},
        {"loss_type": "vespo"},
        {"importance_sampling_level": "sequence"},
        {"off_policy_mask_threshold": 0.5},
    ],
)
def test_what_needs_one_advantage_per_completion_refuses_spans(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"reward 'mine' returns spans, so tokens .* have different advantages"):
        check_steps(AlgorithmConfig(**settings), "mine")
    check_steps(AlgorithmConfig(loss_type="gspo_token"), "mine")
