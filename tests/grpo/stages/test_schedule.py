"""When a run refreshes its reference model, evaluates and saves: whole schedules, written out by hand."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grpo.algorithm.entropy import EntropyBonus
from grpo.recipe.algorithm import AlgorithmConfig
from grpo.recipe.config import DataConfig, GRPORecipe, PolicyConfig, RewardConfig, TrainerConfig
from grpo.report.metrics import Metric
from grpo.report.schedule import due_within, is_due
from grpo.stages.grpo import Trainer


def run(max_steps: int, steps_per_generation: int, *, sync: int = 0, save: int = 0, evaluate: int = 0) -> Any:
    """The real training loop on parts that only note at which step they are called."""
    recipe = GRPORecipe(
        model=PolicyConfig(model_name_or_path="base"),
        data=DataConfig(task="countdown"),
        rewards=[RewardConfig(function="random")],
        algorithm=AlgorithmConfig(
            steps_per_generation=steps_per_generation, beta=0.1, ref_model_sync_steps=sync, loss_type="grpo"
        ),
        trainer=TrainerConfig(max_steps=max_steps, save_steps=save),
    )
    recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"eval_steps": evaluate})})
    noted: Any = SimpleNamespace(refreshed=[], saved=[], evaluated=[])

    class Noting(Trainer):
        def rollout(self) -> list:
            return []

        def prepare(self, groups: list) -> tuple[list, dict[str, Metric]]:
            return [], {}

        def evaluate(self) -> None:
            noted.evaluated.append(self.step)

        def save(self) -> None:
            noted.saved.append(self.step)
            self.saved = Path()

        def _log(self, local: dict[str, Metric], seconds: float) -> None:
            pass

    class Phases:
        unwritten = ""

        def phase(self, name: str) -> Any:
            return self

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

        def summary(self) -> None: ...

    parts: Any = SimpleNamespace(
        recipe=recipe,
        report=Phases(),
        first_step=0,
        policy=SimpleNamespace(
            update=lambda samples, loss: {}, model=None, weights=list, optimizer=SimpleNamespace(zero_grad=list)
        ),
        reference=SimpleNamespace(refresh=lambda model: noted.refreshed.append(trainer.step)),
        problems=SimpleNamespace(num_dropped=0),
        publisher=SimpleNamespace(publish=lambda weights, step: None),
        entropy_bonus=EntropyBonus(recipe.algorithm),
        sleeper=None,
    )
    trainer = Noting(parts)
    trainer.train()
    return noted


REFRESHED = [
    # steps, steps per generation, every, refreshed after steps
    (6, 1, 1, [1, 2, 3, 4, 5, 6]),
    (6, 1, 2, [2, 4, 6]),
    (6, 1, 4, [4]),
    (12, 1, 5, [5, 10]),
    (6, 2, 1, [1, 2, 3, 4, 5, 6]),
    (6, 2, 2, [2, 4, 6]),
    (12, 2, 4, [4, 8, 12]),
    (12, 2, 5, [5, 10]),
    (6, 3, 1, [1, 2, 3, 4, 5, 6]),
    (12, 3, 2, [2, 4, 6, 8, 10, 12]),
    (12, 3, 4, [4, 8, 12]),
    (15, 3, 5, [5, 10, 15]),
    (16, 16, 1, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]),
    (16, 16, 5, [5, 10, 15]),
    (1200, 1, 400, [400, 800, 1200]),
    (1200, 2, 400, [400, 800, 1200]),
    (1200, 3, 400, [400, 800, 1200]),
    (1200, 16, 400, [400, 800, 1200]),
    (832, 16, 400, [400, 800]),
    (6, 3, 0, []),
]


@pytest.mark.parametrize(("max_steps", "per_generation", "every", "steps"), REFRESHED)
def test_the_reference_is_refreshed_exactly_at_its_interval(
    max_steps: int, per_generation: int, every: int, steps: list[int]
) -> None:
    assert run(max_steps, per_generation, sync=every).refreshed == steps


SAVED = [
    # the end of the rollout in which a multiple of `every` falls, once, and the last step
    (6, 1, 1, [1, 2, 3, 4, 5, 6]),
    (6, 1, 2, [2, 4, 6]),
    (6, 1, 4, [4, 6]),
    (12, 1, 5, [5, 10, 12]),
    (6, 2, 1, [2, 4, 6]),
    (12, 2, 4, [4, 8, 12]),
    (12, 2, 5, [6, 10, 12]),
    (12, 3, 2, [3, 6, 9, 12]),
    (12, 3, 4, [6, 9, 12]),
    (15, 3, 5, [6, 12, 15]),
    (48, 16, 4, [16, 32, 48]),
    (1200, 16, 400, [400, 800, 1200]),
    (1200, 3, 400, [402, 801, 1200]),
    (6, 3, 0, [6]),
]


@pytest.mark.parametrize(("max_steps", "per_generation", "every", "steps"), SAVED)
def test_saving_and_evaluating_happen_once_per_due_point(
    max_steps: int, per_generation: int, every: int, steps: list[int]
) -> None:
    noted = run(max_steps, per_generation, save=every, evaluate=every)
    assert noted.saved == steps
    assert noted.evaluated == [0, *steps]


def test_single_questions() -> None:
    assert [step for step in range(1, 11) if is_due(step, 5)] == [5, 10]
    assert not any(is_due(step, 0) for step in range(1, 11))
    assert [due_within(before, before + 3, 4) for before in (0, 3, 6, 9)] == [False, True, True, True]
    assert not due_within(0, 100, 0)
