"""Section model.lora: what it takes, and what the rest of a recipe must not say with it."""

from pathlib import Path

import pytest

from grpo.recipe.config import GRPORecipe
from grpo.recipe.load import RecipeError, load_recipe

MINIMAL = """
model: {model_name_or_path: base, lora: {r: 8}}
data: {task: countdown, max_prompt_length: 32}
rollout: {max_completion_length: 64}
rewards: [{function: countdown}]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(MINIMAL)
    return tmp_path / "recipe.yaml"


def test_peft_names_are_passed_through(path: Path) -> None:
    recipe = load_recipe(path, ["model.lora.target_modules=[q_proj]", "model.lora.use_rslora=true"])
    assert isinstance(recipe, GRPORecipe)
    assert recipe.model.lora is not None
    arguments = recipe.model.lora.peft_arguments()
    assert (arguments["r"], arguments["target_modules"], arguments["use_rslora"]) == (8, ["q_proj"], True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.lora.rank=4"], "unknown key"),
        (["model.lora.init_lora_weights=pissa"], "init_lora_weights"),
        (["model.lora.target_modules=[]"], "nothing is adapted"),
        (["model.lora.target_parameters=[experts.down_proj]", "model.lora.use_dora=true"], "peft has no DoRA"),
        (["model.lora.lora_dropout=0.1"], "engines sample without dropout"),
        (["model.lora.bias=all", "algorithm.beta=0.1"], "keep the trained biases"),
        (["model.balance_bias_update_speed=0.001"], "adapters are saved without it"),
        (["model.quantization=4bit", "model.lora=null"], "quantized weights cannot be trained"),
        (["model.quantization=4bit", "trainer.sharding=fsdp2"], "are not divided over processes"),
        (["model.quantization=4bit", "model.lora.bias=all"], "also trained ones"),
        (["model.quantization=8bit"], "model.quantization"),
    ],
)
def test_what_cannot_work_is_refused(path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(path, overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.lora=null"], "without model.lora: there are no adapters"),
        (["model.lora.use_dora=true"], "vLLM has no DoRA"),
        (["model.lora.bias=lora_only"], "model.lora.bias=lora_only: vLLM takes no biases"),
        (["model.lora.modules_to_save=[lm_head]"], "vLLM takes no whole modules"),
        (["model.lora.target_parameters=[experts.down_proj]"], "vLLM takes adapters of modules only"),
        (["model.quantization=4bit"], "model.quantization=4bit: the engine's base is not quantized"),
        (["rollout.engine=hf"], "rollout.engine=hf: only vLLM applies adapters itself"),
        (["rollout.sleep_level=2"], "the engine drops its base, which is not sent again"),
        (
            ["rollout.engine=server", "rollout.servers={start: 1, weights: nccl}"],
            "rollout.servers.weights=nccl: adapters are sent as files",
        ),
    ],
)
def test_adapters_that_vllm_does_not_take_are_not_to_be_sent(path: Path, overrides: list[str], message: str) -> None:
    load_recipe(path, ["rollout.adapters=send"])
    with pytest.raises(
        RecipeError, match=rf"rollout\.adapters=send with.*{message.removeprefix('with')}.*adapters=merge"
    ):
        load_recipe(path, ["rollout.adapters=send", *overrides])


def test_stages_that_train_no_adapters_do_not_know_the_section(tmp_path: Path) -> None:
    (tmp_path / "sft.yaml").write_text(
        "stage: sft\nmodel: {model_name_or_path: base, lora: {r: 8}}\ndata: {sources: [{dataset_name: rows.jsonl}]}\n"
    )
    with pytest.raises(RecipeError, match=r"model.lora: unknown key"):
        load_recipe(tmp_path / "sft.yaml", [])
