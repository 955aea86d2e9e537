"""From scored groups to micro-batches."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from grpo.algorithm.plan import Plan, Shapes
from grpo.learner.batch import PER_TOKEN, Sample, assemble, collate, gathered, pack
from grpo.model.forward.packed import Segments
from grpo.recipe.algorithm import AlgorithmConfig
from rewards.runner.score import ScoredGroup
from rollout.types import Completion, Group, KeptTokens, Problem


def sample(prompt: list[int], completion: list[int], **fields: Any) -> Sample:
    defaults: dict[str, Any] = {"sampling_logprobs": -0.5, "advantages": 1.0, "token_weights": 0.1, "mini_batch": 0}
    return Sample(problem_id="p", prompt_ids=prompt, completion_ids=completion, **{**defaults, **fields})


def scored(lengths: list[int], rewards: list[float], truncated: tuple[int, ...] = ()) -> ScoredGroup:
    completions = [
        Completion(
            token_ids=[5] * n,
            logprobs=[-1.0] * n,
            text="x",
            finish_reason="length" if i in truncated else "stop",
            policy_version=0,
        )
        for i, n in enumerate(lengths)
    ]
    group = Group(problem=Problem(id="p", prompt="q"), prompt_ids=[1, 7], completions=completions)
    return ScoredGroup(group=group, rewards=rewards, breakdown={"r": list(rewards)})


def test_collate_pads_right_and_points_at_the_predicting_positions() -> None:
    batch = collate([sample([1, 7], [5, 2]), sample([1], [9])], pad_token_id=0)
    assert batch.input_ids.tolist() == [[1, 7, 5, 2], [1, 9, 0, 0]]
    assert batch.valid.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.logit_positions.tolist() == [1, 2, 4]
    assert batch.targets.tolist() == [5, 2, 9]


def test_packed_collate_puts_all_in_one_row_with_restarting_positions() -> None:
    batch = collate([sample([1, 7], [5, 2]), sample([1], [9])], pad_token_id=0, packed=True)
    assert batch.input_ids.tolist() == [[1, 7, 5, 2, 1, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert batch.logit_positions.tolist() == [1, 2, 4]
    assert batch.targets.tolist() == [5, 2, 9]


def test_neighbours_with_the_same_prompt_share_its_tokens() -> None:
    samples = [sample([1, 7], [5, 2]), sample([1, 7], [6]), sample([1], [9])]
    batch = collate(samples, pad_token_id=0, packed=True, shared=True)
    assert batch.input_ids.tolist() == [[1, 7, 5, 2, 6, 1, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    assert batch.copies.tolist() == [[2, 2, 1, 1, 1, 1, 1]]
    assert batch.mask.tolist() == [[False, False, True, True, True, False, True]]
    assert batch.logit_positions.tolist() == [1, 2, 1, 5]  # the prompt's end predicts the first token of both
    assert batch.targets.tolist() == [5, 2, 6, 9]
    assert batch.segments == Segments([2, 1], [[2, 1], [1]])


def test_a_prompt_is_shared_by_samples_with_the_same_routes_there() -> None:
    """The second has the first's; the others have another, a part of them, and none."""
    routes = np.arange(6, dtype=np.uint8).reshape(3, 1, 2)
    own = [routes, routes[:2], routes[1:] + 1, routes[1:2], None]
    completions = [[5, 2], [6], [8, 4], [9], [3]]
    samples = [sample([1, 7], ids, routes=each) for ids, each in zip(completions, own, strict=True)]
    batch = collate(samples, pad_token_id=0, packed=True, shared=True)
    assert batch.segments == Segments([2, 2, 2, 2], [[2, 1], [2], [1], [1]])
    assert batch.input_ids.tolist() == [[1, 7, 5, 2, 6, 1, 7, 8, 4, 1, 7, 9, 1, 7, 3]]
    assert batch.routes is not None
    first, third = [[0, 1], [2, 3], [4, 5], [-1, -1], [-1, -1]], [[-1, -1], [3, 4], [5, 6], [-1, -1]]
    assert batch.routes[0, :, 0].tolist() == [*first, *third, [-1, -1], [2, 3], *[[-1, -1]] * 4]
    back = gathered(samples, batch, batch.routes.flatten(0, 1).numpy())
    assert [part[:, 0].tolist() for part in back[:2]] == [routes[:, 0].tolist(), routes[:2, 0].tolist()]
    assert pack(samples[:2], max_tokens=5, packed=True, shared=True) == [[0, 1]]
    assert pack(samples[::2], max_tokens=6, packed=True, shared=True) == [[0], [1], [2]]


