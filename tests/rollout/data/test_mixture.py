"""A mixture's choice of sources, its schedule, shards and resume."""

import json

import pytest

from rollout.data.generated import TaskSource
from rollout.data.mixture import MixedStream, NamedSource, Part
from rollout.data.prompts import Prompter
from rollout.data.stream import ProblemStream
from tests.conftest import byte_tokenizer

PROMPTER = Prompter(byte_tokenizer(), template="{prompt}", max_prompt_length=300)


def part(name: str, *, weight: float = 1.0, first: int = 0) -> Part:
    source = NamedSource(name, TaskSource("arithmetic", {}))
    return Part(ProblemStream(source, PROMPTER, seed=0), weight, first)


def mixture(*, late: int = 0, seed: int = 0, **shard: int) -> MixedStream:
    parts = {"sums": part("sums", weight=3), "general": part("general", weight=1, first=late)}
    return MixedStream(parts, seed=seed, **shard)


def sources(prompts) -> list[str]:
    return [prompt.problem.columns["data_source"] for prompt in prompts]


def test_sources_come_by_weight_and_each_in_its_own_order():
    prompts = mixture().take(400)
    names = sources(prompts)
    assert names[:8] == ["sums", "general", "general", "sums", "general", "sums", "sums", "general"]
    assert names.count("general") == 97
    general = [prompt.problem.id for prompt in prompts if prompt.problem.columns["data_source"] == "general"]
    assert general == [f"general/arithmetic/train/{i}" for i in range(97)]
    assert sources(mixture(seed=1).take(12)) != names[:12]


def test_a_source_joins_with_the_first_rollout_after_its_number():
    late = mixture(late=20)
    assert set(sources(late.take(16))) == {"sums"}
    assert set(sources(late.take(16))) == {"sums"}  # 20 lies inside this rollout
    assert sources(late.take(16)).count("general") == 3


@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_together_take_what_one_process_would(num_processes: int):
    alone = mixture(late=8)
    shards = [mixture(late=8, process_index=i, num_processes=num_processes) for i in range(num_processes)]
    for _ in range(3):
        whole = [prompt.problem.id for prompt in alone.take(8)]
        shares = [[prompt.problem.id for prompt in shard.take(8)] for shard in shards]
        assert [shares[i % num_processes][i // num_processes] for i in range(8)] == whole
    assert all(shard.state_dict() == alone.state_dict() for shard in shards)


def test_resuming_continues_exactly():
    whole, killed, resumed = mixture(late=24), mixture(late=24), mixture(late=24)
    assert killed.take(16) == whole.take(16)
    resumed.load_state_dict(json.loads(json.dumps(killed.state_dict())))
    for _ in range(3):
        assert resumed.take(16) == whole.take(16)
    assert whole.state_dict()["taken"] == 64


def test_the_first_prompts_come_from_every_source_and_move_nothing():
    stream = mixture(late=1000)
    assert sources(stream.first(4)) == ["sums", "general", "sums", "general"]
    assert stream.state_dict() == mixture(late=1000).state_dict()


def test_a_source_that_the_state_does_not_know_starts_at_its_beginning(capsys: pytest.CaptureFixture[str]):
    before = MixedStream({"sums": part("sums")}, seed=0)
    before.take(8)
    resumed = mixture()
    resumed.load_state_dict(before.state_dict())
    said = "data.mixture: general is not in the checkpoint, and starts with its first problem.\n"
    assert capsys.readouterr().out == said
    assert "general/arithmetic/train/0" in [prompt.problem.id for prompt in resumed.take(40)]


def test_a_mixture_does_not_continue_one_source_nor_one_source_a_mixture():
    alone = part("sums").stream
    with pytest.raises(ValueError, match=r"the checkpoint is of one source.*model.model_name_or_path=CHECKPOINT"):
        mixture().load_state_dict(alone.state_dict())
    with pytest.raises(ValueError, match=r"the checkpoint is of a mixture.*model.model_name_or_path=CHECKPOINT"):
        alone.load_state_dict(mixture().state_dict())
