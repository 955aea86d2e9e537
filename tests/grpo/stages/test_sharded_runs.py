"""Whole runs on two processes that share one policy: asked for by the recipe or by accelerate, killed and resumed."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

import grpo
from grpo.learner.checkpoint import STATE
from grpo.report.records import deterministic
from tests.grpo.stages.test_trainer import ROOT, launch, rollout_of, rows, run, write_recipe

TWO = ("--cpu", "--num_processes", "2")


def recipe(folder: Path, model: Path, **trainer: Any) -> Path:
    """Mini-batches, a KL term and a reference that moves: each in a collective of its own."""
    folder.mkdir()
    return write_recipe(
        folder,
        model,
        rollout={**rollout_of(model, folder), "engine": "hf"},
        algorithm={"steps_per_generation": 2, "beta": 0.1, "ref_model_sync_steps": 4},
        trainer={"max_steps": 8, "learning_rate": 1e-3, "save_steps": 4, "output_dir": str(folder / "run"), **trainer},
        evaluation={"num_problems": 2, "num_samples": 2},
    )


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("*.safetensors")}


def test_a_sharded_run_killed_and_resumed_writes_what_an_uninterrupted_one_writes(
    tiny_v3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")  # accelerate's default with --use_fsdp on GPUs
    whole = run(launch(*TWO, "--use_fsdp", "--fsdp_version", "2", recipe(tmp_path / "whole", tiny_v3)))
    assert "sharded over 2 processes" in whole.stdout
    killed = recipe(tmp_path / "killed", tiny_v3, sharding="fsdp2")
    metrics = tmp_path / "killed" / "run" / "metrics.jsonl"
    process = subprocess.Popen(launch(*TWO, killed), cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    while not (metrics.exists() and '{"step": 6,' in metrics.read_text()):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    resumed = run(launch(*TWO, killed, "trainer.resume_from_checkpoint=true"))
    assert "sharded over 2 processes" in resumed.stdout
    folders = [tmp_path / name / "run" for name in ("whole", "killed")]
    for name in ("metrics.jsonl", "samples.jsonl"):
        expected, found = ([deterministic(row) for row in rows(folder, name)] for folder in folders)
        assert found[-1]["step"] == 8 and found == expected
    for place in ("checkpoint-8", "checkpoint-8/reference"):
        expected, found = (files(folder / place) for folder in folders)
        assert found and found == expected
    assert not list((folders[0] / "checkpoint-8" / STATE).glob("optimizer.bin"))
    _, loading = AutoModelForCausalLM.from_pretrained(folders[0] / "checkpoint-8", output_loading_info=True)
    assert not any(loading.values())
    # The same checkpoint, continued by one process that holds everything.
    last = grpo.train(str(killed), trainer={"max_steps": 10, "resume_from_checkpoint": True})
    assert last.name == "checkpoint-10"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--use_fsdp"], "accelerate was configured for FSDP version 1: models are sharded by FSDP2 here."),
        (["--use_deepspeed"], "accelerate was configured for DeepSpeed: models are sharded by FSDP2 here."),
    ],
)
def test_other_sharding_is_refused_in_one_sentence(
    tiny_v3: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    command = launch("--cpu", "--num_processes", "1", *options, recipe(tmp_path / "run", tiny_v3))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(message) and "trainer.sharding=fsdp2" in done.stderr
