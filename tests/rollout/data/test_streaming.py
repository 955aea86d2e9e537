"""Streaming datasets: order, epochs and exact resume."""

import json
from pathlib import Path

import pytest

from rollout.data.prompts import Prompter
from rollout.data.sources import load_source
from rollout.data.stream import ProblemStream
from rollout.data.streaming import StreamingSource
from tests.conftest import byte_tokenizer


def write(folder: Path, count: int, suffix: str) -> str:
    path = folder / f"rows{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps({"prompt": str(i)}) + "\n" for i in range(count)))
    else:
        from datasets import Dataset

        Dataset.from_list([{"prompt": str(i)} for i in range(count)]).to_parquet(path)
    return str(path)


def prompts(source: StreamingSource, start: int, count: int) -> list[str]:
    return [str(source[i].prompt) for i in range(start, start + count)]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_order_depends_on_the_seed_alone(tmp_path: Path, suffix: str):
    path = write(tmp_path, 10, suffix)
    order = prompts(StreamingSource(path, seed=1, shuffle_buffer_size=4), 0, 20)
    assert order == prompts(StreamingSource(path, seed=1, shuffle_buffer_size=4), 0, 20)
    assert order != prompts(StreamingSource(path, seed=2, shuffle_buffer_size=4), 0, 20)
    assert [sorted(order[i:j]) for i, j in ((0, 4), (4, 8), (8, 10))] == [list("0123"), list("4567"), list("89")]
    assert sorted(order[10:]) == sorted(order[:10]) and order[10:] != order[:10]


@pytest.mark.parametrize("block", [1, 4, 5, 10, 100])
@pytest.mark.parametrize("start", [0, 3, 4, 9, 10, 13, 25, 30])
def test_any_position_can_be_resumed(tmp_path: Path, start: int, block: int):
    path = write(tmp_path, 10, ".jsonl")
    whole = prompts(StreamingSource(path, seed=1, shuffle_buffer_size=block), 0, 40)
    assert prompts(StreamingSource(path, seed=1, shuffle_buffer_size=block), start, 10) == whole[start : start + 10]


def test_ids_hold_row_and_epoch(tmp_path: Path):
    source = StreamingSource(write(tmp_path, 3, ".jsonl"), shuffle_buffer_size=1)
    assert [source[i].id for i in range(5)] == [
        "rows.jsonl/train/0",
        "rows.jsonl/train/1",
        "rows.jsonl/train/2",
        "rows.jsonl/train/0@1",
        "rows.jsonl/train/1@1",
    ]


def test_a_resumed_stream_takes_the_same_prompts(tmp_path: Path):
    def walk() -> ProblemStream:
        source = load_source(dataset_name=path, streaming=True, shuffle_buffer_size=4, seed=3)
        return ProblemStream(source, Prompter(byte_tokenizer(), template="{prompt}", max_prompt_length=1), seed=3)

    path = write(tmp_path, 13, ".jsonl")  # 10, 11 and 12 are too long
    uninterrupted, killed, resumed = walk(), walk(), walk()
    uninterrupted.take(7), killed.take(7)
    resumed.load_state_dict(json.loads(json.dumps(killed.state_dict())))
    for _ in range(4):
        assert [p.problem.id for p in resumed.take(7)] == [p.problem.id for p in uninterrupted.take(7)]
    assert resumed.dropped == uninterrupted.dropped and resumed.num_dropped >= 6


def test_a_slice_of_a_stream_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"dataset_split='train\[:2\]': a stream has no slices"):
        StreamingSource(write(tmp_path, 3, ".jsonl"), split="train[:2]", shuffle_buffer_size=1)
