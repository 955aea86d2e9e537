"""vLLM servers that a run starts: real processes, weights over shared files, in lockstep and ahead of the update."""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

import grpo
from rollout.engines.servers import start
from rollout.engines.servers.plugin import BACKEND

PLUGINS = {plugin.name for plugin in entry_points(group="vllm.general_plugins")}
needs_plugin = pytest.mark.skipif(BACKEND not in PLUGINS, reason=f"vLLM finds {BACKEND} only in an installed package")
PR_SET_CHILD_SUBREAPER = 36

SERVER = """
import sys
from http.server import HTTPServer, SimpleHTTPRequestHandler
print("hello from", sys.argv[1], flush=True)
SimpleHTTPRequestHandler.log_message = lambda *words: None
SimpleHTTPRequestHandler.do_GET = lambda self: self.send_response(200) or self.end_headers()
HTTPServer(("127.0.0.1", int(sys.argv[1])), SimpleHTTPRequestHandler).serve_forever()
"""


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], start.StartedServers]]:
    """Web servers in place of vLLM, which takes a minute to start: what is tested is the process around it."""

    def command(model: str, options: list[str], **source: object) -> tuple[list[str], dict[str, str]]:
        return [sys.executable, "-c", SERVER, options[-1]], {**os.environ}

    monkeypatch.setattr(start, "server_command", command)
    with ExitStack() as stack:

        def servers(count: int) -> start.StartedServers:
            found = start.StartedServers(
                count, str(tmp_path), {}, timeout=60, api_key_env=None, revision=None, trust_remote_code=False
            )
            return stack.enter_context(closing(found))

        yield servers


def kill(servers: start.StartedServers) -> None:
    process = servers._processes[0]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_a_server_that_dies_is_started_again_once(
    started: Callable[[int], start.StartedServers], capfd: pytest.CaptureFixture[str]
) -> None:
    servers = started(2)
    url = servers.urls[0]
    assert servers.revive(url) == ""
    for times in (1, 2):
        kill(servers)
        assert servers.revive(url) == "ended with code -9"
        while times == 1 and not start._is_up(url):
            time.sleep(0.05)
    servers.revive(url)
    assert not start._is_up(url)
    assert start._is_up(servers.urls[1])
    said = capfd.readouterr().err
    assert said.count(f"server {url} ended with code -9") == said.count("Its last lines:\nhello from") == 2
    assert said.count("it is started again, once") == 1


def test_the_only_server_is_not_started_again_as_no_update_would_follow(
    started: Callable[[int], start.StartedServers], capfd: pytest.CaptureFixture[str]
) -> None:
    servers = started(1)
    kill(servers)
    assert servers.revive(servers.urls[0]) == servers.revive(servers.urls[0]) == "ended with code -9"
    assert "ended with code -9. Its last lines:\nhello from" in capfd.readouterr().err


