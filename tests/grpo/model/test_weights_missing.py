"""A folder without all weights of its model is refused, wherever a model is read."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from grpo.model.load import load_model
from grpo.model.quantized import load_as_recorded
from grpo.recipe.config import PolicyConfig
from grpo.recipe.load import load_recipe
from grpo.recipe.stages.preference import RewardModelRecipe
from grpo.stages.preference.reward_model import _load, reward_input
from rewards.models.reward_model import reward_model
from rollout.engines.base import load_tokenizer
from rollout.engines.hf import HFEngine

ATTENTION = "model.layers.1.self_attn."


def without(model: Path, folder: Path, *names: str) -> Path:
    """A copy of a model's folder without the weights whose names start so."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in weights.items() if not name.startswith(names)},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


def test_a_policy_that_lacks_its_head_and_an_attention_is_neither_trained_nor_sampled(
    tiny_v3: Path, tmp_path: Path
) -> None:
    folder = without(tiny_v3, tmp_path / "cut", "lm_head.", ATTENTION)
    message = r"cut lacks 8 of the weights of a DeepseekV3ForCausalLM \(lm_head.weight, .*, …\), which would be random"
    with pytest.raises(ValueError, match=message):
        load_model(PolicyConfig(model_name_or_path=str(folder)))
    with pytest.raises(ValueError, match=message):
        HFEngine(str(folder), dtype="float32", device="cpu", max_num_seqs=2, max_model_len=16)
    with pytest.raises(ValueError, match=message):
        load_as_recorded(str(folder), tmp_path)


def test_a_classifier_is_no_policy(tiny_v3: Path, tmp_path: Path) -> None:
    classifier = AutoModelForSequenceClassification.from_pretrained(tiny_v3, num_labels=1)
    classifier.save_pretrained(tmp_path / "classifier")
    with pytest.raises(ValueError, match=r"lacks 1 of the weights of a DeepseekV3ForCausalLM \(lm_head.weight\)"):
        load_model(PolicyConfig(model_name_or_path=str(tmp_path / "classifier")))


def test_a_weight_of_another_shape_is_named_with_both(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "wide")
    config = json.loads((tmp_path / "wide" / "config.json").read_text())
    (tmp_path / "wide" / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    with pytest.raises(
        ValueError, match=r"wide holds 1 weights .*model.embed_tokens.weight \[263, 64\], not \[300, 64"
    ):
        load_model(PolicyConfig(model_name_or_path=str(tmp_path / "wide")))


def test_a_reward_model_starts_with_a_new_head_and_nothing_else(tiny_llama: Path, tmp_path: Path) -> None:
    def load(model: Path) -> torch.nn.Module:
        sections = {"model": {"model_name_or_path": str(model)}, "data": {"dataset_name": "pairs.jsonl"}}
        recipe = load_recipe(None, sections={"stage": "reward_model", **sections})
        assert isinstance(recipe, RewardModelRecipe)
        return _load(recipe, load_tokenizer(str(model), None, False), reward_input(recipe.data), None)

    assert load(tiny_llama).get_parameter("score.weight").shape == (1, 64)
    with pytest.raises(ValueError, match=r"lacks 4 of the weights of a LlamaForSequenceClassification"):
        load(without(tiny_llama, tmp_path / "cut", ATTENTION))


def test_a_reward_model_without_a_head_scores_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    classifier = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1)
    classifier.save_pretrained(tmp_path / "whole")
    load_tokenizer(str(tiny_llama), None, False).save_pretrained(tmp_path / "whole")
    folder = without(tmp_path / "whole", tmp_path / "cut", "score.")
    with pytest.raises(ValueError, match=r"lacks 1 of the weights .*\(score.weight\)"):
        reward_model(["q"], ["a"], model_name_or_path=str(folder))
