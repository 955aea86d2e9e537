"""`grpo check` and `grpo plan` count a multi-token prediction: against a real model, and the published size."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from grpo.__main__ import main
from grpo.estimate.layout.gpus import cpu
from grpo.estimate.layout.layout import lay_out
from grpo.estimate.layout.lengths import Lengths
from grpo.estimate.layout.phases import phases
from grpo.estimate.models import Models
from grpo.estimate.shape import MTP, forward_flops, measure_shape, mtp_flops
from grpo.estimate.stage import Estimate, estimate_stage
from grpo.model.forward.mtp import DeepseekV3ForCausalLM, draft_states, mtp_layer
from grpo.recipe.config import GRPORecipe
from grpo.recipe.load import load_recipe
from tests.conftest import tiny_llama_config, tiny_v3_config

RECIPES = Path(__file__).parents[3] / "recipes"
TRUNK, MODULE = 224_256, 82_304  # parameters of the tiny model, and of its module
IDLE = 6 * 3 * 64 * 32  # of 8 experts a token uses 2


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_v3_config().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def grpo_recipe(model: Path, mtp: str | None) -> GRPORecipe:
    sections: dict[str, Any] = {
        "model": {"model_name_or_path": str(model), "mtp": mtp},
        "data": {"task": "countdown", "max_prompt_length": 32},
        "rollout": {"max_completion_length": 96, "problems_per_step": 4, "num_generations": 8},
        "algorithm": {"beta": 0.1},
        "rewards": [{"function": "countdown"}],
    }
    recipe = load_recipe(None, sections=sections)
    assert isinstance(recipe, GRPORecipe)
    return recipe


def estimate(model: Path, mtp: str | None) -> Estimate:
    found = estimate_stage(grpo_recipe(model, mtp), Models(), device="cpu", num_processes=2)
    assert found
    return found


def test_parameters_equal_the_real_model_s() -> None:
    torch.manual_seed(0)
    real = DeepseekV3ForCausalLM(tiny_v3_config())
    shape = measure_shape(tiny_v3_config(), rows=0, length=0, width=4, mtp="trained")
    layer = mtp_layer(real)
    assert shape.mtp and layer
    assert shape.held == sum(p.numel() for p in real.parameters()) == TRUNK + MODULE
    assert shape.mtp.total == sum(p.numel() for p in layer.parameters()) == MODULE
    assert shape.mtp.active == MODULE - IDLE
    plain = measure_shape(tiny_v3_config(), rows=0, length=0, width=4)
    assert (shape.total, shape.active) == (plain.total, plain.active)
    assert plain.total == sum(p.numel() for p in AutoModelForCausalLM.from_config(tiny_v3_config()).parameters())


def test_v3_s_module_has_the_parameters_of_its_published_files() -> None:
    config = Models().of_recipe(load_recipe(RECIPES / "r1_zero_671b.yaml"))
    shape = measure_shape(config, rows=0, length=0, width=2, mtp="kept")
    expert = 3 * 7168 * 2048
    attention = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * (128 + 128) + 128 * 128 * 7168
    rest = attention + (1536 + 512) + 256 * 7168 + 2 * 7168 * 7168 + 5 * 7168  # gate, eh_proj, norms
    assert shape.total == 671_026_404_352
    assert shape.mtp and shape.mtp.total == 257 * expert + rest == 11_610_067_968
    assert shape.mtp.active == 9 * expert + rest


def test_a_frozen_module_is_held_and_a_detached_one_has_gradients_and_moments(model: Path) -> None:
    plain, frozen, detached = (estimate(model, mtp) for mtp in (None, "frozen", "detached"))
    assert frozen.parts == plain.parts | {"weights": 4 * (TRUNK + MODULE)}
    assert frozen.update_flops == plain.update_flops
    same = {"reference": 4 * TRUNK, "engine: weights": 4 * TRUNK}  # which have none
    assert detached.parts | same == detached.parts
    trained = 4 * (TRUNK + MODULE)
    assert detached.parts["weights"] == detached.parts["gradients"] == detached.parts["gradient buckets"] == trained
    assert detached.parts["AdamW"] == 2 * trained
    assert detached.parts["activations"] > plain.parts["activations"]


def test_the_module_learns_from_three_forwards_and_runs_in_none_of_the_reference(model: Path) -> None:
    plain, detached = estimate(model, None), estimate(model, "detached")
    texts = ((100 * 4 * 8, 128),)
    own = 100 * 4 * 8 * 128 * (2 * (MODULE - IDLE + 263 * 64) + 1 * 4 * (32 + 16) * 128)  # with head and attention
    assert plain.update_flops == 4 * forward_flops(plain.shape, texts)
    assert mtp_flops(detached.shape, texts) == own
    assert detached.update_flops == plain.update_flops + 3 * own
    assert detached.sampling_flops == plain.sampling_flops


def test_pretraining_trains_it_with_the_trunk(tmp_path: Path) -> None:
    tiny_v3_config().save_pretrained(tmp_path / "model")
    sections: dict[str, Any] = {
        "stage": "sft",
        "model": {"model_name_or_path": str(tmp_path / "model"), "mtp": {"coefficient": 0.3}},
        "data": {"sources": [{"dataset_name": "rows.jsonl"}], "max_length": 128, "max_rows": 1000},
    }
    found = estimate_stage(load_recipe(None, sections=sections), Models(), device="cpu")
    assert found and found.parts["AdamW"] == 8 * (TRUNK + MODULE)


def kept_by_autograd(model: PreTrainedModel, rows: int, length: int) -> int:
    """Bytes of activations that a real forward saves."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (at := tensor.untyped_storage().data_ptr()) not in weights:
            kept[at] = tensor
        return tensor

    base: Any = model.base_model
    ids = torch.randint(0, 256, (rows, length))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = base(input_ids=ids, use_cache=False).last_hidden_state
        if mtp_layer(model) is not None:
            draft_states(model, ids, hidden, detach=True)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_activations_are_about_those_of_a_real_forward() -> None:
    def measured_and_estimated(mtp: MTP | None) -> tuple[int, int]:
        make: Any = DeepseekV3ForCausalLM._from_config if mtp else AutoModelForCausalLM.from_config
        real = make(tiny_v3_config(), attn_implementation="sdpa")
        real.set_experts_implementation("grouped_mm")
        shape = measure_shape(tiny_v3_config(), rows=4, length=64, width=4, mtp=mtp)
        return kept_by_autograd(real, 4, 64), shape.kept_bytes + shape.score_bytes

    (trunk, estimated), (whole, with_module) = measured_and_estimated(None), measured_and_estimated("trained")
    assert with_module - estimated == pytest.approx(whole - trunk, rel=0.2)
    assert whole - trunk > trunk / 5  # a fourth layer


