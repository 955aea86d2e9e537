"""Signals to the processes of a run: it saves and says how to continue, and nothing is left running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.grpo.launch.test_launch import ROOT


def start(folder: Path, model: Path) -> subprocess.Popen[str]:
    """A run of many short steps with one reward worker."""
    recipe = {
        "model": {"model_name_or_path": str(model)},
        "data": {"task": "countdown", "template": "{prompt} :", "max_prompt_length": 40},
        "rollout": {"engine": "hf", "problems_per_step": 1, "num_generations": 2, "max_completion_length": 2},
        "rewards": [{"function": "random"}],
        "trainer": {"output_dir": "run", "num_reward_workers": 1, "max_steps": 100_000, "save_steps": 0},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    environment = {k: v for k, v in os.environ.items() if "ACCELERATE" not in k} | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "grpo", "train", "--num_processes", "1", "recipe.yaml"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore it
    )


@pytest.mark.parametrize(
    ("number", "target"),
    [
        (signal.SIGTERM, "launcher"),
        (signal.SIGINT, "trainer"),
        (signal.SIGKILL, "launcher"),
        (signal.SIGKILL, "trainer"),
    ],
)
def test_a_signal_ends_a_run_with_its_processes(
    tmp_path: Path, tiny_llama: Path, number: signal.Signals, target: str
) -> None:
    launcher = start(tmp_path, tiny_llama)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n")):
        assert launcher.poll() is None, launcher.communicate()[1]
        time.sleep(0.05)
    (trainer,) = psutil.Process(launcher.pid).children()
    family = [trainer, *trainer.children(recursive=True)]
    assert len(family) > 1  # with its reward worker
    os.kill(launcher.pid if target == "launcher" else trainer.pid, number)
    said = launcher.communicate()[1]
    _, left = psutil.wait_procs(family, timeout=60)
    assert left == [] and "Traceback" not in said
    if number == signal.SIGKILL:
        assert launcher.returncode == (-9 if target == "launcher" else 137)
        return
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    step = checkpoint.name.partition("-")[2]
    command = "grpo train --num_processes 1 recipe.yaml trainer.resume_from_checkpoint=true"
    assert said.endswith(f"stopped at step {step} ({number.name})\ncontinue with: {command}\n")
    assert launcher.returncode == 128 + number
