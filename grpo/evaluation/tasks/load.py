"""From a task's name to its problems.

A task is data: an entry in tasks.yaml or a recipe's define_tasks, or a user's own file. No code depends on a task's
name.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from grpo.evaluation.config import FILE_SUFFIXES, TaskConfig, builtin_tasks
from grpo.recipe.load import load_section
from rollout.data.dataset import DatasetSource
from rollout.data.sources import Source, load_source
from rollout.data.stream import distinct, fixed_order
from rollout.support.names import nearest
from rollout.types import Problem

_NUM_GENERATED = 512  # problems of a generated task
_COLUMN = re.compile(r"\{(\w+)\}")
_NAMED = re.compile(r"(?<![\w\\}^])\{([a-zA-Z]\w*)\}")  # not LaTeX's \text{cm}, \frac{1}{n}, x_{n}, x^{n}, \{a}


@dataclass(frozen=True, slots=True)
class Task:
    """Task("gsm8k", TaskConfig(…), [Problem("gsm8k/0", "Janet's ducks…", {"solution": "… #### 18"}), …], {})"""

    name: str
    config: TaskConfig
    problems: list[Problem]  # prompt: the task's question, before any template
    references: dict[str, str]  # problem id -> reference completion, if the task defines one


def load_task(
    name: str,
    define_tasks: Mapping[str, TaskConfig] | None = None,
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
) -> Task:
    """Load a task's problems.

    Args:
        name: a task's name, or the path of a .yaml file that defines one.
        define_tasks: tasks in addition to the built-in ones.
        data_dir: folder with local dataset copies, see `local_file`.
        limit: take this many problems: a fixed random subset, in dataset order.

    Raises:
        ValueError: unknown task, or a missing file or column.
    """
    name, config = find_task(name, define_tasks or {})
    dataset_name, dataset_files, dataset_split = _location(name, config, data_dir)
    source = load_source(
        task=config.task,
        task_options=config.task_options,
        dataset_name=dataset_name,
        dataset_config=config.dataset_config,
        dataset_split=dataset_split,
        dataset_revision=config.dataset_revision,
        dataset_files=dataset_files,
        columns=config.columns,
        split="eval",
    )
    if data_dir is not None and isinstance(source, DatasetSource):
        # A local copy may lack the column, and may already hold only the selected rows.
        there = {column: bounds for column, bounds in config.where.items() if column in source.column_names}
        config = config.model_copy(update={"where": there})
    problems: list[Problem] = []
    references: dict[str, str] = {}
    for index, row in _chosen(source, config, limit):
        if config.choices:
            row = _with_choices(name, row, config.choices)
        texts = _texts(row)
        question = _question(config, texts)
        if missing := _missing(question, texts):
            raise ValueError(
                f"task {name!r}: the question uses {{{missing[0]}}}, but the dataset has no such column."
                f"{nearest(missing[0], texts)} Columns: {', '.join(texts)}."
            )
        # A prompt of messages is already complete.
        prompt = fill(question, texts) if isinstance(row.prompt, str) else row.prompt
        problems.append(Problem(id=f"{name}/{index}", prompt=prompt, columns=row.columns))
        if config.reference is not None and not _missing(config.reference, texts):
            references[problems[-1].id] = fill(config.reference, texts)
    columns = problems[0].columns
    if missing := [group for group in config.groups if group not in columns]:
        if data_dir is None:
            has = ", ".join(columns)
            raise ValueError(
                f"task {name!r}: groups={config.groups}, but the dataset has no column {missing[0]!r}. Columns: {has}."
            )
        config = config.model_copy(update={"groups": [group for group in config.groups if group in columns]})
    return Task(name, config, problems, references)


def find_task(name: str, define_tasks: Mapping[str, TaskConfig]) -> tuple[str, TaskConfig]:
    """A task's name and configuration."""
    if name in define_tasks:
        return name, define_tasks[name]
    if name.endswith((".yaml", ".yml")):
        return Path(name).stem, load_section(name, TaskConfig)
    known = builtin_tasks()
    if name not in known:
        raise ValueError(
            f"unknown task {name!r}.{nearest(name, [*known, *define_tasks])} Tasks: "
            f"{', '.join([*known, *define_tasks])}, or the path of a .yaml file that defines one."
        )
    return name, TaskConfig.model_validate(known[name])


