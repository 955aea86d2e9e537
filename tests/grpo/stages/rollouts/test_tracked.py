"""A resumed run trains on each problem once, in whatever order the first one did."""

import pytest

from grpo.stages.rollouts import tracked
from grpo.stages.rollouts.tracked import TrackedStream
from rollout.data.mixture import MixedStream, Part
from tests.grpo.stages.rollouts.made import Hand, ahead, number, problems


def ids(*numbers: int) -> list[str]:
    return [f"countdown/train/{one}" for one in numbers]


def test_the_state_is_the_stream_before_what_is_not_trained_on_and_what_is_of_the_rest() -> None:
    stream = problems()
    assert stream.state_dict() == {"position": 0, "dropped": {}, "trained": []}
    for _ in range(3):
        stream.take(2)
    assert stream.state_dict() == {"position": 0, "dropped": {}, "trained": []}
    stream.trained(ids(1, 2))
    assert stream.state_dict() == {"position": 0, "dropped": {}, "trained": ids(1, 2)}
    stream.trained(ids(0))
    assert stream.state_dict() == {"position": 2, "dropped": {}, "trained": ids(2)}
    stream.trained(ids(3, 4, 5))
    assert stream.state_dict() == {"position": 6, "dropped": {}, "trained": []}


@pytest.mark.parametrize("size", [1, 2, 3, 5])  # of a take after resuming
def test_what_was_trained_on_is_left_out_after_resuming_and_the_rest_is_not(size: int) -> None:
    first = problems()
    for _ in range(3):
        first.take(2)
    first.trained(ids(5, 1, 2))
    resumed = problems()
    resumed.load_state_dict(first.state_dict())
    assert resumed.state_dict() == first.state_dict()
    taken: list[int] = []
    while len(taken) < 6:
        now = [number(prompt) for prompt in resumed.take(size)]
        taken += now
        resumed.trained(ids(*now))
    assert taken[:6] == [0, 3, 4, 6, 7, 8]


def test_lockstep_does_not_take_again_what_a_run_ahead_has_trained_on() -> None:
    first = problems()
    first.take(4)
    first.trained(ids(2, 3))
    one = first.streams[""]
    mixed = MixedStream({"one": Part(one)}, seed=0)
    for stream, state in ((one, first.state_dict()), (mixed, {"taken": 0, "streams": {}, "trained": ids(2, 3)})):
        with pytest.raises(ValueError, match=r"had trained on 2 problems after .* Resume with max_staleness of 1 or"):
            stream.load_state_dict(state)
    problems().load_state_dict(first.state_dict())
    first.trained(ids(0, 1))
    one.load_state_dict(first.state_dict())  # nothing is left beyond the position
    assert one.state_dict()["position"] == 4


def test_a_run_that_is_stopped_and_resumed_trains_on_each_problem_once() -> None:
    engine, stream = Hand(), problems()
    engine.held = {0, 3, 5}
    rollouts = ahead(engine, stream, max_staleness=3, count=4)
    trained: list[int] = []
    for step in range(2):
        engine.version = step
        trained += map(number, rollouts.next(step))
        rollouts.trained()
    trained_then = list(trained)
    rollouts.next(2)  # not trained on
    resumed = problems()
    resumed.load_state_dict(stream.state_dict())
    engine = Hand()
    rollouts = ahead(engine, resumed, max_staleness=3, count=4)
    for step in range(2, 6):
        engine.version = step
        trained += map(number, rollouts.next(step))
        rollouts.trained()
    assert trained_then != list(range(8))  # out of order
    assert sorted(trained) == list(range(24))


def test_processes_agree_on_what_is_trained_and_may_be_another_number_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = [problems(i, 2) for i in range(2)]
    for stream in streams:
        stream.take(4)  # 0, 2 here and 1, 3 there
        stream.take(4)
    own = {0: ids(0, 2, 4), 1: ids(1, 7)}
    everywhere = [(0, one) for one in ids(0, 2, 1)] + [(1, one) for one in ids(4, 7)]
    monkeypatch.setattr(tracked, "gather_object", lambda _: everywhere)
    for i, stream in enumerate(streams):
        stream.trained(own[i])
    states = [stream.state_dict() for stream in streams]
    assert states[0] == states[1] == {"position": 0, "dropped": {}, "trained": ids(0, 1, 2, 4, 7)}
    monkeypatch.undo()
    alone: TrackedStream = problems()
    alone.load_state_dict(states[0])
    assert [number(prompt) for prompt in alone.take(10)] == [3, 5, 6, 8, 9]
