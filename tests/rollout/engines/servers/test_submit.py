"""Groups that are generated beside the trainer: weights that arrive meanwhile, and weights that are too old."""

import asyncio
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rollout.engines.base import EngineLostError
from rollout.engines.servers.client import Server
from rollout.engines.servers.engine import ServersEngine
from tests.rollout.engines.servers.test_faults import PROMPTS, SAMPLING, WEIGHTS, FakeServer, connect, engine, servers

__all__ = ["engine", "servers"]  # the fixtures


def test_submitted_groups_are_those_that_generate_gives(engine: ServersEngine, servers: list[FakeServer]) -> None:
    engine.publish(iter(WEIGHTS), 1)
    together = {group.problem.id: group for group in engine.generate(PROMPTS, SAMPLING)}
    alone = [engine.submit(prompt, SAMPLING).result(timeout=900) for prompt in PROMPTS]
    assert {group.problem.id: group for group in alone} == together


def test_each_token_has_the_version_that_sampled_it(
    engine: ServersEngine, servers: list[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.publish(iter(WEIGHTS), 7)
    before = servers[0].version

    async def generate(self: Server, body: dict[str, Any]) -> list[dict[str, Any]]:
        await asyncio.to_thread(engine.publish, iter(WEIGHTS), 8)  # arrive after two tokens
        spans = [{"version": before, "start": 0, "end": 2}, {"version": servers[0].version, "start": 2, "end": 3}]
        choice = {"token_ids": [65, 66, 67], "finish_reason": "length", "weight_versions": spans}
        return [{**choice, "index": i, "logprobs": {"content": [{"logprob": -1.0}] * 3}} for i in range(2)]

    monkeypatch.setattr(Server, "generate", generate)
    group = engine.submit(PROMPTS[0], SAMPLING).result(timeout=900)
    assert [completion.policy_version for completion in group.completions] == [[7, 7, 8]] * 2


def test_weights_older_than_those_published_when_a_group_was_asked_for_are_refused(
    tiny_llama: Path, servers: list[FakeServer], tmp_path: Path
) -> None:
    with closing(connect(tiny_llama, [server.url for server in servers], tmp_path, patience=0.1)) as engine:
        engine.publish(iter(WEIGHTS), 1)
        older = servers[0].version
        engine.publish(iter(WEIGHTS), 2)
        for server in servers:
            server.version = older
        with pytest.raises(EngineLostError, match=rf"samples with weights '{older}'"):
            engine.submit(PROMPTS[0], SAMPLING).result(timeout=900)
