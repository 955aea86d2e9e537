"""Whole runs: the literal command, resuming, several processes, functions from Python."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import grpo
from grpo.recipe.config import GRPORecipe
from grpo.recipe.errors import RunError
from grpo.recipe.load import load_recipe
from grpo.report.records import deterministic
from grpo.stages import build, parts
from tests.conftest import save_tiny

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent


def write_recipe(folder: Path, model: Path, **sections: dict[str, Any]) -> Path:
    """Countdown on a random model: rewards are a coin per completion, so every step has a gradient."""
    recipe: dict[str, Any] = {
        "model": {"model_name_or_path": str(model)},
        "data": {"task": "countdown", "template": "{prompt} :", "max_prompt_length": 40},
        "rollout": {
            "problems_per_step": 4,
            "num_generations": 4,
            "max_completion_length": 12,
            "max_num_seqs": 32,
            "kv_cache_gib": 0.1,
        },
        "rewards": [{"function": "random"}, {"function": "format", "weight": 0.1}],
        "trainer": {"output_dir": str(folder / "run"), "max_steps": 2, "learning_rate": 1e-3},
        "evaluation": {"num_problems": 6, "num_samples": 4},
    }
    for name, values in sections.items():
        recipe[name] = {**recipe.get(name, {}), **values}
    path = folder / "recipe.yaml"
    path.write_text("# -*- coding: grpo-recipe -*-\n" + yaml.safe_dump(recipe))
    return path


def launch(*arguments: str | Path) -> list[str]:
    return [str(BIN / "accelerate"), "launch", *map(str, arguments)]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def rows(run_dir: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / name).read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.vllm
def test_literal_command_trains_the_embedded_base(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(
        launch(
            "recipes/r1_zero.yaml",
            "trainer.max_steps=3",
            "rollout.problems_per_step=8",
            "rollout.num_generations=8",
            "evaluation.num_problems=16",
            f"trainer.output_dir={out}",
        )
    )
    assert "3/3" in done.stdout
    steps = [row for row in rows(out) if "reward" in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    for row in steps:
        assert row["sampling/sampling_logp_difference/mean"] <= 1e-5
        assert row["sampling/sampling_logp_difference/p999"] <= 1e-4
        assert row["rewards/format/mean"] >= 0.9
        assert row["moe/dead_experts"] == 0
    assert [row["step"] for row in rows(out) if "eval/pass@1" in row] == [0, 3]
    assert "<script" in (out / "index.html").read_text()
    checkpoint = out / "checkpoint-3"
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert model.config.model_type == "deepseek_v3"
    assert AutoTokenizer.from_pretrained(checkpoint).eos_token
    # vLLM opens the checkpoint, and a run goes on from it
    run(
        launch(
            "recipes/r1_zero.yaml",
            f"model.model_name_or_path={checkpoint}",
            "trainer.max_steps=1",
            "rollout.problems_per_step=2",
            "evaluation={}",
            f"trainer.output_dir={tmp_path / 'second'}",
        )
    )
    assert rows(tmp_path / "second")[0]["sampling/sampling_logp_difference/mean"] <= 1e-5


@pytest.mark.slow
@pytest.mark.vllm
def test_run_killed_and_resumed_writes_what_an_uninterrupted_one_writes(tiny_v3: Path, tmp_path: Path) -> None:
    """Old log-probs, KL and a reference that moves included; weights, optimizer, data position and seeds with them."""
    settings: dict[str, Any] = {
        "algorithm": {"steps_per_generation": 2, "beta": 0.1, "ref_model_sync_steps": 4, "loss_type": "grpo"},
        "evaluation": {"num_problems": 4, "num_samples": 2, "eval_steps": 4},
    }
    trainer = {"max_steps": 12, "learning_rate": 1e-3, "save_steps": 4, "lr_scheduler_type": "linear"}

    def recipe(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        return write_recipe(folder, tiny_v3, trainer={**trainer, "output_dir": str(folder / "run")}, **settings)

    run(launch(recipe("whole")))
    killed = recipe("killed")
    metrics = tmp_path / "killed" / "run" / "metrics.jsonl"
    process = subprocess.Popen(launch(killed), cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    while not (metrics.exists() and '{"step": 10,' in metrics.read_text()):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run(launch(killed, "trainer.resume_from_checkpoint=true"))

    for name in ("metrics.jsonl", "samples.jsonl"):
        whole, resumed = (
            [deterministic(row) for row in rows(tmp_path / folder / "run", name)] for folder in ("whole", "killed")
        )
        assert [row["step"] for row in resumed][-1] == 12
        assert resumed == whole


@pytest.mark.slow
@pytest.mark.vllm
def test_two_processes_do_what_one_does(tiny_v3: Path, tmp_path: Path) -> None:
    def first_steps(name: str, *options: str) -> list[dict[str, Any]]:
        folder = tmp_path / name
        folder.mkdir()
        run(launch(*options, write_recipe(folder, tiny_v3)))
        return [row for row in rows(folder / "run") if "reward" in row]

    one, two = first_steps("one"), first_steps("two", "--cpu", "--num_processes", "2")
    assert len(one) == len(two) == 2
    for name in ("reward", "completions/mean_length", "num_tokens", "rewards/random/mean"):
        assert two[0][name] == pytest.approx(one[0][name])
    for name in ("loss", "grad_norm", "entropy"):
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-4, abs=1e-7)
        assert two[1][name] == pytest.approx(one[1][name], rel=1e-2, abs=1e-4)


def test_two_processes_train_a_model_whose_vision_tower_no_text_reaches(tmp_path: Path) -> None:
    """DDP waits for the gradient of every parameter that is not frozen, and would raise at the second step."""
    text = {"vocab_size": 263, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    tokens = {"image_token_index": 262, "boi_token_index": 261, "eoi_token_index": 260, "mm_tokens_per_image": 4}
    config = AutoConfig.for_model("gemma3", text_config={**text, **heads}, vision_config={**vision, **heads}, **tokens)
    wrapper = AutoModelForCausalLM.from_config(config)
    assert any("vision_tower" in name for name, _ in wrapper.named_parameters())
    model = save_tiny(wrapper, tmp_path / "gemma3")
    rollout = {"engine": "hf", "problems_per_step": 2}
    run(
        launch(
            "--cpu",
            "--num_processes",
            "2",
            write_recipe(tmp_path, model, rollout=rollout, evaluation={"num_problems": 0}),
        )
    )
    steps = rows(tmp_path / "run")
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row["grad_norm"] > 0 and row["sampling/sampling_logp_difference/max"] < 1e-4 for row in steps)


def test_reward_functions_from_python_on_the_reference_engine(tiny_v3: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def short(prompts: list, completions: list[str], target: list[int], **kwargs: Any) -> list[float]:
        seen.extend(target)
        return [-len(text) / 10 for text in completions]

    recipe = write_recipe(tmp_path, tiny_v3, rollout={**rollout_of(tiny_v3, tmp_path), "engine": "hf"})
    checkpoint = grpo.train(str(recipe), reward_functions=[short])
    metrics = [row for row in rows(tmp_path / "run") if "reward" in row]
    assert checkpoint.name == "checkpoint-2"
    assert all(row["rewards/short/mean"] < 0 for row in metrics)
    assert seen and all(isinstance(target, int) for target in seen)


def rollout_of(model: Path, folder: Path) -> dict[str, Any]:
    return yaml.safe_load(write_recipe(folder, model).read_text())["rollout"]


def test_selection_and_adaptive_entropy_reach_the_loop_and_resume_exactly(tiny_v3: Path, tmp_path: Path) -> None:
    """Clip-Cov selects in each mini-batch; the bonus's coefficient grows and goes on from the checkpoint's."""
    algorithm = {
        "loss_type": "clip_cov",
        "clip_cov_min": 0.0,
        "cov_ratio": 0.1,
        "steps_per_generation": 2,
        "entropy_target": 100.0,
    }

    def recipe(name: str, **trainer: Any) -> str:
        folder = tmp_path / name
        folder.mkdir()
        return str(
            write_recipe(
                folder,
                tiny_v3,
                rollout={**rollout_of(tiny_v3, folder), "engine": "hf", "problems_per_step": 2},
                algorithm=algorithm,
                trainer={"max_steps": 4, "save_steps": 2, "output_dir": str(folder / "run"), **trainer},
                evaluation={"num_problems": 0},
            )
        )

    grpo.train(recipe("whole"))
    whole = rows(tmp_path / "whole" / "run")
    assert [row["entropy_coef"] for row in whole] == pytest.approx([0.0025, 0.0125])  # means of (0, 5), (10, 15) e-3
    assert all(0 < row["covariance/selected_share"] <= 0.1 for row in whole)
    grpo.train(recipe("resumed", resume_from_checkpoint=str(tmp_path / "whole" / "run" / "checkpoint-2")))
    assert [deterministic(row) for row in rows(tmp_path / "resumed" / "run")] == [deterministic(whole[1])]


def test_starting_an_engine_leaves_the_runs_random_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM seeds Python, NumPy and torch when it starts, after a checkpoint's states are back."""
    from vllm.utils.torch_utils import set_random_seed

    def numbers() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    set_seed(5)
    expected = numbers()
    set_seed(5)
    monkeypatch.setattr(parts, "engine", lambda *_args, **_keywords: set_random_seed(0))
    recipe = load_recipe(ROOT / "recipes" / "r1_zero.yaml")
    assert isinstance(recipe, GRPORecipe)
    build._engine(recipe, Accelerator(cpu=True))
    assert numbers() == expected


