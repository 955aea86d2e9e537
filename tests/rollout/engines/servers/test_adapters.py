"""Adapters for servers: each version under a name of its own, asked for by that name, and forgotten in time."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from rollout.engines.adapter import AdapterFormat
from rollout.engines.base import EngineLostError
from rollout.engines.servers.engine import ServersEngine
from tests.rollout.engines.servers.test_faults import FakeServer, connect, sampled, servers

__all__ = ["servers"]
CONFIG = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "peft_type": "LORA"}
NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def adapter(value: float) -> Iterator[tuple[str, torch.Tensor]]:
    yield NAME, torch.full((8, 2), value)


@pytest.fixture
def engine(servers: list[FakeServer], tiny_llama: Path, tmp_path: Path) -> Iterator[ServersEngine]:
    built = connect(tiny_llama, [server.url for server in servers], tmp_path, adapter=AdapterFormat(CONFIG))
    yield built
    built.close()
    assert not list(tmp_path.iterdir())


def test_every_server_samples_with_the_newest_adapter_and_forgets_the_others(
    engine: ServersEngine, servers: list[FakeServer], tmp_path: Path
) -> None:
    sampled(engine)
    assert {name for server in servers for name in server.asked} == {"m"}
    engine.publish(adapter(1.0), 0)
    engine.publish(adapter(2.0), 0)  # a version may be sent twice
    engine.publish(adapter(3.0), 1)
    groups = sampled(engine)
    assert {c.policy_version for group in groups.values() for c in group.completions} == {1}
    for server in servers:
        (name,) = server.adapters
        assert name.split("/")[1:] == ["1", "3"] and server.asked[-1] == name
        assert server.loaded[NAME].tolist() == [[3.0] * 2] * 8
        assert json.loads((Path(server.adapters[name]) / "adapter_config.json").read_text()) == CONFIG
    # A request that was running may make vLLM read the last one once more.
    assert sorted(folder.name[-4:] for folder in tmp_path.glob("*/*")) == ["-0-2", "-1-3"]


def test_ahead_of_the_update_a_server_keeps_the_versions_in_use(
    servers: list[FakeServer], tiny_llama: Path, tmp_path: Path
) -> None:
    urls = [server.url for server in servers]
    with closing(connect(tiny_llama, urls, tmp_path, adapter=AdapterFormat(CONFIG, versions=3))) as engine:
        for version in range(8):
            engine.publish(adapter(version), version)
        assert [name.split("/")[1] for name in servers[0].adapters] == ["5", "6", "7"]
        assert len(list(tmp_path.glob("*/*"))) == 6


def test_a_server_that_was_started_again_takes_part_after_the_next_adapter(
    engine: ServersEngine, servers: list[FakeServer], capfd: pytest.CaptureFixture[str]
) -> None:
    engine.publish(adapter(1.0), 1)
    servers[0].adapters.clear()
    before = len(servers[0].asked)
    sampled(engine)
    assert len(servers[0].asked) == before
    assert "is left out: " in capfd.readouterr().err
    engine.publish(adapter(2.0), 2)
    sampled(engine)
    assert len(servers[0].asked) > before


def test_a_second_attempt_does_not_fail_on_servers_that_have_the_adapter(
    engine: ServersEngine, servers: list[FakeServer]
) -> None:
    servers[1].takes_weights = False
    engine.publish(adapter(1.0), 1)
    servers[1].takes_weights = True
    assert engine._adapter and len(servers[0].adapters) == 1
    engine._run(engine._load(engine._transfer))  # type: ignore[arg-type]
    assert servers[0].adapters.keys() == servers[1].adapters.keys()


def test_servers_without_room_for_adapters_are_named_with_the_remedy(
    servers: list[FakeServer], tiny_llama: Path, tmp_path: Path
) -> None:
    for server in servers:
        server.has_room = False
    urls, format = [server.url for server in servers], AdapterFormat(CONFIG)
    remedy = r"with room for adapters: grpo serve MODEL --for-training --enable-lora --max-lora-rank 16"
    with (
        closing(connect(tiny_llama, urls, tmp_path, adapter=format, patience=0.1)) as engine,
        pytest.raises(EngineLostError, match=remedy),
    ):
        engine.publish(adapter(1.0), 1)
