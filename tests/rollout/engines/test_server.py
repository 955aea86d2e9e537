"""The server engine over real HTTP, against a completions server backed by the reference engine.

benchmarks/eval_server.py does the same with `vllm serve`.
"""

import dataclasses
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rollout.engines.base import request_seed
from rollout.engines.hf import HFEngine
from rollout.engines.server import ServerEngine
from rollout.types import Problem, Prompt, Sampling

PROMPTS = [Prompt(problem=Problem(id=f"p/{i}", prompt=text), token_ids=list(text.encode())) for i, text in
           enumerate(["one", "two and more", "three"])]  # fmt: skip


def seed_of(problem: Problem, seed: int) -> int:
    sampling = Sampling(num_generations=1, max_completion_length=1, seed=seed)
    return request_seed(sampling, Prompt(problem=problem, token_ids=[]))


class Served:
    """The requests received, the models listed, and the errors to return first."""

    def __init__(self, model: Path) -> None:
        self.requests: list[dict[str, Any]] = []
        self.models: list[dict[str, Any]] = [{"id": "tiny", "owned_by": "vllm", "max_model_len": 24}]
        self.most_new_tokens = 1000  # as of a generation_config.json
        self.errors: list[int] = []
        self.returns_ids = True
        self._engine = HFEngine(str(model), dtype="float32", device="cpu", max_num_seqs=4, max_model_len=64)
        self._lock = threading.Lock()

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        problem = next(p.problem for p in PROMPTS if p.token_ids == body["prompt"])
        seed = next(seed for seed in range(100) if seed_of(problem, seed) == body["seed"])
        sampling = Sampling(
            num_generations=body["n"],
            max_completion_length=min(body["max_tokens"], self.most_new_tokens),
            temperature=body["temperature"],
            top_p=body["top_p"],
            seed=seed,
        )
        with self._lock:
            [group] = self._engine.generate([Prompt(problem=problem, token_ids=body["prompt"])], sampling)
        return {
            "choices": [
                {"text": c.text, "finish_reason": c.finish_reason}
                | ({"token_ids": list(c.token_ids)} if self.returns_ids else {})
                for c in group.completions
            ]
        }


@pytest.fixture
def served(tiny_llama: Path) -> Iterator[tuple[Served, str]]:
    state = Served(tiny_llama)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(200, {"data": state.models})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.requests.append(body)
            if state.errors:
                self._reply(state.errors.pop(0), {"error": {"message": "top_p must be below 2"}})
            else:
                self._reply(200, state.complete(body))

        def _reply(self, status: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state, f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def connect(model: Path, url: str) -> ServerEngine:
    return ServerEngine(str(model), base_url=url, max_num_seqs=2, max_model_len=24)


def test_the_prompts_prefix_reaches_the_group(tiny_llama: Path, served: tuple[Served, str]) -> None:
    prompts = [dataclasses.replace(PROMPTS[0], prefix="<think>\n")]
    sampling = Sampling(num_generations=1, max_completion_length=2)
    (group,) = connect(tiny_llama, served[1]).generate(prompts, sampling)
    assert group.completion_prefix == "<think>\n"


def groups_of(engine: Any, sampling: Sampling) -> dict[str, list[tuple]]:
    found = {group.problem.id: group for group in engine.generate(PROMPTS, sampling)}
    return {
        key: [(c.text, list(c.token_ids), c.finish_reason) for c in found[key].completions] for key in sorted(found)
    }


@pytest.mark.parametrize("returns_ids", [True, False])
def test_server_engine_matches_the_engine_behind_the_server(
    tiny_llama: Path, served: tuple[Served, str], returns_ids: bool
) -> None:
    state, url = served
    state.returns_ids = returns_ids
    reference = HFEngine(str(tiny_llama), dtype="float32", device="cpu", max_num_seqs=4, max_model_len=24)
    engine = connect(tiny_llama, url)
    for sampling in (
        Sampling(num_generations=2, max_completion_length=30, temperature=0.7, seed=5),
        Sampling(num_generations=2, max_completion_length=4, temperature=0.0),
    ):
        there, here = groups_of(engine, sampling), groups_of(reference, sampling)
        if returns_ids:
            assert there == here
        assert [[text for text, *_ in group] for group in there.values()] == [
            [text for text, *_ in group] for group in here.values()
        ]
    assert {request["n"] for request in state.requests} == {1, 2}  # greedy: once, and repeated
    assert {request["max_tokens"] for request in state.requests} == {4, 24 - 3, 24 - 12, 24 - 5}
    assert {request["model"] for request in state.requests} == {"tiny"}
    engine.close()


def test_vllm_is_told_every_value_that_it_would_take_from_the_model(
    tiny_llama: Path, served: tuple[Served, str]
) -> None:
    """Unsaid, an instruct model's generation_config.json would decide: a top_k, a repetition penalty."""
    state, url = served
    groups_of(connect(tiny_llama, url), Sampling(num_generations=1, max_completion_length=2))
    named = {name: state.requests[0][name] for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
    assert named == {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    state.models[0]["owned_by"] = "someone"  # other servers may reject fields that the API does not have
    groups_of(connect(tiny_llama, url), Sampling(num_generations=1, max_completion_length=2))
    assert not {"top_k", "min_p", "repetition_penalty"} & state.requests[-1].keys()


def test_a_server_that_cuts_completions_is_refused(tiny_llama: Path, served: tuple[Served, str]) -> None:
    state, url = served
    state.most_new_tokens = 3
    with pytest.raises(ValueError, match="ended a completion after 3 tokens, and 10 were asked for"):
        groups_of(connect(tiny_llama, url), Sampling(num_generations=1, max_completion_length=10))
    state.models[0]["max_model_len"] = 23
    with pytest.raises(ValueError, match="started with a context of 23 tokens, and prompt and completion may have 24"):
        connect(tiny_llama, url)


def test_a_busy_server_is_retried_and_a_refusal_is_reported(
    tiny_llama: Path, served: tuple[Served, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, url = served
    waited: list[float] = []
    monkeypatch.setattr("rollout.support.http.time.sleep", waited.append)
    engine = connect(tiny_llama, url)
    sampling = Sampling(num_generations=1, max_completion_length=2)
    state.errors = [503, 429]
    assert len(groups_of(engine, sampling)) == 3
    assert len(state.requests) == 5 and len(waited) == 2
    state.errors = [400]
    with pytest.raises(ValueError, match=r"refused the request: 400 .*top_p must be below 2"):
        groups_of(engine, sampling)
    state.errors = [500] * 100
    with pytest.raises(ValueError, match="did not answer 6 times: 500"):
        groups_of(engine, sampling)


def test_unknown_model_and_wrong_address_are_errors(tiny_llama: Path, served: tuple[Served, str]) -> None:
    state, url = served
    state.models = [{"id": "a"}, {"id": "b"}]
    with pytest.raises(ValueError, match=r"serves a, b, not '.*tiny_llama'. Name one of them"):
        connect(tiny_llama, url)
    with pytest.raises(ValueError, match="did not answer: ConnectError"):
        connect(tiny_llama, "http://127.0.0.1:9/v1")
