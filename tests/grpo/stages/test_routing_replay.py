"""Whole runs with routing replay, and what is refused before the first step."""

from pathlib import Path
from typing import Any

import pytest

import grpo
from grpo.recipe.errors import RefusedError
from grpo.recipe.load import RecipeError
from tests.grpo.stages.test_trainer import rows, write_recipe


def recipe_for(folder: Path, model: Path, mode: str, **rollout: Any) -> Path:
    small = {"engine": "hf", "problems_per_step": 2, "num_generations": 2, "max_completion_length": 6}
    return write_recipe(
        folder,
        model,
        rollout=small | rollout,
        algorithm={"routing_replay": mode, "steps_per_generation": 2, "beta": 0.1},
        trainer={"output_dir": str(folder / "run"), "max_steps": 4, "num_reward_workers": 1},
        evaluation={"num_problems": 0},
    )


@pytest.mark.parametrize(
    ("mode", "engine"), [("R2", "hf"), ("R3", "hf"), pytest.param("R3", "vllm", marks=pytest.mark.vllm)]
)
def test_every_update_replays_every_route(tiny_v3: Path, tmp_path: Path, mode: str, engine: str) -> None:
    if engine == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed")
    grpo.train(recipe_for(tmp_path, tiny_v3, mode, engine=engine))
    steps = [row for row in rows(tmp_path / "run") if "reward" in row]
    assert len(steps) == 2
    for row in steps:
        assert row["moe/replay_missing_ratio"] == 0
        assert 0 <= row["moe/replay_changed_ratio"] < 0.3  # by the rollout's second update only
        assert row["sampling/sampling_logp_difference/mean"] < 1e-5
    assert any(row["moe/replay_changed_ratio"] > 0 for row in steps)


def test_deepseek_v32s_four_train_together(tiny_v3: Path, tmp_path: Path) -> None:
    """Its engine's experts and kept tokens in every update, unbiased KL and the off-policy sequence mask."""
    four = {"use_bias_correction_kl": True, "off_policy_mask_threshold": 0.1, "sampling_mask": True}
    grpo.train(recipe_for(tmp_path, tiny_v3, "R3", top_p=0.9), algorithm=four)
    steps = [row for row in rows(tmp_path / "run") if "reward" in row]
    assert len(steps) == 2
    for row in steps:
        assert row["moe/replay_missing_ratio"] == 0
        assert row["sampling/sampling_logp_difference/mean"] < 1e-5
        assert row["kl"] >= 0 and row["grad_norm"] > 0


def test_a_dense_model_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="has no mixture of experts"):
        grpo.train(recipe_for(tmp_path, tiny_llama, "R2"))


def test_an_engine_that_returns_no_routes_is_refused(tiny_v3: Path, tmp_path: Path) -> None:
    servers = {"servers": ["http://127.0.0.1:9"]}
    with pytest.raises(RecipeError, match=r"routing_replay='R3' with rollout.engine='server': .* one of vllm, hf"):
        grpo.train(recipe_for(tmp_path, tiny_v3, "R3", engine="server", **servers))


def test_replaying_the_only_update_is_refused(tiny_v3: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="routing_replay='R2' with steps_per_generation=1"):
        grpo.train(recipe_for(tmp_path, tiny_v3, "R2"), algorithm={"steps_per_generation": 1})