def test_an_engine_beyond_the_bound_is_refused_before_the_first_step(tiny_v3: Path, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        tiny_v3,
        rollout={**rollout_of(tiny_v3, tmp_path), "engine": "hf"},
        algorithm={"max_logp_difference": 1e-12},
    )
    before = psutil.Process().children(recursive=True)
    with pytest.raises(ValueError, match=r"log-probs differ from the trainer's by .* above 1e-12, already with"):
        grpo.train(str(recipe))
    assert psutil.Process().children(recursive=True) == before, "reward workers were left running"
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_learning_rate_that_destroys_the_model_stops_with_the_cause_and_keeps_the_page(
    tiny_v3: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path,
        tiny_v3,
        rollout={**rollout_of(tiny_v3, tmp_path), "engine": "hf"},
        trainer={"max_steps": 6, "learning_rate": 1e30, "max_grad_norm": 1e30, "output_dir": str(tmp_path / "run")},
    )
    with pytest.raises(RunError, match=r"micro-batch 1 of 1: the loss is nan\. Its inputs are finite: the"):
        grpo.train(str(recipe))
    assert (tmp_path / "run" / "index.html").exists()
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_tasks_of_grpo_eval_are_asked_in_the_template_of_training(tiny_v3: Path, tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text('{"question": "1+1?", "gold": "2"}\n{"question": "1+2?", "gold": "3"}\n')
    (tmp_path / "sums.yaml").write_text(
        "dataset_name: ./sums.jsonl\ncolumns: {prompt: question, solution: gold}\ninstruction: Box it.\n"
    )
    tasks = [str(tmp_path / "sums.yaml"), "countdown"]
    recipe = write_recipe(
        tmp_path,
        tiny_v3,
        rollout={**rollout_of(tiny_v3, tmp_path), "engine": "hf"},
        trainer={"max_steps": 1},
        evaluation={"tasks": tasks, "num_problems": 3},
    )
    grpo.train(str(recipe))
    before, after = [row for row in rows(tmp_path / "run") if any(key.startswith("eval/") for key in row)]
    for row in (before, after):
        assert (row["eval/sums/num_problems"], row["eval/countdown/num_problems"]) == (2, 3)
        assert row["eval/sums/pass@4"] >= row["eval/sums/pass@1"] == 0.0
        assert "eval/pass@1" not in row
    assert "sums/pass@1" in (tmp_path / "run" / "index.html").read_text()
