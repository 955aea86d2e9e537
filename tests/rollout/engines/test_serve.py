"""`grpo serve`: an OpenAI client gets what the in-process engine samples."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from grpo.model.load import load_model
from grpo.model.weights import checkpoint_weights
from grpo.recipe.config import ModelConfig
from rollout.engines.vllm import VLLMEngine
from rollout.engines.vllm_serve import server_command
from rollout.types import Sampling
from tests.rollout.engines.agreement import make_prompts


@pytest.mark.vllm
@pytest.mark.slow
def test_an_openai_client_gets_the_engines_greedy_tokens(vllm_v3: VLLMEngine, tiny_v3: Path) -> None:
    from openai import OpenAI

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "grpo", "serve", str(tiny_v3), "--port", str(port), "--max-model-len", "256"]
    server = subprocess.Popen(command, env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}, start_new_session=True)
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}/health", server)
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        prompts = make_prompts(3)
        greedy = Sampling(num_generations=1, max_completion_length=12, temperature=0.0)
        vllm_v3.publish(checkpoint_weights(load_model(ModelConfig(model_name_or_path=str(tiny_v3)))), 1)
        expected = {g.problem.id: list(g.completions[0].token_ids) for g in vllm_v3.generate(prompts, greedy)}
        for prompt in prompts:
            answer = client.completions.create(
                model=str(tiny_v3),
                prompt=list(prompt.token_ids),
                max_tokens=12,
                temperature=0.0,
                extra_body={"return_token_ids": True},
            )
            assert answer.choices[0].token_ids == expected[prompt.problem.id]  # type: ignore[attr-defined]
    finally:
        server.terminate()
        server.wait()


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("binding", "options", "expected"),
    [
        ("nobind", [], True),
        ("auto", [], False),  # only processes of the model's own are bound to cores
        ("nobind", ["-tp", "2"], False),
        ("nobind", ["--tensor_parallel_size=2"], False),
        ("nobind", ["--config", "options.yaml"], False),
        ("nobind", ["--distributed-executor-backend", "mp"], False),
    ],
)
def test_on_cpu_the_model_runs_in_the_schedulers_process_unless_options_may_ask_for_several(
    tiny_v3: Path, monkeypatch: pytest.MonkeyPatch, binding: str, options: list[str], expected: bool
) -> None:
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)  # set by an engine in this process
    share = {"VLLM_CPU_OMP_THREADS_BIND": binding}
    command, environment = server_command(str(tiny_v3), options, share=share)
    assert ("uni" in command, environment.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0") == (expected, expected)
    assert command[len(command) - len(options) :] == options


@pytest.mark.vllm
def test_servers_do_not_round_float32_to_tf32_unless_they_are_told_to(
    tiny_v3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_F32_DEFAULT", raising=False)
    assert server_command(str(tiny_v3), [])[1]["TRITON_F32_DEFAULT"] == "ieee"
    monkeypatch.setenv("TRITON_F32_DEFAULT", "tf32")
    assert server_command(str(tiny_v3), [])[1]["TRITON_F32_DEFAULT"] == "tf32"


def wait_until_healthy(url: str, server: subprocess.Popen[bytes], seconds: int = 240) -> None:
    for _ in range(seconds):
        assert server.poll() is None, "the server has exited"
        try:
            if httpx.get(url, timeout=5).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    raise AssertionError(f"the server did not answer within {seconds} s")
