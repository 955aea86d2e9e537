"""Adapters: a frozen base has no gradient to compute, to sum or to move."""

from dataclasses import replace
from pathlib import Path

import pytest

from grpo.estimate.layout.gpus import GPUS, Gpu
from grpo.estimate.layout.layout import lay_out
from grpo.estimate.layout.lengths import Lengths
from grpo.estimate.layout.phases import phases
from grpo.estimate.models import Models
from grpo.recipe.config import OnPolicyRecipe
from grpo.recipe.load import load_recipe
from tests.conftest import tiny_v3_config

LORA = "model.lora={r: 4}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tiny_v3_config().save_pretrained(tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text(
        "model: {model_name_or_path: ./model}\n"
        "data: {task: countdown, max_prompt_length: 32}\n"
        "rollout: {max_completion_length: 96, problems_per_step: 16, num_generations: 8}\n"
        "rewards: [{function: countdown}]\n"
        "trainer: {sharding: fsdp2}\n"
    )
    return tmp_path / "recipe.yaml"


def update_time(path: Path, gpu: Gpu, *overrides: str) -> tuple[float, float]:
    """Seconds of the update without the optimizer's, and the share of the parameters that trains."""
    recipe = load_recipe(path, overrides)
    assert isinstance(recipe, OnPolicyRecipe)
    layout = lay_out(recipe, Models(), gpu, 8)
    state = layout.shape.trained * 4 / layout.shards
    seconds = phases(recipe, layout, Lengths(32, 96, 96))[2].seconds
    return seconds - 7 * state / (gpu.bandwidth * gpu.decode), layout.shape.trained_share


@pytest.mark.parametrize(
    ("slow", "all_of", "without"),
    [
        # forward, the gradient of activations and that of weights
        ({"flops": 1e6}, 3, 2),
        # two reads of the weights, a read and a write of gradients
        ({"bandwidth": 1e3}, 4, 2),
        # gathered twice, gradients summed once
        ({"link": 1e3}, 3, 2),
    ],
    ids=["FLOP/s", "memory bandwidth", "links"],
)
def test_the_update_of_adapters_takes_no_gradient_of_the_base(
    path: Path, slow: dict[str, float], all_of: int, without: int
) -> None:
    gpu = replace(GPUS["h200"], **slow)  # type: ignore[arg-type]
    whole, share = update_time(path, gpu)
    assert share == 1
    adapters, share = update_time(path, gpu, LORA)
    assert 0 < share < 0.2
    larger = 1 / (1 - share)  # adapters are counted with the model
    assert adapters == pytest.approx(whole * larger * (without + (all_of - without) * share) / all_of, rel=0.03)


def test_flops_of_a_run_that_trains_adapters(path: Path) -> None:
    recipe = load_recipe(path, [LORA])
    assert isinstance(recipe, OnPolicyRecipe)
    found = lay_out(recipe, Models(), GPUS["h200"], 1).estimate
    assert found.update_flops == pytest.approx((2 + found.shape.trained_share) * found.sampling_flops)  # one forward
