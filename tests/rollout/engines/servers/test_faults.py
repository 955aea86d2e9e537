"""Servers that die, hang, return, or have the wrong weights: over real HTTP, against a server with vLLM's API."""

import json
import resource
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rollout.engines.adapter import AdapterFormat
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
    """vLLM's routes.

    fault: answers a generation request instead: "", or "drop", "hang", "stale", "short".
    breaks: the route of the weight-transfer API that drops the connection, once.
    """

    def __init__(self) -> None:
        self.version, self.fault, self.health, self.breaks, self.key = "default", "", 200, "", ""
        self.is_updating = self.is_paused = False
        self.loaded: dict[str, torch.Tensor] = {}
        self.seen: list[list[int]] = []
        self.paths: list[str] = []
        self.asked: list[str] = []  # for which model
        self.takes_weights, self.context = True, 64
        self.adapters: dict[str, str] = {}  # name -> folder
        self.has_room = True  # for adapters
        self.may_load = threading.Event()  # weights are taken once it is set
        self.may_load.set()
        self.released = threading.Event()
        state = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/weight_info":
                    self.reply(200, {"weight_version": state.version})
                elif self.path == "/is_paused":
                    self.reply(200, {"is_paused": state.is_paused})
                elif self.path == "/v1/models":
                    names = [{"id": name, "parent": "m"} for name in state.adapters]
                    self.reply(200, {"data": [{"id": "m", "max_model_len": state.context}, *names]})
                else:
                    self.reply(state.health, {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
                state.paths.append(self.path.partition("?")[0])
                if self.path == "/inference/v1/generate":
                    self.generate(body)
                elif not state.takes_weights:
                    self.reply(500, {})
                elif self.path == "/v1/load_lora_adapter" and not state.has_room:
                    self.reply(404, {"detail": "Not Found"})
                elif self.path == "/v1/load_lora_adapter":
                    state.loaded = load_file(f"{body['lora_path']}/adapter_model.safetensors")
                    self.reply(400 if body["lora_name"] in state.adapters else 200, "Success: loaded")
                    state.adapters[body["lora_name"]] = body["lora_path"]
                elif self.path == "/v1/unload_lora_adapter":
                    del state.adapters[body["lora_name"]]
                    self.reply(200, "Success: removed")
                elif state.breaks == state.paths[-1]:
                    state.breaks = ""
                    self.close_connection = True
                else:
                    self.reply(200 if self.update(state.paths[-1], body) else 500, {})

            def update(self, path: str, body: dict[str, Any]) -> bool:
                """Whether vLLM would accept it: an update that is open refuses another, and one that fails is over."""
                if path in ("/pause", "/resume"):
                    state.is_paused = path == "/pause"
                elif path == "/start_weight_update":
                    accepted, state.is_updating = not state.is_updating, True
                    return accepted
                elif path == "/update_weights":
                    info = body["update_info"]
                    if not info["path"]:
                        state.is_updating = False
                        return False
                    assert checksum(Path(info["path"])) == info["crc32"]
                    state.may_load.wait(60)
                    state.loaded = load_file(info["path"])
                elif path == "/finish_weight_update":
                    state.version, state.is_updating = body["weight_version"], False
                return True

            def generate(self, body: dict[str, Any]) -> None:
                state.seen.append(body["token_ids"])
                if state.key and self.headers.get("Authorization") != f"Bearer {state.key}":
                    self.reply(401, {"error": "Unauthorized"})
                    return
                if (name := body.get("model", "m")) != "m" and name not in state.adapters:
                    self.reply(404, {"error": f"The model `{name}` does not exist."})
                    return
                state.asked.append(name)
                assert not state.is_paused, "vLLM would not answer"
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

            def reply(self, status: int, body: dict[str, Any] | str) -> None:
                content = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                if status == 500:  # as uvicorn after an exception: the connection is closed, and was not said to be
                    self.rfile.peek(1)  # type: ignore[attr-defined]
                    self.close_connection = True

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


def connect(
    model: Path, urls: list[str], weights_dir: Path, *, adapter: AdapterFormat | None = None, **settings: Any
) -> ServersEngine:
    defaults: dict[str, Any] = {"patience": 60, "health_timeout": 20}
    return ServersEngine(
        str(model),
        servers=ServerSettings(urls=urls, weights_dir=str(weights_dir), **(defaults | settings)),
        dtype="float32",
        max_model_len=32,
        max_num_seqs=4,
        kv_cache_gib=1,
        gpu_memory_utilization=0.1,
        vllm_options={},
        adapter=adapter,
    )


@pytest.fixture
def engine(servers: list[FakeServer], tiny_llama: Path, tmp_path: Path) -> Iterator[ServersEngine]:
    built = connect(tiny_llama, [server.url for server in servers], tmp_path)
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


def test_a_server_without_room_for_a_whole_sample_is_refused(
    servers: list[FakeServer], tiny_llama: Path, tmp_path: Path
) -> None:
    """It would cut completions at 31 tokens and call that `length`."""
    servers[1].context = 31
    said = f"{servers[1].url} was started with --max-model-len 31, and prompt and completion may have 32 tokens"
    with pytest.raises(ValueError, match=said):
        connect(tiny_llama, [server.url for server in servers], tmp_path)


def test_an_update_waits_for_a_server_that_comes_back_within_patience(
    engine: ServersEngine, servers: list[FakeServer]
) -> None:
    for server in servers:
        server.takes_weights = False
    finish = threading.Timer(0.2, lambda: [setattr(server, "takes_weights", True) for server in servers])
    finish.start()
    engine.publish(iter(WEIGHTS), 1)
    assert any(server.version.endswith("/1") for server in servers)


def test_a_server_that_failed_in_an_update_is_not_woken_while_others_still_load(
    engine: ServersEngine, servers: list[FakeServer]
) -> None:
    """Ahead of the update the watch goes on meanwhile, and the server still names the weights of the last update."""
    engine.publish(iter(WEIGHTS), 1)
    engine.submit(PROMPTS[0], SAMPLING).result()  # starts the watch
    servers[0].breaks = "/update_weights"
    servers[1].may_load.clear()
    servers[0].paths.clear()
    threading.Timer(0.5, servers[1].may_load.set).start()  # ten looks at the servers later
    engine.publish(iter(WEIGHTS), 2)
    assert servers[0].is_paused and "/resume" not in servers[0].paths
    engine.publish(iter(WEIGHTS), 3)
    assert not servers[0].is_paused and servers[0].version.endswith("/3")


@pytest.mark.parametrize("act", [sampled, lambda engine: engine.publish(iter(WEIGHTS), 2)])
def test_losing_all_servers_is_one_sentence(
    servers: list[FakeServer], tiny_llama: Path, tmp_path: Path, act: Callable[[ServersEngine], object]
) -> None:
    with closing(connect(tiny_llama, [server.url for server in servers], tmp_path, patience=0.1)) as engine:
        engine.publish(iter(WEIGHTS), 1)
        for server in servers:
            server.fault, server.health, server.takes_weights = "drop", 500, False
        with pytest.raises(EngineLostError, match=r"no server is left: http.*; http"):
            act(engine)
        assert not list(tmp_path.rglob("*.safetensors")), "they would stay in shared memory"


@pytest.mark.parametrize("route", ["/start_weight_update", "/update_weights", "/finish_weight_update"])
def test_an_update_that_broke_off_does_not_block_the_next(
    engine: ServersEngine, servers: list[FakeServer], route: str
) -> None:
    servers[0].breaks = route
    servers[0].is_updating = route == "/start_weight_update"  # by an earlier trainer
    engine.publish(iter(WEIGHTS), 1)
    engine.publish(iter(WEIGHTS), 2)
    assert [server.version.rpartition("/")[2] for server in servers] == ["2", "2"]
    sampled(engine)
    assert servers[0].seen


def test_a_server_left_frozen_by_an_update_is_woken_before_it_samples(
    engine: ServersEngine, servers: list[FakeServer]
) -> None:
    servers[0].breaks = "/resume"
    engine.publish(iter(WEIGHTS), 1)
    assert servers[0].is_paused and servers[0].version == servers[1].version
    servers[1].fault, servers[1].health = "drop", 500  # so that the first must come back
    sampled(engine)
    assert not servers[0].is_paused


@contextmanager
def full_disk() -> Iterator[None]:
    """No file grows beyond 64 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


FULL = r"the weights for the servers could not be written to .*grpo-weights-.*too large.*rollout.servers.weights_dir"


def test_weights_that_cannot_be_written_are_one_sentence_and_all_taken(
    engine: ServersEngine, servers: list[FakeServer]
) -> None:
    weights = iter(WEIGHTS)
    with full_disk(), pytest.raises(EngineLostError, match=FULL):
        engine.publish(weights, 1)
    assert next(weights, None) is None  # other processes gather their shares of them
    assert servers[0].paths == []


def test_the_key_is_sent_and_never_shown(
    servers: list[FakeServer],
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KEY", "s3cret")
    for server in servers:
        server.key = "s3cret"
    built = connect(tiny_llama, [server.url for server in servers], tmp_path, api_key_env="KEY")
    sampled(built)
    servers[0].fault, servers[0].health, servers[1].key = "drop", 500, "another"
    with pytest.raises(ValueError, match=r"Unauthorized.*rollout.servers.api_key_env") as error:
        sampled(built)
    built.close()
    assert "s3cret" not in "".join([*traceback.format_exception(error.value), *capfd.readouterr()])


def test_closing_a_generation_early_leaves_the_engine_usable(engine: ServersEngine, servers: list[FakeServer]) -> None:
    groups = engine.generate(PROMPTS, SAMPLING)
    next(groups)
    groups.close()  # type: ignore[attr-defined]
    sampled(engine)