def test_shared_prompts_keep_groups_together_and_count_once_against_the_budget() -> None:
    samples = [sample([1] * 6, [5] * n) for n in (2, 1)] + [sample([2] * 6, [5] * n) for n in (3, 1)]
    samples = [samples[i] for i in (0, 2, 1, 3)]
    assert pack(samples, max_tokens=10, packed=True, shared=True) == [[1, 3], [0, 2]]  # 10 and 9 tokens
    assert pack(samples, max_tokens=19, packed=True, shared=True) == [[1, 3, 0, 2]]
    assert pack(samples, max_tokens=8, packed=True, shared=True) == [[1], [3], [0], [2]]


def test_collate_of_nothing_is_one_padding_row_without_tokens() -> None:
    batch = collate([], pad_token_id=3)
    assert batch.input_ids.tolist() == [[3]]
    assert not batch.valid.any()
    assert batch.targets.tolist() == [] and batch.token_weights.tolist() == []


@pytest.mark.parametrize("packed", [False, True])
def test_collate_joins_the_kept_tokens_of_sampled_tokens(packed: bool) -> None:
    first = KeptTokens(np.array([5, 6, 7, 8, 2], dtype=np.int32), np.array([0, 2, 4, 5]))
    second = KeptTokens(np.array([9, 3, 1], dtype=np.int32), np.array([0, 3]))
    samples = [sample([1, 7], [5, 8, 2], kept=first, mask=[True, False, True]), sample([1], [9], kept=second)]
    kept = collate(samples, pad_token_id=0, packed=packed).kept
    assert kept is not None
    assert (kept.ids.tolist(), kept.offsets.tolist()) == ([5, 6, 2, 9, 3, 1], [0, 2, 3, 6])
    assert collate([sample([1], [9])], pad_token_id=0).kept is None


def test_pack_respects_the_budget_with_padding_and_keeps_every_sample_once() -> None:
    lengths = [3, 9, 2, 8, 5, 5, 1, 30]
    samples = [sample([1], [2] * (n - 1)) for n in lengths]
    batches = pack(samples, max_tokens=20)
    assert sorted(i for batch in batches for i in batch) == list(range(8))
    assert batches[0] == [7]  # longer than the budget: alone
    assert all(len(b) * max(lengths[i] for i in b) <= 20 for b in batches[1:])
    assert [lengths[i] for batch in batches for i in batch] == sorted(lengths, reverse=True)


def test_samples_without_gradient_are_dropped_but_count_in_the_denominators() -> None:
    groups = [scored([2, 4], [1.0, 0.0]), scored([3, 3], [1.0, 1.0])]
    whole = Plan.of(Shapes.of(groups), AlgorithmConfig(loss_type="dapo"), max_completion_length=8, seed=0)
    samples = assemble(groups, whole, keep_zero_advantage=False)
    assert [len(s.completion_ids) for s in samples] == [2, 4]
    assert [s.token_weights for s in samples] == pytest.approx([1 / 12] * 2)
    assert len(assemble(groups, whole, keep_zero_advantage=True)) == 4


def test_masked_truncations_and_empty_completions_have_no_gradient() -> None:
    groups = [scored([2, 4, 0], [1.0, 0.0, 0.0], truncated=(1,))]
    masked = AlgorithmConfig(loss_type="grpo", mask_truncated_completions=True)
    whole = Plan.of(Shapes.of(groups), masked, max_completion_length=8, seed=0)
    assert whole.token_weights.tolist() == [[pytest.approx(1 / 6), 0.0, 0.0]]
    assert [len(s.completion_ids) for s in assemble(groups, whole, keep_zero_advantage=True)] == [2]


