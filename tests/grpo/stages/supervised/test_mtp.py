"""Pretraining with multi-token prediction: its loss and schedule, packed samples, what is saved and resumed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from grpo.model.forward.mtp import mtp_layer
from grpo.model.load import load_model
from grpo.recipe.config import ModelConfig
from grpo.recipe.errors import RefusedError
from grpo.recipe.stages.sft import MTPConfig, SFTModel, SFTRecipe
from grpo.stages.supervised.balanced import within_samples
from grpo.stages.supervised.sft import run_sft
from tests.conftest import byte_tokenizer

TINY = {
    **{"model_type": "deepseek_v3", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64},
    **{"first_k_dense_replace": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": None},
    **{"kv_lora_rank": 16, "qk_nope_head_dim": 24, "qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 4},
    **{"num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 16},
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 texts of 3 to 18 letters, and a tokenizer with a token for each byte."""
    folder = tmp_path_factory.mktemp("texts")
    rows = [{"text": "abcdefghijklmnopqr"[: 3 + i]} for i in range(16)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    byte_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


def recipe(texts: Path, output: Path, coefficient: Any, *, packing: bool = False, **trainer: Any) -> SFTRecipe:
    settings = {"max_steps": 5, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1}
    section = {"config": TINY, "tokenizer": str(texts / "tokenizer"), "mtp": {"coefficient": coefficient}}
    return SFTRecipe.model_validate(
        {
            "stage": "pretrain",
            "model": section,
            "data": {
                "sources": [{"dataset_name": str(texts / "texts.jsonl")}],
                "max_length": 64 if packing else 32,
                "packing": packing,
            },
            "trainer": {"output_dir": str(output), **settings, "balance_bias_update_speed": 0.01, **trainer},
        }
    )


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_packed_samples_are_not_predicted_from_one_another() -> None:
    """Tokens that have the two before them in their own sample: of samples of 4, 1, 3 and 2 tokens, 2 + 0 + 1 + 0."""
    labels = torch.tensor([[10, 11, 12, 13, 20, 30, 31, 32, 40, 41], [50, 51, 52, -100, -100, -100, -100, -100, 0, 0]])
    labels[1, 8:] = -100
    kept = within_samples(labels, [[4, 1, 3, 2], [3]])
    assert kept[0].tolist() == [-100, -100, 12, 13, -100, -100, -100, 32, -100, -100]
    assert kept[1].tolist() == [-100, -100, 52] + [-100] * 7
    assert labels[0, 4] == 20


def test_the_coefficient_weighs_a_loss_over_the_trunks_tokens(texts: Path, tmp_path: Path) -> None:
    """Eq. 24: the sum over a text's T - 2 predictions is divided by what the trunk's T - 1 are divided by."""
    one = {"max_steps": 1, "per_device_train_batch_size": 16}
    first, second = (rows_of(run_sft(recipe(texts, tmp_path / str(factor), factor, **one)))[0] for factor in (0.3, 0.1))
    lengths = [5 + i for i in range(16)]  # with first and end token
    expected = 0.2 * first["mtp/loss"] * sum(n - 2 for n in lengths) / sum(n - 1 for n in lengths)
    assert first["mtp/loss"] == second["mtp/loss"] == pytest.approx(5.57, abs=0.1)  # ln 263: nothing is learnt yet
    assert first["loss"] - second["loss"] == pytest.approx(expected, rel=1e-3)
    assert 0 <= first["mtp/acceptance"] <= 1 and 0 <= first["mtp/greedy_acceptance"] <= 1


def test_a_run_with_a_schedule_resumes_exactly_and_saves_the_module(texts: Path, tmp_path: Path) -> None:
    schedule = {0: 0.3, 3: 0.1}
    whole = run_sft(recipe(texts, tmp_path / "a", schedule, packing=True, save_steps=2, num_train_epochs=9))
    again = tmp_path / "b"
    run_sft(recipe(texts, again, schedule, packing=True, save_steps=2, num_train_epochs=9))
    shutil.rmtree(again / "checkpoint-4")
    run_sft(recipe(texts, again, schedule, packing=True, save_steps=2, resume_from_checkpoint=True))
    a, b = (load_file(folder / "model.safetensors") for folder in (whole, again))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(a["model.layers.2.shared_head.head.weight"], a["lm_head.weight"])
    losses = [row["mtp/loss"] for row in rows_of(whole)]
    assert losses[-1] < losses[0] - 0.1
    assert len(rows_of(whole)[0]["moe/load"]) == 2  # the trunk's one layer with experts, and the module's
    model = load_model(ModelConfig(model_name_or_path=str(whole)), mtp="stored")
    layer = mtp_layer(model)  # five steps of ±0.01 do not add up to 0
    assert layer is not None and layer.mlp.gate.e_score_correction_bias.abs().max() > 0


def test_the_coefficient_holds_from_its_step_on() -> None:
    config = MTPConfig(coefficient={0: 0.3, 676: 0.1})
    assert [config.at(step) for step in (0, 675, 676, 999)] == [0.3, 0.3, 0.1, 0.1]
    assert MTPConfig(coefficient=0.1).at(5) == 0.1
    with pytest.raises(ValidationError, match=r"steps \[5\] leave the first step without a value"):
        MTPConfig(coefficient={5: 0.1})


def test_another_architecture_is_refused_before_training(texts: Path, tmp_path: Path) -> None:
    wrong = recipe(texts, tmp_path, 0.3)
    config = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = SFTModel.model_validate({**wrong.model.model_dump(), "config": {**config, "intermediate_size": 32}})
    with pytest.raises(RefusedError, match=r"model\.mtp: a new llama is a llama"):
        run_sft(wrong.model_copy(update={"model": model}))
