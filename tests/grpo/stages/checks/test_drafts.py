"""`grpo drafts`, and a run that trains a model with a multi-token prediction."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import grpo
from grpo.__main__ import main
from grpo.model.load import new_model
from grpo.model.weights import save_model
from grpo.recipe.load import RecipeError
from grpo.recipe.stages.sft import SFTModel
from tests.conftest import byte_tokenizer, sharpen, tiny_v3_config
from tests.grpo.stages.test_run_folder import base

__all__ = ["base"]  # the fixture

OWN = "model.layers.3."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose trunk and drafts both always choose the next token by the present one alone."""
    path = tmp_path_factory.mktemp("mtp")
    section = SFTModel(config={"model_type": "deepseek_v3"}, tokenizer="none", mtp={"coefficient": 0.3})
    model = new_model(section, tiny_v3_config())
    sharpen(model, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "down_proj" in name or "o_proj" in name:
                parameter.zero_()
            elif name == f"{OWN}eh_proj.weight":
                parameter.copy_(torch.eye(64, 128))
            elif "norm.weight" in name:
                parameter.fill_(1.0)
    save_model(model, path, is_writer=True)
    byte_tokenizer().save_pretrained(path)
    return path


def test_drafts_that_are_always_right_are_always_kept(
    base: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["drafts", str(base), f"model.model_name_or_path={folder}", "rollout.max_completion_length=6"])
    greedy, sampled = capsys.readouterr().out.splitlines()[-2:]
    assert greedy.startswith("greedy: 100.0% of ") and greedy.endswith(" drafts kept, 2.00 tokens per pass")
    assert sampled.startswith("sampled at temperature 1: 100.0% of ")


def test_a_run_trains_the_drafts_and_keeps_them(base: Path, folder: Path, tmp_path: Path) -> None:
    model = {"model_name_or_path": str(folder), "mtp": "detached"}
    last = grpo.train(base, model=model, trainer={"max_steps": 2, "save_steps": 1})
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, second = (row for row in rows if "loss" in row)
    assert first["mtp/acceptance"] > 0.999 > second["mtp/acceptance"] > 0 and second["mtp/loss"] > 0
    before, after = (load_file(one / "model.safetensors") for one in (folder, last))
    assert before.keys() == after.keys()
    assert not torch.equal(before[f"{OWN}eh_proj.weight"], after[f"{OWN}eh_proj.weight"])
    assert torch.equal(after[f"{OWN}embed_tokens.weight"], after["model.embed_tokens.weight"])
    trainer = {"max_steps": 3, "resume_from_checkpoint": True}
    assert grpo.train(base, model=model, trainer=trainer).name == "checkpoint-3"


def test_adapters_and_shards_are_refused_with_it(base: Path, folder: Path) -> None:
    model = {"model_name_or_path": str(folder), "mtp": "frozen"}
    with pytest.raises(RecipeError, match=r"model\.mtp=frozen with model\.lora: only adapters are saved"):
        grpo.train(base, model={**model, "lora": {"r": 2}})
    with pytest.raises(RecipeError, match=r"model\.mtp=frozen with trainer\.sharding=fsdp2: its weights are not"):
        grpo.train(base, model=model, trainer={"sharding": "fsdp2"})
