"""Which rows a curriculum passes over, which problems it draws again, its shards and resume."""

import json
from pathlib import Path
from typing import Any

import pytest

from rollout.data.curriculum import Curriculum, CurriculumSettings
from rollout.data.dataset import DatasetSource
from rollout.data.prompts import Prompter
from rollout.data.stream import ProblemStream
from tests.conftest import byte_tokenizer


@pytest.fixture
def source(tmp_path: Path) -> DatasetSource:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"prompt": str(i)} for i in range(40)]))
    return DatasetSource(str(path))


def stream(source: DatasetSource, shard: dict[str, int] | None = None, **settings: Any) -> ProblemStream:
    curriculum = Curriculum(CurriculumSettings(**settings), seed=0)
    prompter = Prompter(byte_tokenizer(), template="{prompt}", max_prompt_length=20)
    return ProblemStream(source, prompter, seed=0, curriculum=curriculum, **(shard or {}))


def row(prompt) -> int:
    return int(str(prompt.problem.prompt))


def solved(number: int) -> float:
    """Rows 0-19 are always solved, 20-29 half of the time, 30-39 never."""
    return 1.0 if number < 20 else 0.5 if number < 30 else 0.0


def use(walk: ProblemStream, count: int, step: int) -> list[int]:
    """One rollout; returns its rows."""
    walk.begin(step)
    prompts = walk.take(count)
    walk.observe([(prompt.position, solved(row(prompt))) for prompt in prompts], step)
    return [row(prompt) for prompt in prompts]


def test_solved_problems_are_retired_and_revisited_at_the_given_rate(source: DatasetSource) -> None:
    walk = stream(source, low=0.0, high=0.9, revisit=0.25)
    assert sorted(use(walk, 40, 0)) == list(range(40))  # nothing is known yet
    used = [number for step in range(1, 51) for number in use(walk, 20, step)]
    epochs = (walk.epochs or 0) - 1
    easy = sum(number < 20 for number in used)
    assert easy / (20 * epochs) == pytest.approx(0.25, abs=0.05)
    assert (len(used) - easy) / (20 * epochs) == pytest.approx(1.0, abs=0.05)
    assert walk.curriculum is not None
    assert walk.curriculum.skipped == pytest.approx(40 * epochs - len(used), abs=1)


@pytest.mark.parametrize(
    ("settings", "rate", "expected"),
    [
        ({"low": 0.2, "high": 0.8}, 0.2, 1.0),
        ({"low": 0.2, "high": 0.8}, 0.81, 0.1),
        ({"low": 0.2, "high": 0.8}, 0.0, 0.1),
        ({"weighting": "variance"}, 0.5, 1.0),
        ({"weighting": "variance"}, 0.75, 0.75),
        ({"weighting": "variance"}, 1.0, 0.1),
    ],
)
def test_the_probability_of_a_row_follows_its_pass_rate(settings: dict[str, Any], rate: float, expected: float) -> None:
    assert CurriculumSettings(**settings).probability(rate) == pytest.approx(expected)


def test_the_newest_group_counts_half() -> None:
    curriculum = Curriculum(CurriculumSettings(), seed=0)
    for rate in (1.0, 0.0, 0.5):
        curriculum.observe([(7, 0, rate)], 0)
    assert curriculum.rates == {7: 0.5}  # 1, then 0.5, then 0.5
    curriculum.observe([(7, 0, 1.0)], 0)
    assert curriculum.rates == {7: 0.75}


def test_a_hard_problem_is_drawn_once_more_after_some_steps_and_keeps_its_id(source: DatasetSource) -> None:
    walk = stream(source, high=1.0, replay_after=2, replay_below=0.0)
    first = use(walk, 10, 0)
    hard = [number for number in first if number >= 30]
    assert hard
    second = use(walk, 10, 1)
    assert not set(first) & set(second)
    walk.begin(2)
    third = walk.take(10)
    assert [row(prompt) for prompt in third[: len(hard)]] == hard
    assert [prompt.problem.id for prompt in third[: len(hard)]] == [f"rows.json/train/{number}" for number in hard]
    walk.observe([(prompt.position, 0.0) for prompt in third[: len(hard)]], 2)
    walk.begin(4)  # failed again: not queued a second time; those of step 1 were due at 3
    again = [row(prompt) for prompt in walk.take(10)]
    assert again[: sum(number >= 30 for number in second)] == [number for number in second if number >= 30]
    assert not set(hard) & set(again)


SETTINGS: dict[str, Any] = {"low": 0.1, "high": 0.9, "revisit": 0.3, "replay_after": 2}


def test_a_resumed_stream_goes_on_as_an_uninterrupted_one(source: DatasetSource) -> None:
    whole, killed, resumed = (stream(source, **SETTINGS) for _ in range(3))
    for step in range(7):
        assert use(killed, 8, step) == use(whole, 8, step)
    resumed.load_state_dict(killed.state_dict())
    killed.take(8)  # what the killed run did afterwards leaves its saved state alone
    for step in range(7, 20):
        assert use(resumed, 8, step) == use(whole, 8, step)
    assert resumed.state_dict() == whole.state_dict()


@pytest.mark.parametrize("world", [2, 4])
def test_processes_together_take_what_one_process_would(world: int, source: DatasetSource) -> None:
    alone = stream(source, **SETTINGS)
    shards = [stream(source, {"process_index": i, "num_processes": world}, **SETTINGS) for i in range(world)]
    for step in range(10):
        expected = use(alone, 8, step)
        for shard in shards:
            shard.begin(step)
        shares = [shard.take(8) for shard in shards]
        prompts = [shares[i % world][i // world] for i in range(8)]
        assert [row(prompt) for prompt in prompts] == expected
        for shard in shards:
            shard.observe([(prompt.position, solved(row(prompt))) for prompt in prompts], step)
    assert all(shard.state_dict() == alone.state_dict() for shard in shards)


def test_going_back_to_a_state_takes_the_same_problems_again(source: DatasetSource) -> None:
    walk = stream(source, **SETTINGS)
    for step in range(8):
        use(walk, 8, step)
    walk.begin(8)
    before = walk.state_dict()
    first = [*walk.take(3), *walk.take(5)]
    after = walk.state_dict()
    walk.load_state_dict(before)
    assert walk.take(8) == first and walk.state_dict() == after
