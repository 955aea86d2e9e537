"""The stream's order, shards, resume and length limit, and the choice of held-out problems."""

import json
from pathlib import Path

import pytest

from rollout.data.dataset import DatasetSource
from rollout.data.generated import TaskSource
from rollout.data.prompts import Prompter
from rollout.data.stream import ProblemStream, held_out
from tests.conftest import byte_tokenizer


def numbered(tmp_path: Path, prompts: list[str]) -> DatasetSource:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"prompt": prompt} for prompt in prompts]))
    return DatasetSource(str(path))


def prompter(max_prompt_length: int = 300) -> Prompter:
    return Prompter(byte_tokenizer(), template="{prompt}", max_prompt_length=max_prompt_length)


def stream(source, *, seed: int = 0, max_prompt_length: int = 300, **shard: int) -> ProblemStream:
    return ProblemStream(source, prompter(max_prompt_length), seed=seed, **shard)


def ids(prompts) -> list[str]:
    return [prompt.problem.id for prompt in prompts]


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_processes_together_take_what_one_process_would(num_processes: int, tmp_path: Path):
    prompts = ["x" * (1 + i % 7) for i in range(30)]
    for source, expected_dropped in ((TaskSource("arithmetic", {}), 0), (numbered(tmp_path, prompts), 4)):
        budget = 6 if source.size else 300
        alone = stream(source, max_prompt_length=budget)
        whole = [ids(alone.take(8)) for _ in range(3)]
        shards = [
            stream(source, max_prompt_length=budget, process_index=i, num_processes=num_processes)
            for i in range(num_processes)
        ]
        for step in whole:
            assert sorted(id for shard in shards for id in ids(shard.take(8))) == sorted(step)
        for shard in shards:
            assert shard.state_dict() == alone.state_dict()
            assert shard.num_dropped == alone.num_dropped >= expected_dropped


def test_each_process_takes_every_nth_prompt():
    whole = ids(stream(TaskSource("arithmetic", {})).take(6))
    share = ids(stream(TaskSource("arithmetic", {}), process_index=1, num_processes=2).take(6))
    assert share == [whole[1], whole[3], whole[5]] == ["arithmetic/train/1", "arithmetic/train/3", "arithmetic/train/5"]


def test_the_first_prompts_are_found_behind_any_number_of_rows_that_are_too_long(tmp_path: Path):
    source = numbered(tmp_path, ["x" * 9] * 1001 + ["x"])
    assert ids(stream(source, max_prompt_length=6).first(2)) == ["rows.json/train/1001"]


def test_resuming_continues_at_the_exact_position(tmp_path: Path):
    source = numbered(tmp_path, ["x" * (1 + i % 7) for i in range(30)])
    uninterrupted = stream(source, max_prompt_length=6)
    killed = stream(source, max_prompt_length=6)
    assert ids(uninterrupted.take(7)) == ids(killed.take(7))
    resumed = stream(source, max_prompt_length=6)
    resumed.load_state_dict(json.loads(json.dumps(killed.state_dict())))
    for _ in range(8):
        assert ids(resumed.take(7)) == ids(uninterrupted.take(7))
    assert resumed.num_dropped == uninterrupted.num_dropped > 4


def test_each_epoch_visits_every_row_once_in_a_new_order(tmp_path: Path):
    walk = stream(numbered(tmp_path, [str(i) for i in range(20)]))
    first, second = ids(walk.take(20)), ids(walk.take(20))
    assert sorted(first) == sorted(f"rows.json/train/{i}" for i in range(20))
    assert sorted(second) == sorted(f"rows.json/train/{i}@1" for i in range(20))
    assert [i.removesuffix("@1") for i in second] != first
    assert ids(stream(walk.source, seed=1).take(20)) != first


def test_long_prompts_are_skipped_and_counted(tmp_path: Path):
    walk = stream(numbered(tmp_path, ["1", "22", "a long one", "4"]), max_prompt_length=5)
    assert {prompt.problem.prompt for prompt in walk.take(3)} == {"1", "22", "4"}
    walk.take(9)
    assert walk.dropped == {"too long": 4} and walk.num_dropped == 4


def test_rows_without_a_question_are_skipped_and_counted_by_reason(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    prompts = ["1", None, "  ", "x" * 1_000_000, "2"]
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    walk = stream(DatasetSource(str(path)), max_prompt_length=5)
    assert sorted(str(prompt.problem.prompt) for prompt in walk.take(2)) == ["1", "2"]
    walk.take(2)
    assert walk.num_dropped == 6
    assert walk.dropped == {"empty": 4, "too long": 2}
    state = walk.state_dict()
    assert state.pop("dataset")["rows"] == 5
    assert state == {"position": 10, "dropped": {"empty": 4, "too long": 2}}


def test_a_dataset_that_has_changed_is_not_continued_unless_that_is_meant(tmp_path: Path):
    state = stream(numbered(tmp_path, ["1", "2", "3"])).state_dict()
    stream(numbered(tmp_path, ["1", "2", "3"])).load_state_dict(state)
    for rows, change in (
        (["1", "2", "3", "4"], "3 rows, now 4"),
        (["1", "2", "x"], "3 rows, of which some are others"),
    ):
        changed = numbered(tmp_path, rows)
        with pytest.raises(
            ValueError, match=rf"data: the dataset has changed since the checkpoint \({change}\).*Restore"
        ):
            stream(changed).load_state_dict(state)
        ProblemStream(changed, prompter(), seed=0, may_change=True).load_state_dict(state)
    without = {name: value for name, value in state.items() if name != "dataset"}  # of an earlier version
    stream(numbered(tmp_path, ["1", "2", "3", "4"])).load_state_dict(without)


def test_a_stream_with_only_long_prompts_is_an_error_with_a_remedy(tmp_path: Path):
    with pytest.raises(ValueError, match=r"length=2: the last 3 rows were all unusable \(3 too long so far\)"):
        stream(numbered(tmp_path, ["aaa", "bbb", "ccc"]), max_prompt_length=2).take(3)
    with pytest.raises(ValueError, match=r"max_prompt_length=2: the last 1.* rows were all unusable"):
        stream(TaskSource("arithmetic", {}), max_prompt_length=2).take(8)


def test_held_out_prompts_are_distinct_fixed_and_within_the_limit(tmp_path: Path):
    rows = numbered(tmp_path, ["1", "1", "22", "a long one", "4"])
    chosen = [prompt.problem.prompt for prompt in held_out(rows, prompter(5), 10)[0]]
    assert sorted(chosen) == ["1", "22", "4"]
    assert [prompt.problem.prompt for prompt in held_out(rows, prompter(5), 2)[0]] == chosen[:2]
    with pytest.raises(ValueError, match=r"max_prompt_length=0: every held-out prompt is longer"):
        held_out(rows, prompter(0), 2)


def test_rows_skipped_among_held_out_problems_are_counted(tmp_path: Path):
    prompts, dropped = held_out(numbered(tmp_path, ["1", "22", "a long one", "a longer one", ""]), prompter(5), 10)
    assert len(prompts) == 2 and dropped == {"too long": 2, "empty": 1}


def test_held_out_problems_from_a_small_task_do_not_repeat():
    source = TaskSource("countdown", {"numbers": 2, "high": 6, "max_ways": 0}, split="eval")
    prompts = [prompt.problem.prompt for prompt in held_out(source, prompter(), 200)[0]]
    assert 1 < len(prompts) < 200 and len(set(prompts)) == len(prompts)
