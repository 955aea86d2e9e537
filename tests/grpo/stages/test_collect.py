"""Dynamic sampling: which groups make a batch, whatever the processes and the oversampling; a resumed run."""

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import grpo
from grpo.recipe.algorithm import AlgorithmConfig
from grpo.report.metrics import merge, values
from grpo.report.records import deterministic
from grpo.report.rollout_metrics import Totals
from grpo.stages.collect import Rollout, observe, refill, teaches
from rewards.runner.score import Rewards, RewardSpec, ScoredGroup
from rollout.data.curriculum import Curriculum, CurriculumSettings
from rollout.data.dataset import DatasetSource
from rollout.data.generated import TaskSource
from rollout.data.prompts import Prompter
from rollout.data.stream import ProblemStream
from rollout.engines.base import EngineLostError
from rollout.types import Completion, Group, Problem, Prompt
from tests.conftest import byte_tokenizer
from tests.grpo.stages.test_trainer import rows, write_recipe

WEIGHTS = [1.0]


def scored(rewards: Sequence[float], *, problem: str = "p", truncated: bool = False) -> ScoredGroup:
    reason = "length" if truncated else "stop"
    completions = [
        Completion(token_ids=[5], logprobs=[-0.5], text=str(r), finish_reason=reason, policy_version=0) for r in rewards
    ]
    group = Group(problem=Problem(id=problem, prompt="?"), prompt_ids=[1, 2], completions=completions)
    return ScoredGroup(group, list(rewards), {"right": list(rewards)})


@dataclass
class Process:
    process_index: int = 0
    num_processes: int = 1

    @property
    def is_main_process(self) -> bool:
        return self.process_index == 0


def number(group: ScoredGroup) -> int:
    return int(group.group.problem.id.rpartition("/")[2])


def every_third(prompts: Sequence[Prompt]) -> list[ScoredGroup]:
    """Problems 0, 3, 6, … are solved half of the time, the others always."""
    ids = [prompt.problem.id for prompt in prompts]
    return [scored([float(int(i.rpartition("/")[2]) % 3 > 0), 1.0], problem=i) for i in ids]


def stream(**shard: int) -> ProblemStream:
    prompter = Prompter(byte_tokenizer(), template="{prompt}", max_prompt_length=300)
    return ProblemStream(TaskSource("arithmetic", {}), prompter, seed=0, **shard)


def fill(problems: ProblemStream, process: Process, totals: Totals, **options: Any) -> Rollout:
    arguments = {"sample": every_third, "max_rounds": 10, **options}
    return refill(
        problems,
        arguments.pop("sample"),
        lambda group: teaches(group, AlgorithmConfig(), WEIGHTS),
        count=4,
        totals=totals,
        processes=process,
        **arguments,
    )


@pytest.mark.parametrize(
    ("settings", "rewards", "expected"),
    [
        ({}, [0.1] * 10, False),  # whose mean is not 0.1 in floating point
        ({}, [0.0, 1.0], True),
        ({}, [float("nan"), float("nan")], False),
        ({"scale_rewards": "batch"}, [0.0, 1.0], True),
        ({"advantage_estimator": "rloo"}, [1.0, 1.0], False),
        ({"advantage_estimator": "maxrl"}, [0.0, 0.0], False),
        ({"advantage_estimator": "reinforce_plus_plus_baseline"}, [0.0, 1.0], True),
        ({"multi_objective_aggregation": "normalize_then_sum"}, [0.0, 1.0], True),
        ({"loss_type": "bnpo", "steps_per_generation": 16}, [0.0, 1.0], True),
    ],
)
def test_a_group_has_a_signal_where_its_own_advantages_are_not_zero(
    settings: dict[str, Any], rewards: list[float], expected: bool
) -> None:
    assert teaches(scored(rewards), AlgorithmConfig(**settings), WEIGHTS) is expected


def test_a_group_whose_completions_are_all_masked_has_no_signal() -> None:
    group = scored([0.0, 1.0], truncated=True)
    assert teaches(group, AlgorithmConfig(), WEIGHTS)
    assert not teaches(group, AlgorithmConfig(mask_truncated_completions=True), WEIGHTS)