def test_a_plan_s_update_takes_longer_and_its_other_phases_do_not(model: Path) -> None:
    def seconds(mtp: str | None) -> dict[str, float]:
        recipe = grpo_recipe(model, mtp)
        layout = lay_out(recipe, Models(), cpu(1, 2**34, 153e9, 2), 1)
        return {phase.name: phase.seconds for phase in phases(recipe, layout, Lengths(32, 96, 96))}

    plain, frozen, detached = seconds(None), seconds("frozen"), seconds("detached")
    assert frozen == plain
    assert detached["update"] > 1.3 * plain["update"]
    assert (detached["generate"], detached["sync"]) == (plain["generate"], plain["sync"])


def test_check_and_plan_say_how_large_it_is(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model.parent / "recipe.yaml"
    path.write_text(
        "model: {model_name_or_path: ./model, mtp: detached}\n"
        "data: {task: countdown, max_prompt_length: 32}\nrewards: [{function: countdown}]\n"
    )
    for command in (["check", str(path)], ["plan", "--gpus", "1", str(path)]):
        main(command)
        assert ", and 82.30K in a multi-token prediction, trained" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["check"], ["plan", "--gpus", "1"]], ids=["check", "plan"])
def test_a_model_that_cannot_have_one_is_refused(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_llama_config().save_pretrained(tmp_path / "model")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: {model_name_or_path: ./model, mtp: frozen}\n"
        "data: {task: countdown, max_prompt_length: 32}\nrewards: [{function: countdown}]\n"
    )
    with pytest.raises(SystemExit):
        main([*command, str(path)])
    assert "is a llama, and multi-token prediction is DeepSeek-V3's (deepseek_v3)" in capsys.readouterr().err
