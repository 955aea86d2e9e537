"""A run on a mixture of experts, from recipe to metrics."""

import json
import shutil
from pathlib import Path

import pytest

import grpo
from grpo.recipe.errors import RefusedError
from tests.grpo.stages.test_run_folder import base

__all__ = ["base"]  # the fixture


def test_completions_without_advantage_train_the_balance(base: Path, tiny_v3: Path, tmp_path: Path) -> None:
    """No random completion has the format, so all rewards are 0 and only the balance loss has a gradient."""
    model = {"model_name_or_path": str(tiny_v3), "sequence_balance_coefficient": 0.5}
    grpo.train(base, model=model, rewards=[{"function": "format"}], trainer={"max_steps": 1})
    [row] = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert row["reward"] == 0 and row["frac_trained_samples"] == 1
    assert row["loss"] == row["moe/sequence_balance_loss"] > 1  # 0.5 for each of two layers, if the load were even
    assert row["grad_norm"] > 0


def test_fp8_weights_are_refused_where_an_engine_would_load_them(base: Path, tiny_v3: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_v3, tmp_path / "fp8")
    quantization = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RefusedError, match=r"has FP8 weights: .* `grpo dequantize .*fp8 OUT`"):
        grpo.train(base, model={"model_name_or_path": str(folder)}, trainer={"max_steps": 1})
