"""An engine that shares the trainer's GPU sleeps during the update."""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grpo.recipe.load import RecipeError, load_recipe
from grpo.recipe.record import write_resolved
from grpo.stages.build import build
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
            parts.publisher.publish(weights, policy_version)

    spy: Any = Spy()
    with closing(parts):
        Trainer(replace(parts, engine=spy, publisher=spy, sleeper=spy)).train_step()
    assert calls == ["generate", "sleep", "publish"]


def test_only_vllm_in_the_process_sleeps(base: Path) -> None:
    with pytest.raises(RecipeError, match=r"rollout.sleep_level=2 with rollout.engine=hf: only vLLM"):
        load_recipe(base, ["rollout.sleep_level=2"])