def test_plan_does_not_depend_on_the_number_of_processes() -> None:
    rng = np.random.default_rng(0)
    groups = [scored(rng.integers(1, 9, 4).tolist(), rng.integers(0, 2, 4).astype(float).tolist()) for _ in range(8)]
    algorithm = AlgorithmConfig(steps_per_generation=4, scale_rewards="batch")
    whole = Plan.of(Shapes.of(groups), algorithm, max_completion_length=8, seed=3)
    parts = [Shapes.of(groups[rank::2]) for rank in range(2)]
    again = Plan.of(Shapes.interleave(parts), algorithm, max_completion_length=8, seed=3)
    for name in Plan.__slots__:
        np.testing.assert_array_equal(getattr(whole, name), getattr(again, name))
    assert np.bincount(whole.mini_batch.ravel()).tolist() == [8, 8, 8, 8]
    np.testing.assert_array_equal(whole.of_process(1, 2).advantages, whole.advantages[1::2])


def test_collate_keeps_old_and_reference_log_probs_in_token_order() -> None:
    samples = [
        sample([1], [5, 2], old_logprobs=np.array([-1.0, -2.0]), ref_logprobs=np.array([-3.0, -4.0])),
        sample([1], [9], old_logprobs=np.array([-5.0]), ref_logprobs=np.array([-6.0])),
    ]
    batch = collate(samples, pad_token_id=0)
    assert batch.old_logprobs is not None and batch.ref_logprobs is not None
    torch.testing.assert_close(batch.old_logprobs, torch.tensor([-1.0, -2.0, -5.0]))
    torch.testing.assert_close(batch.ref_logprobs, torch.tensor([-3.0, -4.0, -6.0]))
    assert collate([sample([1], [5])], pad_token_id=0).old_logprobs is None


def test_tokens_that_the_policy_did_not_sample_are_context_and_nothing_else() -> None:
    tool = sample([1, 7], [5, 8, 8, 2], mask=[True, False, False, True], sampling_logprobs=[-0.1, 0.0, 0.0, -0.2])
    batch = collate([tool, sample([1], [9])], pad_token_id=0)
    assert batch.input_ids.tolist() == [[1, 7, 5, 8, 8, 2], [1, 9, 0, 0, 0, 0]]
    assert batch.mask.tolist() == [[False, False, True, False, False, True], [False, True, *[False] * 4]]
    assert batch.targets.tolist() == [5, 2, 9] and batch.logit_positions.tolist() == [1, 4, 6]
    assert batch.sampling_logprobs.tolist() == pytest.approx([-0.1, -0.2, -0.5])
    assert batch.token_weights.tolist() == pytest.approx([0.1] * 3)


def test_masked_tokens_do_not_count_as_length() -> None:
    group = scored([4, 4], [1.0, 0.0])
    first, second = group.group.completions
    asked = replace(first, mask=[True, False, False, True])
    groups = [replace(group, group=replace(group.group, completions=[asked, second]))]
    assert Shapes.of(groups).lengths.tolist() == [[2, 4]]
    whole = Plan.of(Shapes.of(groups), AlgorithmConfig(loss_type="dapo"), max_completion_length=8, seed=0)
    assert [s.token_weights for s in assemble(groups, whole, keep_zero_advantage=False)] == pytest.approx([1 / 6] * 2)


def test_a_value_for_all_tokens_and_one_for_each_reach_the_micro_batch_alike() -> None:
    fields = {"advantages": [0.5, -0.5], "policy_version": [3, 4]}
    batch = collate([sample([1], [5, 2], **fields), sample([1], [9], policy_version=7)], pad_token_id=0)
    assert batch.advantages.tolist() == [0.5, -0.5, 1.0]
    assert batch.policy_version.tolist() == [3, 4, 7]
    assert set(PER_TOKEN) <= set(Sample.__slots__)