def test_a_batch_holds_the_next_groups_with_a_signal_and_the_rest_is_taken_again() -> None:
    problems, totals = stream(), Totals()
    first = fill(problems, Process(), totals)
    assert [number(group) for group in first.groups] == [0, 3, 6, 9]
    assert problems.state_dict()["position"] == 10  # the problem after the last one kept, however many were sampled
    second = fill(problems, Process(), totals)
    assert [number(group) for group in second.groups] == [12, 15, 18, 21]
    measured = values(second.metrics)
    # At a rate of about a third: 12 problems at once, of which all but two are used.
    assert (measured["dynamic_sampling/rounds"], measured["dynamic_sampling/missing_groups"]) == (1.0, 0.0)
    assert measured["dynamic_sampling/sampled_groups"] == 12
    assert measured["dynamic_sampling/acceptance_rate"] == pytest.approx(1 / 3)
    # Rewards are those of all that was sampled: 0.5 in a third of the groups, else 1. The batch's mean is 0.5.
    assert measured["reward"] == pytest.approx(5 / 6)
    assert measured["frac_reward_zero_std"] == pytest.approx(2 / 3)


def test_oversampling_changes_no_batch() -> None:
    def batches(rate: float) -> list[int]:
        problems, totals = stream(), Totals()
        found = []
        for _ in range(3):
            totals.load_state_dict({"num_tokens": 0.0, "groups": 100.0, "accepted": 100 * rate})
            found += [number(group) for group in fill(problems, Process(), totals).groups]
        return found

    assert batches(1.0) == batches(0.3) == batches(0.0) == list(range(0, 36, 3))


def in_processes(world: int, work: Callable[[Process, Callable[[list], list]], Any]) -> list[Any]:
    """Threads stand in for processes."""
    barrier, slots = threading.Barrier(world), [None] * world

    def of(index: int) -> Any:
        def gather(items: list) -> list:
            slots[index] = items  # type: ignore[call-overload]
            barrier.wait(timeout=30)
            found = [item for part in slots for item in part or ()]
            barrier.wait(timeout=30)
            return found

        return work(Process(index, world), gather)

    with ThreadPoolExecutor(world) as pool:
        return [future.result() for future in [pool.submit(of, index) for index in range(world)]]


