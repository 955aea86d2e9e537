"""Generated tasks as a source of problems.

A task is a generator `(rng, split, **options) -> {"prompt": …, …}` (see `rollout.data.tasks`): one of `TASKS`, or one's
own as "path/to/file.py:function". To add a package of tasks, named "<family>:<name>", write one function that returns
such generators and add one line to `FAMILIES`.
"""

import inspect
import random
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import PurePath
from typing import Any, get_type_hints

from rollout.data import tasks
from rollout.data.columns import Columns, column_names, resolve_columns, to_problem
from rollout.support.kinds import misfit
from rollout.support.loading import load_object
from rollout.support.names import nearest
from rollout.types import Problem

Generator = Callable[[random.Random, str], dict[str, Any]]  # (rng, split) -> the columns of one problem


class TaskSource:
    """Problems of a generated task. Problem i has its own random generator, seeded with (task, seed, split, i)."""

    size = None

    def __init__(
        self,
        task: str,
        options: dict[str, Any],
        *,
        split: str = "train",
        seed: int = 0,
        columns: Columns | None = None,
    ) -> None:
        # Of a file only its name: problems are the same wherever it lies.
        self.task, self.split, self.seed = PurePath(task).name if ".py:" in task else task, split, seed
        self._generate = _generator(task, options)
        self._columns = resolve_columns(f"task {task!r}", column_names(self._draw(0)), columns or {})

    def __getitem__(self, index: int) -> Problem:
        return to_problem(f"{self.task}/{self.split}/{index}", self._draw(index), self._columns)

    def _draw(self, index: int) -> dict[str, Any]:
        rng = random.Random(f"{self.task}/{self.seed}/{self.split}/{index}")
        return self._generate(rng, self.split)


def reasoning_gym(name: str, options: dict[str, Any]) -> Generator:
    """A task of the package reasoning-gym, with the columns `answer` and `metadata`.

    Problems are drawn from a pool of `size` items (an option, default 100,000): some tasks only support a fixed pool.
    """
    task = f"reasoning_gym:{name}"
    if find_spec("reasoning_gym") is None:
        raise ValueError(f"task {task!r} needs the package reasoning-gym: pip install reasoning-gym")
    import reasoning_gym  # pyright: ignore[reportMissingImports]
    from reasoning_gym.factory import DATASETS  # pyright: ignore[reportMissingImports]

    if name not in DATASETS:
        raise ValueError(f"task {task!r}: reasoning_gym has no such task.{nearest(name, DATASETS)}")
    _check_options(task, DATASETS[name][1], options, given=("seed",))
    try:
        items = reasoning_gym.create_dataset(name, **{"size": 100_000, **options, "seed": 0})
    except (AssertionError, TypeError, ValueError) as error:  # its checks of the options
        raise ValueError(f"task_options={options}: task {task!r} refuses them: {error}. Correct them.") from error

    def generate(rng: random.Random, split: str) -> dict[str, Any]:
        for _ in range(1000):
            item = items[rng.randrange(len(items))]
            if tasks.split_of(f"{task} {item['question']}") == split:
                return {"prompt": item["question"], "answer": item["answer"], "metadata": item["metadata"]}
        raise ValueError(f"task {task!r}: no problem of split {split!r} in 1000 draws. Make the task more varied.")

    return generate


TASKS: dict[str, Callable[..., dict[str, Any]]] = {"countdown": tasks.countdown, "arithmetic": tasks.arithmetic}
FAMILIES: dict[str, Callable[[str, dict[str, Any]], Generator]] = {"reasoning_gym": reasoning_gym}


def _generator(task: str, options: dict[str, Any]) -> Generator:
    if task in TASKS:
        _check_options(task, TASKS[task], options, given=("rng", "split"))
        return partial(TASKS[task], **options)
    if ".py:" in task:
        function = load_object(task, kind="data.task")
        _check_options(task, function, options, given=("rng", "split"))
        return partial(function, **options)
    family, colon, name = task.partition(":")
    if colon and family in FAMILIES:
        return FAMILIES[family](name, options)
    known = ", ".join([*TASKS, *(f"{family}:<name>" for family in FAMILIES), "path/to/file.py:function"])
    raise ValueError(f"task {task!r} is unknown.{nearest(task, TASKS)} Tasks: {known}.")


def _check_options(task: str, function: Callable[..., Any], options: dict[str, Any], *, given: tuple[str, ...]) -> None:
    """given: parameters that are set here, not by the user."""
    known = [name for name in inspect.signature(function).parameters if name not in given]
    types = get_type_hints(function) if task in TASKS else {}  # what others declare is not always what they take
    for option, value in options.items():
        if option not in known:
            raise ValueError(
                f"task_options={options}: task {task!r} has no option {option!r}.{nearest(option, known)} "
                f"Options: {', '.join(known) or 'none'}."
            )
        if rule := misfit(value, types.get(option, Any)):
            raise ValueError(f"task_options={options}: task {task!r}: {option}={value!r} {rule}")
