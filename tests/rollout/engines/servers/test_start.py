"""A run that starts its own vLLM server: real processes, weights over shared files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from rollout.engines.servers import start

SERVER = """
import sys
from http.server import HTTPServer, SimpleHTTPRequestHandler
print("hello from", sys.argv[1], flush=True)
SimpleHTTPRequestHandler.log_message = lambda *words: None
SimpleHTTPRequestHandler.do_GET = lambda self: self.send_response(200) or self.end_headers()
HTTPServer(("127.0.0.1", int(sys.argv[1])), SimpleHTTPRequestHandler).serve_forever()
"""


def test_a_server_that_dies_is_started_again_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A web server in place of vLLM, which takes a minute to start: what is tested is the process around it."""

    def command(model: str, options: list[str], **source: object) -> tuple[list[str], dict[str, str]]:
        return [sys.executable, "-c", SERVER, options[-1]], {**os.environ}

    monkeypatch.setattr(start, "server_command", command)
    servers = start.StartedServers(
        2, str(tmp_path), {}, timeout=60, api_key_env=None, revision=None, trust_remote_code=False
    )
    try:
        url = servers.urls[0]
        assert servers.revive(url) == ""
        for times in (1, 2):
            process = servers._processes[0]
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert servers.revive(url) == "ended with code -9"
            while times == 1 and not start._is_up(url):
                time.sleep(0.05)
        servers.revive(url)
        assert not start._is_up(url)
        assert start._is_up(servers.urls[1])
        said = capfd.readouterr().err
        assert said.count(f"server {url} ended with code -9") == said.count("Its last lines:\nhello from") == 2
        assert said.count("it is started again, once") == 1
    finally:
        servers.close()


def test_servers_of_a_run_on_several_machines_are_started_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"2 of 4 trainer processes are on others. Start servers with `grpo serve"):
        start.StartedServers(1, str(tmp_path), {}, timeout=60, api_key_env=None, revision=None, trust_remote_code=False)


@pytest.mark.slow
@pytest.mark.vllm
def test_a_run_starts_its_server_trains_with_it_and_leaves_nothing_behind(tiny_v3: Path, tmp_path: Path) -> None:
    recipe = {
        "model": {"model_name_or_path": str(tiny_v3)},
        "data": {"task": "countdown", "template": "{prompt} :", "max_prompt_length": 32},
        "rollout": {
            "engine": "server",
            "servers": {"start": 1},
            "problems_per_step": 2,
            "num_generations": 4,
            "max_completion_length": 12,
        },
        "rewards": [
            {"function": "soft_overlong_punishment", "options": {"max_completion_len": 12, "soft_punish_cache": 8}}
        ],
        "trainer": {"output_dir": str(tmp_path / "run"), "max_steps": 3, "learning_rate": 1e-3},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "grpo", "train", str(file)]
    done = subprocess.run(command, env={**os.environ}, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert "starting 1 vLLM server …" in done.stderr
    steps = [
        row
        for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
        if "reward" in (row := json.loads(line))
    ]
    assert [row["step"] for row in steps] == [1, 2, 3]
    for row in steps:  # the second and third were sampled from weights that travelled
        assert row["sampling/sampling_logp_difference/mean"] < 1e-5
        assert row["grad_norm"] > 0
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not any(str(tiny_v3).encode() in words for words in commands)
