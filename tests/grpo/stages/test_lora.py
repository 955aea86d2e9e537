"""Whole runs that train adapters: what is saved, resuming bit for bit, what the next command does with the result."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader

import grpo
from grpo.estimate.models import Models
from grpo.estimate.stage import estimate_stage
from grpo.recipe.load import load_recipe
from grpo.stages.build import _model
from tests.grpo.stages.test_trainer import launch, rollout_of, rows, run, write_recipe

LORA = {"r": 2, "target_modules": "all-linear", "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}


def recipe_for(folder: Path, model: Path, quantization: str | None = None, **trainer: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = write_recipe(
        folder,
        model,
        rollout={**rollout_of(model, folder), "engine": "hf"},
        algorithm={"beta": 0.1, "ref_model_sync_steps": 1},
        evaluation={"num_problems": 0},
        trainer={"output_dir": str(folder / "run"), "learning_rate": 1e-2, **trainer},
    )
    recipe = yaml.safe_load(path.read_text())
    recipe["model"] |= {"lora": LORA, "quantization": quantization}
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def whole(tiny_v3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three steps that saved each."""
    folder = tmp_path_factory.mktemp("lora")
    grpo.train(str(recipe_for(folder, tiny_v3, max_steps=3, save_steps=1, save_total_limit=3)))
    return folder / "run"


def test_checkpoints_hold_adapters_and_their_optimizer_state_only(whole: Path, tiny_v3: Path) -> None:
    checkpoint = whole / "checkpoint-3"
    files = {path.name for path in checkpoint.rglob("*") if path.suffix in (".safetensors", ".bin")}
    trained = sum(t.numel() for t in load_file(checkpoint / "adapter_model.safetensors").values())
    moments = FileSystemReader(checkpoint / "trainer_state/optimizer").read_metadata().state_dict_metadata
    assert "model.safetensors" not in files
    assert sum(one.size.numel() for name, one in moments.items() if name.endswith("exp_avg")) == trained
    assert json.loads((checkpoint / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_v3)


def test_the_engine_agrees_with_the_trainer_after_every_sync(whole: Path) -> None:
    steps = [row for row in rows(whole) if "reward" in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    for row in steps:
        assert row["sampling/sampling_logp_difference/mean"] < 2e-5


def test_a_resumed_run_ends_with_the_same_bits(whole: Path, tiny_v3: Path, tmp_path: Path) -> None:
    """Adapters, optimizer, and a reference that has moved."""
    recipe = recipe_for(tmp_path / "again", tiny_v3, max_steps=3, save_steps=1, save_total_limit=3)
    shutil.copytree(whole, tmp_path / "again/run")
    shutil.rmtree(tmp_path / "again/run/checkpoint-3")
    shutil.rmtree(tmp_path / "again/run/checkpoint-2")
    overrides = {"resume_from_checkpoint": True, "allow_changes": ["trainer.output_dir"]}
    resumed = grpo.train(str(recipe), trainer=overrides)
    for name in ("adapter_model.safetensors", "reference/adapter_model.safetensors"):
        ours, theirs = load_file(resumed / name), load_file(whole / "checkpoint-3" / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    ours, theirs = ([row for row in rows(run) if "reward" in row] for run in (resumed.parent, whole))
    assert [row["loss"] for row in ours] == [row["loss"] for row in theirs]
    assert [row["kl"] for row in ours] == [row["kl"] for row in theirs]


def test_check_counts_what_trains(tiny_v3: Path, tmp_path: Path, whole: Path) -> None:
    recipe = recipe_for(tmp_path, tiny_v3)
    lora, full = (
        estimate_stage(load_recipe(recipe, overrides), Models(), device="cpu")
        for overrides in ([], ["model.lora=null"])
    )
    assert lora is not None and full is not None
    trained = sum(t.numel() for t in load_file(whole / "checkpoint-3/adapter_model.safetensors").values())
    assert lora.shape.trained == trained
    assert lora.shape.total == full.shape.total + trained
    assert lora.parts["AdamW"] == 2 * lora.parts["gradients"] == 8 * trained
    assert full.parts["reference"] == full.parts["weights"]
    assert "reference" not in lora.parts


@pytest.fixture(scope="module")
def quantized(tiny_v3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three steps on a base in 4 bits."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    folder = tmp_path_factory.mktemp("quantized")
    grpo.train(str(recipe_for(folder, tiny_v3, "4bit", max_steps=3, save_steps=1, save_total_limit=3)))
    return folder / "run"


def test_the_engine_agrees_with_a_trainer_on_a_quantized_base(quantized: Path) -> None:
    """It samples from dequantized weights with the adapters merged; those of the stored model are far away."""
    steps = [row for row in rows(quantized) if "reward" in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    for row in steps:
        assert row["sampling/sampling_logp_difference/mean"] < 2e-5
    assert steps[0]["kl"] < 1e-6  # the reference is the quantized base


def test_a_resumed_run_on_a_quantized_base_ends_with_the_same_bits(
    quantized: Path, tiny_v3: Path, tmp_path: Path
) -> None:
    checkpoint = quantized / "checkpoint-3"
    assert json.loads((checkpoint / "quantization_config.json").read_text())["bnb_4bit_quant_type"] == "nf4"
    assert not (checkpoint / "model.safetensors").exists()
    recipe = recipe_for(tmp_path / "again", tiny_v3, "4bit", max_steps=3, save_steps=1, save_total_limit=3)
    shutil.copytree(quantized, tmp_path / "again/run")
    for step in (2, 3):
        shutil.rmtree(tmp_path / f"again/run/checkpoint-{step}")
    overrides = {"resume_from_checkpoint": True, "allow_changes": ["trainer.output_dir"]}
    resumed = grpo.train(str(recipe), trainer=overrides)
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (resumed, checkpoint))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_two_processes_on_a_quantized_base_take_the_steps_of_one(
    quantized: Path, tiny_v3: Path, tmp_path: Path
) -> None:
    run(launch("--cpu", "--num_processes", "2", recipe_for(tmp_path / "two", tiny_v3, "4bit", max_steps=3)))
    one, two = ([row for row in rows(folder) if "reward" in row] for folder in (quantized, tmp_path / "two/run"))
    assert [row["step"] for row in two] == [1, 2, 3]
    for ours, theirs in zip(two, one, strict=True):
        assert ours["reward"] == pytest.approx(theirs["reward"], rel=1e-6)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert ours["sampling/sampling_logp_difference/mean"] < 2e-5


def test_check_counts_4_bits(tiny_v3: Path, tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, tiny_v3)
    plain, packed = (
        estimate_stage(load_recipe(recipe, overrides), Models(), device="cpu")
        for overrides in ([], ["model.quantization=4bit"])
    )
    assert plain is not None and packed is not None
    assert (plain.shape.quantized, packed.shape.quantized) == (0, 90_624)
    # 4 bits, 8 of scale for 64 numbers, 32 for 256 scales.
    assert plain.parts["weights"] - packed.parts["weights"] == 4 * 90_624 - round(90_624 * (0.5 + 1 / 64 + 1 / 4096))


def test_dora_is_refused_for_a_sharded_base(tiny_v3: Path, tmp_path: Path) -> None:
    lora = '{"target_modules": ["o_proj"], "target_parameters": [], "use_dora": true}'
    recipe = load_recipe(str(recipe_for(tmp_path, tiny_v3)), [f"model.lora={lora}"])
    with pytest.raises(ValueError, match=r"use_dora with trainer\.sharding=fsdp2: .*Set use_dora: false"):
        _model(recipe, None, Accelerator(cpu=True), mesh=cast(Any, object()))
