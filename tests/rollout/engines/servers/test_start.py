"""A run that starts its own vLLM server: real processes, weights over shared files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


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
