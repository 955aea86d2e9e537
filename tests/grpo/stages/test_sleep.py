"""An engine that shares the trainer's GPU sleeps during the update."""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grpo.recipe.config import GRPORecipe
from grpo.recipe.load import RecipeError, load_recipe
from grpo.recipe.record import write_resolved
from grpo.stages.build import _rehearse, build
from grpo.stages.grpo import Trainer
from tests.grpo.stages.test_run_folder import base

__all__ = ["base"]  # the fixture


def test_the_engine_sleeps_from_the_rollout_to_the_publication(base: Path, tmp_path: Path) -> None:
    recipe = load_recipe(base)
    (tmp_path / "run").mkdir()
    write_resolved(recipe, tmp_path / "run")
    parts, calls = build(recipe), []

    class Spy:
        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return getattr(parts.engine, name)

        def sleep(self) -> None:
            calls.append("sleep")

        def publish(self, weights: Iterable[Any], policy_version: int) -> None:
            calls.append("publish")
            assert all(parameter.grad is None for parameter in parts.policy.model.parameters()), "in the engine's way"
            parts.publisher.publish(weights, policy_version)

    spy: Any = Spy()
    with closing(parts):
        Trainer(replace(parts, engine=spy, publisher=spy, sleeper=spy)).train_step()
    assert calls == ["generate", "sleep", "publish"]


@pytest.mark.parametrize(("level", "expected"), [(0, ["rehearse"]), (2, ["sleep", "rehearse", "publish 3"])])
def test_the_engine_sleeps_while_the_largest_micro_batch_is_tried(base: Path, level: int, expected: list[str]) -> None:
    recipe, calls = load_recipe(base, ["rollout.engine=vllm", f"rollout.sleep_level={level}"]), []
    assert isinstance(recipe, GRPORecipe)

    class Recorder:
        def rehearse(self, max_prompt_length: int, max_completion_length: int) -> None:
            calls.append("rehearse")

        def weights(self) -> list[Any]:
            return []

        def sleep(self) -> None:
            calls.append("sleep")

        def publish(self, weights: list[Any], policy_version: int) -> None:
            calls.append(f"publish {policy_version}")

    recorder: Any = Recorder()
    _rehearse(recipe, recorder, recorder, 3)
    assert calls == expected


def test_only_vllm_in_the_process_sleeps(base: Path) -> None:
    with pytest.raises(RecipeError, match=r"rollout.sleep_level=2 with rollout.engine=hf: only vLLM"):
        load_recipe(base, ["rollout.sleep_level=2"])
