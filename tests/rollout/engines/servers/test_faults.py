"""Servers that die, hang, return, or have the wrong weights: over real HTTP, against a server with vLLM's API."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rollout.engines.base import EngineLostError
from rollout.engines.servers import pool
from rollout.engines.servers.engine import ServersEngine
from rollout.engines.servers.plugin import checksum
from rollout.engines.servers.settings import ServerSettings
from rollout.types import Group, Problem, Prompt, Sampling

PROMPTS = [Prompt(problem=Problem(id=f"p/{i}", prompt=str(i)), token_ids=[65, 66, i]) for i in range(8)]
SAMPLING = Sampling(num_generations=2, max_completion_length=4, seed=3)
WEIGHTS = [("a", torch.arange(6.0).view(2, 3)), ("b", torch.ones(2, dtype=torch.bfloat16))]


class FakeServer:
    """vLLM's routes. `fault` answers a generation request instead: None, or "drop", "hang", "stale", "short"."""

    def __init__(self) -> None:
        self.version, self.fault, self.health = "default", "", 200
        self.loaded: dict[str, torch.Tensor] = {}
        self.seen: list[list[int]] = []
        self.paths: list[str] = []
        self.takes_weights = True
        self.released = threading.Event()
        state = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/weight_info":
                    self.reply(200, {"weight_version": state.version})
                else:
                    self.reply(state.health, {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
                state.paths.append(self.path.partition("?")[0])
                if self.path == "/inference/v1/generate":
                    self.generate(body)
                elif not state.takes_weights:
                    self.reply(500, {})
                else:
                    if info := body.get("update_info"):
                        assert checksum(Path(info["path"])) == info["crc32"]
                        state.loaded = load_file(info["path"])
                    state.version = body.get("weight_version", state.version)
                    self.reply(200, {})

            def generate(self, body: dict[str, Any]) -> None:
                state.seen.append(body["token_ids"])
                if state.fault == "drop":
                    self.close_connection = True
                    return
                if state.fault == "hang":
                    state.released.wait(60)
                    self.close_connection = True
                    return
                ids = [body["sampling_params"]["seed"] % 97, 257]
                version = "old" if state.fault == "stale" else state.version
                choice = {
                    "token_ids": ids,
                    "finish_reason": "stop",
                    "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -0.25}]},
                    "weight_versions": [{"version": version, "start": 0, "end": 2}],
                }
                count = 1 if state.fault == "short" else body["sampling_params"]["n"]
                self.reply(200, {"choices": [choice | {"index": i} for i in range(count)]})

            def reply(self, status: int, body: dict[str, Any]) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeServer]]:
    monkeypatch.setattr(pool, "PROBE_INTERVAL", 0.05)
    found = [FakeServer(), FakeServer()]
    yield found
    for server in found:
        server.released.set()
        server.http.shutdown()
        server.http.server_close()


@pytest.fixture
def engine(servers: list[FakeServer], tiny_llama: Path, tmp_path: Path) -> Iterator[ServersEngine]:
    settings = ServerSettings(
        urls=[server.url for server in servers], weights_dir=str(tmp_path), patience=0.3, health_timeout=20
    )
    built = ServersEngine(
        str(tiny_llama),
        servers=settings,
        dtype="float32",
        max_model_len=32,
        max_num_seqs=4,
        kv_cache_gib=1,
        gpu_memory_utilization=0.1,
        vllm_options={},
    )
    yield built
    built.close()


def sampled(engine: ServersEngine) -> dict[str, Group]:
    groups = list(engine.generate(PROMPTS, SAMPLING))
    assert sorted(group.problem.id for group in groups) == [prompt.problem.id for prompt in PROMPTS]
    assert all(len(group.completions) == 2 for group in groups)
    return {group.problem.id: group for group in groups}


def test_weights_reach_every_server_and_completions_carry_their_version(
    engine: ServersEngine, servers: list[FakeServer], tmp_path: Path
) -> None:
    engine.publish(iter(WEIGHTS), 7)
    for server in servers:
        assert {name: weight.tolist() for name, weight in server.loaded.items()} == {
            "a": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
            "b": [1.0, 1.0],
        }
        assert server.version.endswith("/7")
    assert not list(tmp_path.rglob("*.safetensors"))
    completion = sampled(engine)["p/0"].completions[0]
    assert (completion.policy_version, completion.logprobs, completion.finish_reason) == (7, [-0.5, -0.25], "stop")
    assert servers[0].seen and servers[1].seen


@pytest.mark.parametrize("fault", ["drop", "stale", "short"])
def test_the_others_take_the_groups_of_a_failing_server(
    engine: ServersEngine, servers: list[FakeServer], fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    engine.publish(iter(WEIGHTS), 1)
    expected = sampled(engine)
    servers[0].fault, servers[0].health = fault, 500
    assert sampled(engine) == expected  # whichever server answers
    assert capfd.readouterr().err.count(f"server {servers[0].url} is left out") == 1


def test_a_hanging_server_loses_its_groups_when_it_does_not_answer_health(
    engine: ServersEngine, servers: list[FakeServer]
) -> None:
    engine.publish(iter(WEIGHTS), 1)
    servers[0].fault, servers[0].health = "hang", 503
    sampled(engine)


def test_a_server_returns_with_the_right_weights_only(engine: ServersEngine, servers: list[FakeServer]) -> None:
    engine.publish(iter(WEIGHTS), 1)
    servers[0].takes_weights = False
    engine.publish(iter(WEIGHTS), 2)  # missed by the first server
    before = len(servers[0].seen)
    sampled(engine)
    assert len(servers[0].seen) == before
    servers[0].takes_weights = True
    engine.publish(iter(WEIGHTS), 3)
    sampled(engine)
    assert len(servers[0].seen) > before


def test_a_server_that_comes_back_within_patience_saves_the_rollout(
    engine: ServersEngine, servers: list[FakeServer]
) -> None:
    engine.publish(iter(WEIGHTS), 1)
    for server in servers:
        server.fault = "drop"
    finish = threading.Timer(0.1, lambda: [setattr(server, "fault", "") for server in servers])
    finish.start()
    sampled(engine)


@pytest.mark.parametrize("act", [sampled, lambda engine: engine.publish(iter(WEIGHTS), 2)])
def test_losing_all_servers_is_one_sentence(
    engine: ServersEngine, servers: list[FakeServer], act: Callable[[ServersEngine], object]
) -> None:
    engine.publish(iter(WEIGHTS), 1)
    for server in servers:
        server.fault, server.health, server.takes_weights = "drop", 500, False
    with pytest.raises(EngineLostError, match=r"no server is left: http.*; http"):
        act(engine)


def test_closing_a_generation_early_leaves_the_engine_usable(engine: ServersEngine, servers: list[FakeServer]) -> None:
    groups = engine.generate(PROMPTS, SAMPLING)
    next(groups)
    groups.close()  # type: ignore[attr-defined]
    sampled(engine)
