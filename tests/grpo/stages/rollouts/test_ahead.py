"""Generation ahead of the update: how far, in what order, and what becomes of what is too old."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from rewards.runner.score import RewardError, Rewards, RewardSpec, ScoredGroup
from rollout.engines.base import EngineLostError
from rollout.types import Group
from tests.grpo.stages.rollouts.made import Hand, ahead, number, problems, without_deadlock


def versions(groups: list[ScoredGroup]) -> list[object]:
    return [scored.group.completions[0].policy_version for scored in groups]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_generation_that_keeps_up_is_one_rollout_ahead_and_its_samples_one_update_old(k: int) -> None:
    engine = Hand()
    rollouts = ahead(engine, problems(), max_staleness=k)
    for step in range(7):
        engine.version = step
        groups = rollouts.next(step)
        assert [number(one) for one in groups] == [2 * step, 2 * step + 1]  # as in lockstep
        assert versions(groups) == [max(0, step - 1)] * 2
        assert engine.asked == list(range(2 * (step + 2)))
        metrics = {name: metric.value for name, metric in rollouts.trained().items()}
        assert metrics["rollout/ahead"] == 1.0
        assert metrics["rollout/dropped_stale"] == 0
        assert metrics["rollout/staleness_max"] == min(step, 1)
        assert metrics[f"rollout/staleness_share_{min(step, 1)}"] == 1.0


def test_generation_is_as_far_ahead_as_the_trainer_needs() -> None:
    """Of 8 groups per rollout, 10 shall be finished; the depth moves by half of what is missing, up to 2 rollouts."""
    engine = Hand()
    engine.held = set(range(8, 80))
    rollouts = ahead(engine, problems(), max_staleness=2, count=8)

    def finish(count: int, step: int) -> None:
        for one in sorted(engine.pending)[:count]:
            engine.release(one, step)

    def finished() -> int:
        return sum(asked.is_finished for asked in rollouts._asked)

    depths = []
    for step, count in enumerate((8, 5, 0, 0, 14, 12, 10, 10)):
        engine.version = step
        missing = max(0, 8 - finished()) if step else 0  # the first eight were never held
        waiting = threading.Timer(0.2, finish, [missing, step])
        waiting.start()
        rollouts.next(step)
        waiting.join()
        finish(count - finished(), step)  # during the update
        assert rollouts.trained()["rollout/ahead"].value == len(rollouts._asked) / 8
        depths.append(rollouts._depth)
    assert depths == [9, 12, 16, 16, 14, 13, 13, 13]
    finish(80, 8)  # during an evaluation, which says nothing of the trainer's pace
    rollouts.next(8)
    assert len(rollouts._asked) == 13


def test_what_is_finished_is_taken_and_a_group_that_would_be_too_old_next_time_is_waited_for() -> None:
    engine = Hand()
    engine.held = {0}
    rollouts = ahead(engine, problems(), max_staleness=1)
    assert [number(one) for one in rollouts.next(0)] == [1, 2]
    rollouts.trained()
    engine.version = 1
    threading.Timer(0.2, engine.release, [0, 0]).start()
    assert [number(one) for one in rollouts.next(1)] == [0, 3]


def test_a_group_that_is_too_old_is_dropped_and_its_problem_sampled_again() -> None:
    engine = Hand()
    engine.held = {0, 1, 2}
    rollouts = ahead(engine, problems(), max_staleness=2)
    rollouts._depth = 4  # as after waiting
    seen = [[number(one) for one in rollouts.next(0)]]
    rollouts.trained()
    for step in range(1, 6):
        engine.version = step
        if step == 2:
            engine.release(0, 0)
            engine.release(1, [0, 1])
        if step == 3:
            engine.release(2, [0, 2])
        groups = rollouts.next(step)
        seen.append([number(one) for one in groups])
        dropped = rollouts.trained()["rollout/dropped_stale"].value
        assert dropped == (1 if step == 3 else 0)
        if 2 in seen[-1]:
            assert versions(groups)[seen[-1].index(2)] == 3
    assert seen == [[3, 4], [5, 6], [0, 1], [7, 8], [9, 2], [10, 11]]
    assert engine.asked.count(2) == 2


def test_staleness_is_counted_per_token_in_rollouts() -> None:
    engine = Hand()
    engine.held = {0}
    rollouts = ahead(engine, problems(), max_staleness=2, count=1)
    rollouts._depth = 2  # as after waiting
    rollouts.next(0)
    rollouts.trained()
    engine.version = 1
    engine.release(0, [0, 1])
    assert versions(rollouts.next(1)) == [[0, 1]]
    metrics = {name: metric.value for name, metric in rollouts.trained().items()}
    assert metrics["rollout/staleness_mean"] == 0.5
    assert [metrics[f"rollout/staleness_share_{age}"] for age in range(3)] == [0.5, 0.5, 0.0]
    assert 0 <= metrics["rollout/idle_trainer"] <= 1 and 0 <= metrics["rollout/idle_generator"] <= 1  # type: ignore[operator]


def test_a_lost_engine_ends_the_waiting_and_its_problems_come_again() -> None:
    engine, stream = Hand(), problems()
    rollouts = ahead(engine, stream, max_staleness=1)
    rollouts.next(0)
    rollouts.trained()
    engine.after = lambda future, _: future.set_exception(EngineLostError("no server is left"))
    with pytest.raises(EngineLostError, match="no server is left"):
        rollouts.next(1)
    again = problems()
    again.load_state_dict(stream.state_dict())
    assert [number(one) for one in ahead(Hand(), again, max_staleness=1).next(1)] == [2, 3]


def test_an_error_of_a_reward_reaches_the_trainer() -> None:
    def wrong(completions: list[str], **_: object) -> list[float]:
        raise KeyError("target")

    rewards = Rewards([RewardSpec(function=wrong)], num_workers=0)
    with pytest.raises(RewardError, match="'wrong' raised KeyError"):
        ahead(Hand(), problems(), rewards, max_staleness=1).next(0)


def test_closing_cancels_what_is_being_generated() -> None:
    engine = Hand()
    engine.held = {2, 3}
    rollouts = ahead(engine, problems(), max_staleness=1)
    rollouts.next(0)
    rollouts.close()
    assert all(future.cancelled() for _, future in engine.pending.values())


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("slow", ["server", "reward", "trainer"])
def test_no_side_waits_for_ever_whichever_is_slow(slow: str, k: int, tmp_path: Path) -> None:
    """With real threads and workers; who waits for whom: test_waiting.py."""
    pause = 0.01 if slow == "reward" else 0
    (tmp_path / "mine.py").write_text(
        f"import time\ndef mine(completions, **_):\n    time.sleep({pause})\n    return [1.0] * len(completions)\n"
    )
    rewards = Rewards([RewardSpec(function="mine.py:mine")], num_workers=int(slow == "reward"), base_dir=tmp_path)
    engine = Hand()

    def run() -> None:
        with ThreadPoolExecutor(3) as threads:

            def later(future: Future[Group], made: Group) -> None:
                time.sleep(0.01 if slow == "server" else 0)
                future.set_result(made)

            engine.after = lambda future, made: threads.submit(later, future, made)
            rollouts = ahead(engine, problems(), rewards, max_staleness=k, count=4)
            for step in range(8):
                engine.version = step
                trained.append([number(one) for one in rollouts.next(step)])
                time.sleep(0.02 if slow == "trainer" else 0)
                rollouts.trained()

    trained: list[list[int]] = []
    without_deadlock(run)
    rewards.close()
    everything = [one for numbers in trained for one in numbers]
    assert len(everything) == len(set(everything)) == 32
