"""Who waits for whom when one side is slow, in a time that passes only when a test says so: nobody waits for ever."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from grpo.stages.rollouts import ahead as module
from rewards.runner.call import Scores
from rewards.runner.score import Rewards, RewardSpec, Submitted
from rollout.types import Group, Prompt, Sampling
from tests.grpo.stages.rollouts.made import Hand, ahead, group, length, number, problems, without_deadlock

STEPS = 6
SLOW, TRAINING = 10.0, 1.0  # seconds


class World(threading.Condition):
    """The condition that the trainer waits on, and the time: each wait lets one thing happen, in another thread.

    A wait that nothing would end fails at once; one that is not notified of what happened never ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.events: list[Callable[[], object]] = []  # what the slow side has still to do
        self.which = 0  # of them: 0 is the oldest, -1 the newest
        self.waits = 0
        self._happening = threading.Thread()

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is None
        if self._happening.is_alive():  # woken while it was under way: let it end, and look again
            self.release()
            self.settle()
            self.acquire()
            return True
        assert self.events, "deadlock: the trainer waits, and nothing is left to happen"
        self.waits += 1
        self.now += SLOW
        self._happening = threading.Thread(target=self.events.pop(self.which))
        self._happening.start()
        return super().wait()

    def settle(self) -> None:
        """Until what happened last has ended."""
        if self._happening.is_alive():
            self._happening.join()


class SlowServer(Hand):
    """Its groups are finished one at a time, while the trainer waits."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def submit(self, prompt: Prompt, sampling: Sampling) -> Future[Group]:
        self.asked.append(number(prompt))
        future: Future[Group] = Future()
        made = group(prompt, self.version)
        self._world.events.append(lambda: future.set_result(made))
        return future


class SlowRewards(Rewards):
    """Groups are scored one at a time, while the trainer waits."""

    def __init__(self, world: World) -> None:
        super().__init__([RewardSpec(function=length)], num_workers=0)
        self._world = world

    def submit(self, group: Group) -> Submitted:
        submitted = super().submit(group)
        future: Future = Future()
        self._world.events.append(lambda: future.set_result(Scores([], {}, {}, [])))
        return Submitted(submitted.group, submitted.answers, future)


def trained(
    monkeypatch: pytest.MonkeyPatch, k: int, slow: str, newest_first: bool = False
) -> list[tuple[list[int], int, dict[str, Any]]]:
    """Six rollouts of two problems: of each, the problems, how often the trainer waited, and the metrics."""
    world = World()
    world.which = -1 if newest_first else 0
    monkeypatch.setattr(module, "Condition", lambda: world)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: world.now))
    engine = SlowServer(world) if slow == "server" else Hand()
    rollouts = ahead(engine, problems(), SlowRewards(world) if slow == "reward" else None, max_staleness=k)
    found: list[tuple[list[int], int, dict[str, Any]]] = []

    def run() -> None:
        for step in range(STEPS):
            engine.version, world.waits = step, 0
            numbers = [number(one) for one in rollouts.next(step)]
            world.settle()
            world.now += SLOW if slow == "trainer" else TRAINING
            metrics: dict[str, Any] = {name: metric.value for name, metric in rollouts.trained().items()}
            found.append((numbers, world.waits, metrics))
            assert engine.asked == list(range(2 * (step + 1) + round(2 * metrics["rollout/ahead"])))  # and no further

    without_deadlock(run)
    assert len(found) == STEPS
    return found


IN_TURN = [[2 * step, 2 * step + 1] for step in range(STEPS)]


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize(
    ("slow", "waits", "idle_trainer", "idle_generator"),
    [
        ("server", 2, 20 / 21, 0.0),  # for each of its groups, and the server never rests
        ("reward", 2, 20 / 21, 1.0),  # both wait for the workers
        ("trainer", 0, 0.0, 1.0),  # only generation waits: being further ahead would gain nothing
    ],
)
def test_the_side_that_is_not_slow_waits(
    monkeypatch: pytest.MonkeyPatch, k: int, slow: str, waits: int, idle_trainer: float, idle_generator: float
) -> None:
    found = trained(monkeypatch, k, slow)
    deeper = k == 2 and slow != "trainer"
    assert [metrics["rollout/ahead"] for *_, metrics in found] == ([1, 1.5, 2, 2, 2, 2] if deeper else [1] * STEPS)
    oldest = [0, 1, 1, 2, 2, 2] if deeper else [0, 1, 1, 1, 1, 1]
    assert [metrics["rollout/staleness_max"] for *_, metrics in found] == oldest
    assert [numbers for numbers, *_ in found] == IN_TURN  # as in lockstep
    assert [waited for _, waited, _ in found] == [waits] * STEPS
    for *_, metrics in found:
        assert metrics["rollout/idle_trainer"] == pytest.approx(idle_trainer)
        assert metrics["rollout/idle_generator"] == idle_generator
        assert metrics["rollout/dropped_stale"] == 0


@pytest.mark.parametrize("slow", ["server", "reward"])
def test_the_oldest_group_that_always_comes_last_is_waited_for_only_when_it_would_be_too_old(
    monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    found = trained(monkeypatch, 1, slow, newest_first=True)
    # Of 0 and 1, 1 comes first, then 2 before 0, which is too old for the third rollout: 4 comes, and is not taken.
    assert [numbers for numbers, *_ in found][:2] == [[1, 2], [0, 3]]
    assert [waited for _, waited, _ in found][:2] == [2, 3]
    everything = [one for numbers, *_ in found for one in numbers]
    assert len(set(everything)) == len(everything) == 2 * STEPS
    assert all(metrics["rollout/dropped_stale"] == 0 for *_, metrics in found)
    assert max(metrics["rollout/staleness_max"] for *_, metrics in found) == 1.0