def test_a_server_does_not_hear_what_the_launcher_tells_the_trainer(
    started: Callable[[int], start.StartedServers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM reads LOCAL_RANK as a number, also where it is empty, and its own processes have other ranks."""
    told = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    told |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    environment = psutil.Process(started(1)._processes[0].pid).environ()
    assert environment.keys().isdisjoint(told)
    assert {"PATH", "OMP_NUM_THREADS", "VLLM_API_KEY"} <= environment.keys()


def test_servers_of_a_run_on_several_machines_are_started_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"2 of 4 trainer processes are on others. Start servers with `grpo serve"):
        start.StartedServers(1, str(tmp_path), {}, timeout=60, api_key_env=None, revision=None, trust_remote_code=False)


def recipe(
    model: Path,
    folder: Path,
    servers: dict[str, Any],
    *,
    max_staleness: int,
    sends_adapters: bool = False,
    **trainer: Any,
) -> Path:
    reward = folder.with_suffix(".py")
    reward.write_text("def first(completions, **_):\n    return [float(i == 0) for i in range(len(completions))]\n")
    values = {
        "model": {"model_name_or_path": str(model)},
        "data": {"task": "countdown", "template": "{prompt} :", "max_prompt_length": 32},
        "rollout": {
            "engine": "server",
            "servers": servers,
            "max_staleness": max_staleness,
            "problems_per_step": 2,
            "num_generations": 4,
            "max_completion_length": 12,
        },
        "rewards": [{"function": f"{reward}:first"}],
        "trainer": {"output_dir": str(folder), "learning_rate": 1e-3, "num_reward_workers": 1, **trainer},
        "report": {"num_logged_groups": 2},
        "evaluation": {"num_problems": 0},
    }
    if sends_adapters:
        values["model"]["lora"] = {"r": 4}
        # On CPU, vLLM copies an adapter for every token that it is warmed up with.
        values["rollout"] |= {"adapters": "send", "max_num_seqs": 8, "vllm_options": {"max_num_batched_tokens": 256}}
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values))
    return path


def rows(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@contextmanager
def all_children() -> Iterator[set[psutil.Process]]:
    """The processes started in the block that are alive, once it has ended, even if their parents are not."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    before, left = set(psutil.Process().children(recursive=True)), set[psutil.Process]()
    try:
        yield left
        left |= set(psutil.Process().children(recursive=True)) - before
    finally:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0)


@needs_plugin
@pytest.mark.slow
@pytest.mark.vllm
def test_runs_in_lockstep_and_ahead_train_on_a_server_that_the_first_starts_and_ends(
    tiny_v3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes half a minute to start, so the first run's call that ends it waits for the other runs."""
    ended: list[start.StartedServers] = []
    lockstep, ahead = tmp_path / "lockstep", tmp_path / "ahead"
    with all_children() as left:
        try:
            with monkeypatch.context() as patch:
                patch.setattr(start.StartedServers, "close", lambda servers: ended.append(servers))
                saved = grpo.train(recipe(tiny_v3, lockstep, {"start": 1}, max_staleness=0, max_steps=2))
            assert len(ended) == 1
            for path in ("/pause?mode=keep", "/init_weight_transfer_engine", "/start_weight_update"):
                # As a trainer leaves it that dies in an update; the next must not sample before its own.
                httpx.post(ended[0].urls[0] + path, json={"init_info": {}}, timeout=600).raise_for_status()
            servers = {"urls": ended[0].urls}
            grpo.train(recipe(tiny_v3, ahead, servers, max_staleness=1, max_steps=3))
            grpo.train(recipe(tiny_v3, ahead, servers, max_staleness=1, max_steps=6, resume_from_checkpoint=True))
        finally:
            for server in ended:
                server.close()
    gone, _ = psutil.wait_procs(left, timeout=60)  # killed, and about to be gone
    assert left == set(gone)

    assert saved == lockstep / "checkpoint-2"
    assert (saved / "model.safetensors").exists()
    assert [row["step"] for row in rows(lockstep)] == [1, 2]
    for row in rows(lockstep):  # the second was sampled from weights that travelled
        assert row["sampling/sampling_logp_difference/mean"] < 1e-5
        assert row["grad_norm"] > 0
        assert "rollout/staleness_max" not in row

    assert [row["step"] for row in rows(ahead)] == [1, 2, 3, 4, 5, 6]
    for row in rows(ahead):
        assert row["rollout/staleness_max"] <= (0 if row["step"] in (1, 4) else 1)  # the first after a start is fresh
        fresh, stale = (row[f"rollout/staleness_share_{age}"] for age in (0, 1))
        assert fresh + stale == pytest.approx(1.0)
        assert row["rollout/dropped_stale"] == 0
        assert row["sampling/importance_sampling_ratio/clipped_share"] < 0.5
        assert 0 < row["sampling/importance_sampling_ratio/min"] <= row["sampling/importance_sampling_ratio/mean"]
        assert 0 < row["sampling/importance_sampling_ratio/effective_sample_size"] <= 1
        assert row["grad_norm"] > 0
        if fresh:  # trainer against engine, on what the current weights sampled
            assert row["sampling/sampling_logp_difference/mean"] < 1e-5
    trained = [row["problem_id"] for row in rows(ahead, "samples.jsonl")]
    # Twelve of the first fourteen: two were ahead of the last step.
    assert len(trained) == len(set(trained)) == 12
    assert {int(one.rpartition("/")[2]) for one in trained} <= set(range(14))


@needs_plugin
@pytest.mark.slow
@pytest.mark.vllm
def test_a_server_samples_with_adapters_that_travel_alone(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    saved = grpo.train(recipe(tiny_llama, folder, {"start": 1}, max_staleness=0, sends_adapters=True, max_steps=3))
    assert (saved / "adapter_model.safetensors").exists()
    for row in rows(folder):
        assert row["sampling/sampling_logp_difference/mean"] < 1e-5
        assert row["grad_norm"] > 0