def local_file(data_dir: Path, name: str, split: str) -> Path:
    """A task's file in a folder of local copies: NAME.jsonl, or the file in NAME/ whose name contains the split.

    If NAME/ holds a single file, its name does not matter. .json and .parquet work as well. A task with several files
    (`dataset_files`) only gets here if NAME/ lacks one of them.
    """
    alone = [data_dir / f"{name}{suffix}" for suffix in FILE_SUFFIXES]
    inside = sorted(path for path in (data_dir / name).glob("*") if path.suffix in FILE_SUFFIXES)
    found = [path for path in alone if path.is_file()] or [path for path in inside if split in path.stem]
    found = found or (inside if len(inside) == 1 else [])
    if len(found) != 1:
        there = ", ".join(path.name for path in found or inside) or "nothing"
        raise ValueError(
            f"data_dir={str(data_dir)!r}: task {name!r} needs {name}.jsonl, or exactly one file in {name}/ with "
            f"{split!r} in its name; found: {there}. Remove data_dir to load the dataset from the Hub."
        )
    return found[0]


def _location(name: str, config: TaskConfig, data_dir: Path | None) -> tuple[str | None, list[str], str]:
    """The dataset's name, files and split. A local copy is one split, and as a file it has only `train`."""
    files = config.dataset_files
    if config.dataset_name is None or config.is_file or data_dir is None:
        return config.dataset_name, files, config.split
    if files and all((data_dir / name / file).is_file() for file in files):
        return str(data_dir / name), files, config.split
    split, bracket, rows = (config.dataset_split or "test").partition("[")
    return str(local_file(data_dir, name, split)), [], f"train{bracket}{rows}"


def _chosen(source: Source, config: TaskConfig, limit: int | None) -> Iterator[tuple[int, Problem]]:
    if not isinstance(source, DatasetSource):  # the same problems as in held-out evaluation during training
        size = config.num_problems or _NUM_GENERATED
        yield from enumerate(islice(distinct(source, range(20 * size)), min(size, limit or size)))
        return
    rows = list(range(source.size))
    for column, (low, high) in config.where.items():
        within = set(source.within(column, low, high))
        rows = [row for row in rows if row in within]
    if not rows:
        raise ValueError(f"where={config.where}: dataset {source.name!r} has no matching row. Widen or remove it.")
    if limit is not None:
        rows = sorted(rows[place] for place in fixed_order(len(rows))[:limit])
    yield from ((row, source[row]) for row in rows)


def _with_choices(task: str, row: Problem, names: Sequence[str]) -> Problem:
    """Add `choices`, the named columns in an order fixed by the question, and `answer`, the first of them."""
    for name in names:
        if name not in row.columns:
            has = ", ".join(row.columns)
            raise ValueError(
                f"task {task!r}: choices={list(names)}, but the dataset has no column {name!r}. Columns: {has}."
            )
    choices = [str(row.columns[name]).strip() for name in names]
    answer = choices[0]
    random.Random(str(row.prompt)).shuffle(choices)
    return Problem(id=row.id, prompt=row.prompt, columns={**row.columns, "choices": choices, "answer": answer})


def _texts(row: Problem) -> dict[str, Any]:
    """Values for {name}: the row's columns, with choices lettered as `multiple_choice` reads them."""
    texts = {**row.columns, "prompt": row.prompt}
    if isinstance(choices := texts.get("choices"), list):
        texts["choices"] = [f"{letter}) {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False)]
    return texts


def _question(config: TaskConfig, columns: Mapping[str, Any]) -> str:
    """The first question text whose columns are all non-empty, else the last."""
    if isinstance(config.question, str):
        return config.question
    *first, last = config.question
    return next((text for text in first if all(columns.get(name) for name in _COLUMN.findall(text))), last)


def _missing(template: str, columns: Mapping[str, Any]) -> list[str]:
    """Names in a template that are not columns."""
    return [name for name in _NAMED.findall(template) if name not in columns]


def fill(template: str, columns: Mapping[str, Any]) -> str:
    """Replace {name} by the column's value, a list one item per line. Other braces, such as LaTeX's, are kept."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in columns:
            return match[0]
        column = columns[match[1]]
        return "\n".join(map(str, column)) if isinstance(column, list) else str(column)

    return _COLUMN.sub(value, template)
