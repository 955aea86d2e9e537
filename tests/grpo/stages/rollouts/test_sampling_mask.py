"""Whole runs on truncated rollouts, and what is refused before the first step."""

from pathlib import Path
from typing import Any

import pytest

import grpo
from grpo.recipe.load import RecipeError
from tests.grpo.stages.test_trainer import rows, write_recipe


def recipe_for(folder: Path, model: Path, *, masked: bool = True, **rollout: Any) -> Path:
    small = {"engine": "hf", "problems_per_step": 2, "num_generations": 2, "max_completion_length": 6}
    return write_recipe(
        folder,
        model,
        rollout=small | rollout,
        algorithm={"sampling_mask": masked, "steps_per_generation": 2, "beta": 0.1},
        trainer={"output_dir": str(folder / "run"), "max_steps": 4, "num_reward_workers": 1},
        evaluation={"num_problems": 0},
    )


@pytest.mark.parametrize("engine", ["hf", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_trainer_and_engine_agree_over_what_was_kept(tiny_v3: Path, tmp_path: Path, engine: str) -> None:
    if engine == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed")
    grpo.train(recipe_for(tmp_path, tiny_v3, engine=engine, top_p=0.9))
    steps = [row for row in rows(tmp_path / "run") if "reward" in row]
    assert len(steps) == 2
    for row in steps:
        assert row["sampling/sampling_logp_difference/max"] < 1e-4
        assert 1 < row["sampling/kept_tokens/mean"] < 200


def test_top_k_1_leaves_nothing_to_learn(tiny_v3: Path, tmp_path: Path) -> None:
    grpo.train(recipe_for(tmp_path, tiny_v3, top_k=1))
    for row in (row for row in rows(tmp_path / "run") if "reward" in row):
        assert row["sampling/sampling_logp_difference/max"] == 0
        assert row["grad_norm"] == 0 and row["entropy"] == 0
        assert row["kl"] == 0  # the reference's log-probs are over the same token
        assert row["sampling/kept_tokens/mean"] == 1


@pytest.mark.parametrize("limit", [{"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.1}])
def test_without_the_mask_a_truncated_rollout_is_refused(
    tiny_v3: Path, tmp_path: Path, limit: dict[str, float]
) -> None:
    with pytest.raises(RecipeError, match=r"rollout\.\w+_\w=[\d.]+ without algorithm.sampling_mask: the engine would"):
        grpo.train(recipe_for(tmp_path, tiny_v3, masked=False, **limit))


def test_a_mask_of_nothing_is_refused(tiny_v3: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="sampling_mask=true, but nothing is left out of a rollout"):
        grpo.train(recipe_for(tmp_path, tiny_v3))


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_servers_are_refused(tiny_v3: Path, tmp_path: Path, max_staleness: int) -> None:
    servers = {"servers": ["http://127.0.0.1:9"], "max_staleness": max_staleness}
    with pytest.raises(RecipeError, match=r"sampling_mask=true with rollout.engine='server': .* one of vllm, hf"):
        grpo.train(recipe_for(tmp_path, tiny_v3, engine="server", top_p=0.9, **servers))