@pytest.mark.parametrize("world", [2, 4])
def test_processes_together_collect_what_one_collects(world: int) -> None:
    def run(process: Process, gather: Any) -> tuple[list[list[int]], list[Any], dict[str, Any], dict[str, Any]]:
        shard = {"process_index": process.process_index, "num_processes": process.num_processes}
        problems, totals = stream(**shard), Totals()
        rollouts = [fill(problems, process, totals, gather=gather) for _ in range(3)]
        groups = [[number(group) for group in rollout.groups] for rollout in rollouts]
        return groups, [rollout.metrics for rollout in rollouts], problems.state_dict(), totals.state_dict()

    (alone,) = in_processes(1, run)
    found = in_processes(world, run)
    for step in range(3):
        shares = [groups[step] for groups, *_ in found]
        assert [shares[i % world][i // world] for i in range(4)] == alone[0][step]  # process p: groups p, p + P, …
        assert values(merge(metrics[step] for _, metrics, *_ in found)) == pytest.approx(values(alone[1][step]))
    assert all(states == list(alone[2:]) for _, _, *states in found)


def test_after_the_last_round_the_step_trains_on_what_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    problems = stream()
    rollout = fill(problems, Process(), Totals(), max_rounds=2)
    # 4 problems give groups 0 and 3; half were accepted, so 4 more are sampled: 6.
    assert [number(group) for group in rollout.groups] == [0, 3, 6, 1]
    assert problems.state_dict()["position"] == 8
    assert values(rollout.metrics)["dynamic_sampling/missing_groups"] == 1
    assert "found 3 of 4 groups with a signal among 8 in 2 rounds" in capsys.readouterr().err


def test_an_engine_lost_in_one_process_is_lost_in_all() -> None:
    def run(process: Process, gather: Any) -> str:
        def sample(prompts: Sequence[Prompt]) -> list[ScoredGroup]:
            if process.process_index == 1:
                raise EngineLostError("no server is left")
            return every_third(prompts)

        shard = {"process_index": process.process_index, "num_processes": process.num_processes}
        with pytest.raises(EngineLostError, match="no server is left") as error:
            fill(stream(**shard), process, Totals(), sample=sample, gather=gather)
        return str(error.value)

    assert in_processes(2, run) == ["no server is left"] * 2


def right(prompts: list, completions: list, **columns: Any) -> list[float]:
    raise AssertionError("the groups are scored already")


def test_pass_rates_of_all_processes_reach_every_curriculum_in_the_stream_s_order(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([{"prompt": str(i)} for i in range(6)]))
    rewards = Rewards([RewardSpec(function=right)], num_workers=0)

    def run(process: Process, gather: Any) -> dict[str, Any]:
        shard = {"process_index": process.process_index, "num_processes": process.num_processes}
        prompter = Prompter(byte_tokenizer(), template="{prompt}", max_prompt_length=9)
        curriculum = Curriculum(CurriculumSettings(replay_after=3), seed=0)
        source = DatasetSource(str(tmp_path / "rows.json"))
        problems = ProblemStream(source, prompter, seed=0, curriculum=curriculum, **shard)
        for step in range(2):  # row r passes with r of 5 completions
            prompts = problems.take(6)
            groups = [scored([float(i < int(str(p.problem.prompt))) for i in range(5)]) for p in prompts]
            used = {
                process.process_index + i * process.num_processes: x
                for i, x in enumerate(zip(prompts, groups, strict=True))
            }
            metrics = observe(problems, used, rewards, None, step, gather=gather)
        assert values(metrics) == {"curriculum/pass_rate": pytest.approx(0.5), "curriculum/skipped_rows": 0.0}
        return problems.state_dict()

    (alone,) = in_processes(1, run)
    assert alone["curriculum"]["rates"] == {row: row / 5 for row in range(6)}
    assert [step for step, _ in alone["curriculum"]["replays"]] == [3, 4]  # row 0, in each epoch
    assert in_processes(2, run) == [alone, alone]


RARELY = """
def rarely(prompts, completions, **columns):
    return [float(sum(map(ord, text)) % 5 == 0) for text in completions]
"""


def test_a_resumed_run_writes_what_an_uninterrupted_one_writes(tiny_v3: Path, tmp_path: Path) -> None:
    """With dynamic sampling, a curriculum with replays, and schedules that change at the step of the checkpoint."""
    (tmp_path / "reward.py").write_text(RARELY)
    (tmp_path / "problems.json").write_text(json.dumps([{"prompt": f"{i} + {i}"} for i in range(12)]))

    def recipe(name: str) -> str:
        (tmp_path / name).mkdir()
        path = write_recipe(
            tmp_path / name,
            tiny_v3,
            rollout={"dynamic_sampling": True, "num_generations": 2, "max_completion_length": 8, "engine": "hf"},
            trainer={"max_steps": 4, "save_steps": 2, "save_total_limit": 4, "num_reward_workers": 1},
            evaluation={"num_problems": 0},
        )
        written = yaml.safe_load(path.read_text()) | {
            "data": {
                "dataset_name": str(tmp_path / "problems.json"),
                "max_prompt_length": 40,
                "curriculum": {"low": 0.1, "high": 0.9, "revisit": 0.5, "replay_after": 1},
            },
            "rewards": [{"function": f"{tmp_path}/reward.py:rarely"}],
            "schedules": {"rollout.max_completion_length": {0: 5, 2: 8}, "rollout.temperature": {0: 1.0, 2: 0.7}},
        }
        path.write_text(yaml.safe_dump(written))
        return str(path)

    grpo.train(recipe("whole"))
    resumed = recipe("resumed")
    grpo.train(resumed)
    shutil.rmtree(tmp_path / "resumed" / "run" / "checkpoint-4")
    grpo.train(resumed, trainer={"resume_from_checkpoint": True})
    for name in ("metrics.jsonl", "samples.jsonl"):
        whole, again = (
            [deterministic(row) for row in rows(tmp_path / run / "run", name)] for run in ("whole", "resumed")
        )
        assert whole == again
    steps = rows(tmp_path / "whole" / "run")
    assert any(step["dynamic_sampling/rounds"] > 1 for step in steps)
    assert all(step["dynamic_sampling/missing_groups"] == 0 for step in steps)
    assert all(step["frac_trained_samples"] == 1.0 for step in steps)
    assert all(
        step["frac_reward_zero_std"] == pytest.approx(1 - step["dynamic_sampling/acceptance_rate"]) for step in steps
    )
    assert steps[-1]["curriculum/skipped_rows"] > 0
    # The trainer's temperature follows the engine's: else their log-probs would differ.
    assert [step["completions/max_length"] for step in steps] == [5, 5, 8, 8]
    assert all(step["sampling/sampling_logp_difference/mean"] < 1e-4 for step in steps)
