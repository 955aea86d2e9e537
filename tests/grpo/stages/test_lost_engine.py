"""The engine is lost at some moment of a run: what was trained is saved, and a resumed run ends like a whole one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import grpo
from grpo.recipe.errors import RefusedError, RunError
from grpo.report.records import deterministic
from rollout.engines.base import EngineLostError
from rollout.engines.hf import HFEngine
from tests.grpo.stages.test_run_folder import base

__all__ = ["base"]  # the fixture

# What a run of four steps generates, in order.
VERIFY, EVALUATE_0, EVALUATE_2, ROLLOUT_3, EVALUATE_4 = 0, 2, 5, 6, 8


@pytest.fixture
def lost_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The engine is lost in the generation of this number, while it yields."""
    moments: list[int] = []
    count = 0
    original = HFEngine.generate

    def generate(self: HFEngine, *arguments: Any) -> Iterator[Any]:
        nonlocal count
        count += 1
        lost = count - 1 in moments

        def groups() -> Iterator[Any]:
            for group in original(self, *arguments):
                yield group
                if lost:
                    raise EngineLostError("no server is left: it fell over")

        return groups()

    monkeypatch.setattr(HFEngine, "generate", generate)
    return moments


def train(recipe: Path, folder: Path, **trainer: Any) -> Path:
    settings = {"max_steps": 4, "output_dir": str(folder), **trainer}
    return grpo.train(recipe, trainer=settings, evaluation={"num_problems": 2, "num_samples": 2, "eval_steps": 2})


def rows(folder: Path) -> list[dict[str, Any]]:
    return [deterministic(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("moment", "step"), [(EVALUATE_0, 0), (EVALUATE_2, 2), (ROLLOUT_3, 2), (EVALUATE_4, 4)])
def test_a_run_that_loses_its_engine_stops_with_the_cause_and_continues_exactly(
    base: Path, tmp_path: Path, lost_at: list[int], moment: int, step: int
) -> None:
    lost_at.append(moment)
    with pytest.raises(RunError, match=f"^stopped at step {step}: no server is left: it fell over. Continue with"):
        train(base, tmp_path / "run")
    checkpoint = tmp_path / f"run/checkpoint-{step}"
    assert checkpoint.exists() == (step > 0)
    lost_at.clear()
    assert train(base, tmp_path / "run", resume_from_checkpoint=True) == tmp_path / "run/checkpoint-4"
    train(base, tmp_path / "whole")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_an_engine_lost_before_training_is_a_refusal(base: Path, tmp_path: Path, lost_at: list[int]) -> None:
    lost_at.append(VERIFY)
    with pytest.raises(RefusedError, match="no server is left: it fell over"):
        train(base, tmp_path / "run")
