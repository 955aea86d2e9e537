"""What a recipe names: rewards and tasks, with their options and files. Checked without torch or a model.

A user's file is read, not run: that it is there, and defines what the recipe names. Left to the run: modules, datasets
and models, which may be on another machine than a recipe is checked on.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpo.recipe.data import SourceConfig
from grpo.recipe.load import RecipeError
from grpo.recipe.loop.rewards import RewardConfig
from grpo.recipe.section import Section, StageRecipe
from grpo.recipe.stages.pipeline import PipelineRecipe
from grpo.stages.pipeline.graph import build_graph, unresolved
from rewards.runner.load import BUILTINS, check_options, load_function
from rollout.data.generated import TaskSource
from rollout.support.names import nearest


def check_references(recipe: StageRecipe, path: str | Path) -> None:
    """Check everything that a recipe, or any stage of a pipeline, names.

    path: the recipe's, for the message.

    Raises:
        RecipeError: lists every name that is not there, and every option that it does not take.
    """
    if isinstance(recipe, PipelineRecipe):
        nodes = build_graph(recipe)
        names = unresolved(recipe.base, (node.name for node in nodes))
        problems = [f"stages.{node.name}.{problem}" for node in nodes for problem in _problems(node.recipe(names), "")]
    else:
        problems = list(_problems(recipe, ""))
    if problems:
        count = f" {len(problems)} errors" if len(problems) > 1 else ""
        raise RecipeError("\n".join([f"{path}:{count}", *(f"  - {line}" for line in problems)]))


def _problems(value: Any, place: str) -> Iterator[str]:
    """Of a section, or of a list or mapping of sections, at a place such as `evaluation.data`."""
    found = ""
    if isinstance(value, RewardConfig):
        found = _reward(value)
    elif isinstance(value, SourceConfig):
        found = _source(value)
    if found:
        yield f"{place}: {found}"
    items = value if isinstance(value, Section) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in value.items() if isinstance(value, dict) else items:
        yield from _problems(inner, f"{place}.{name}" if place else str(name))


def _reward(reward: RewardConfig) -> str:
    name = reward.function
    try:
        if name in BUILTINS or ":" not in name:
            check_options(name, load_function(name), reward.options)
        else:
            _check_file(name, "reward")
    except ValueError as error:
        return str(error)
    return ""


def _source(source: SourceConfig) -> str:
    task = source.task
    try:
        if task is not None and ".py:" in task:
            _check_file(task, "data.task")
        elif task is not None:
            TaskSource(task, source.task_options, columns=source.columns)
    except ValueError as error:
        return str(error)
    return ""


def _check_file(reference: str, kind: str) -> None:
    """Raise ValueError unless `path/to/file.py:name` is there; references to modules pass."""
    where, _, name = reference.rpartition(":")
    if not where.endswith(".py"):
        return
    path = Path(where).expanduser().absolute()
    if not path.is_file():
        raise ValueError(
            f"{kind}: file {path} does not exist. Correct the path. Relative paths start in the working directory; in "
            "a recipe, ./ and ../ mean its folder."
        )
    text = path.read_text(encoding="utf-8")
    try:
        ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f"{kind}: {path}:{error.lineno}: {error.msg}. Correct the file.") from None
    if not re.search(rf"\b{re.escape(name)}\b", text) and "import *" not in text:
        functions = re.findall(r"^(?:async )?def (\w+)", text, re.MULTILINE)
        raise ValueError(f"{kind} {reference!r}: {where} does not define {name!r}.{nearest(name, functions)}")
