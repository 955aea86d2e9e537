"""Where problems come from, and the stream that hands them out.

A source is random access: problem i is the same whoever asks, whenever. So a stream's whole state is a position, every
process can work out its own share of the global order, and a resumed run goes on exactly where the other one stopped.

Left out: streaming datasets (no random access), mixtures of several sources.
"""

import difflib
import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from rollout.data import tasks
from rollout.data.prompts import Prompter
from rollout.types import Problem, Prompt

TASKS: dict[str, Callable[..., dict[str, Any]]] = {"countdown": tasks.countdown, "arithmetic": tasks.arithmetic}
_REASONING_GYM = "reasoning_gym:"
_FILE_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
Columns = Mapping[str, str | list[str]]  # ours -> theirs
_MAX_BARREN = 1000  # generated problems in a row that are all too long: the next will be, too


class Source(Protocol):
    """Problems by number."""

    @property
    def size(self) -> int | None:
        """How many there are; None: generated without end."""
        ...

    def __getitem__(self, index: int) -> Problem: ...


def load_source(
    *,
    task: str | None = None,
    task_options: dict[str, Any] | None = None,
    dataset_name: str | None = None,
    dataset_config: str | None = None,
    dataset_split: str = "train",
    dataset_revision: str | None = None,
    dataset_files: Sequence[str] = (),
    columns: Columns | None = None,
    split: str = "train",
    seed: int = 0,
) -> Source:
    """The source that a recipe's `data` section names: exactly one of `task` and `dataset_name`.

    split: of a generated task: "train", "eval" (held out) or "pretrain", which share no problem. A dataset has
        `dataset_split` instead, e.g. "test" or "train[:-500]".
    seed: of a generated task. Leave it at 0 for held-out problems: runs of every seed are judged on the same ones.
    dataset_files: files of that Hub repository or local folder, instead of what its configuration or script would load.
    columns: ours -> theirs, e.g. {"prompt": "question", "solution": "answer"}; columns not named keep their names.
        Where copies of a dataset differ, theirs may be a list of names, of which the first that is there counts.
    """
    if task is not None:
        return TaskSource(task, task_options or {}, split=split, seed=seed, columns=columns or {})
    assert dataset_name is not None
    return DatasetSource(
        dataset_name,
        config=dataset_config,
        split=dataset_split,
        revision=dataset_revision,
        files=dataset_files,
        columns=columns or {},
    )


class TaskSource:
    """Problems of a generated task. Problem i has a random generator of its own, seeded with (task, seed, split, i)."""

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
        self.task, self.split, self.seed = task, split, seed
        self._options = options
        if task.startswith(_REASONING_GYM):
            self._generate = _reasoning_gym(task.removeprefix(_REASONING_GYM), options)
            self._options = {}
        elif task in TASKS:
            self._generate = TASKS[task]
            _check_options(task, self._generate, options)
        else:
            known = f"{', '.join(TASKS)}, {_REASONING_GYM}<name>"
            raise ValueError(f"task {task!r} is unknown.{_nearest(task, TASKS)} Tasks: {known}.")
        self._columns = _found_columns(f"task {task!r}", list(self._draw(0)), columns or {})

    def __getitem__(self, index: int) -> Problem:
        return _problem(f"{self.task}/{self.split}/{index}", self._draw(index), self._columns)

    def _draw(self, index: int) -> dict[str, Any]:
        rng = random.Random(f"{self.task}/{self.seed}/{self.split}/{index}")
        return self._generate(rng, self.split, **self._options)


class DatasetSource:
    """Rows of a dataset: a Hub name, a local folder, or a local .json, .jsonl or .parquet file.

    A problem's id is the dataset's name, its split and the row number, so it is the same on every machine.
    """

    def __init__(
        self,
        name: str,
        *,
        config: str | None = None,
        split: str = "train",
        revision: str | None = None,
        files: Sequence[str] = (),
        columns: Columns | None = None,
    ) -> None:
        from datasets import Dataset, load_dataset
        from datasets.exceptions import DatasetGenerationError

        path = Path(name)
        kind = name
        options: dict[str, Any] = {"name": config, "revision": revision}
        if files:
            folder = name if path.is_dir() else f"hf://datasets/{name}@{revision or 'main'}"
            kind, options = _file_format(files), {"data_files": [f"{folder}/{file}" for file in files]}
        elif path.suffix in _FILE_FORMATS:
            if not path.is_file():
                raise ValueError(f"dataset_name={name!r}: there is no such file (looked for {path.absolute()}).")
            if path.stat().st_size == 0:
                raise ValueError(f"dataset_name={name!r}: the file is empty.")
            kind, options = _FILE_FORMATS[path.suffix], {"data_files": str(path)}
        try:
            rows = load_dataset(kind, split=split, **options)
        except (OSError, DatasetGenerationError) as error:
            raise ValueError(f"dataset_name={name!r} cannot be read: {error.__cause__ or error}") from error
        assert isinstance(rows, Dataset)
        if len(rows) == 0:
            raise ValueError(f"dataset_name={name!r}, dataset_split={split!r}: no rows.")
        self.name = path.name if path.exists() else name
        self.split = split
        self.size = len(rows)
        self.column_names: list[str] = rows.column_names
        self._rows = rows
        self._columns = _found_columns(f"dataset {name!r}", rows.column_names, columns or {})

    def __getitem__(self, index: int) -> Problem:
        return _problem(f"{self.name}/{self.split}/{index}", self._rows[index], self._columns)

    def within(self, column: str, low: Any, high: Any) -> list[int]:
        """Numbers of the rows with low <= column < high. A date is compared as its text: "2024-08-01T00:00:00"."""
        if column not in self.column_names:
            has = ", ".join(self.column_names)
            raise ValueError(f"where={{{column}: …}}: dataset {self.name!r} has no column {column!r}. It has: {has}.")
        found: list[int] = []
        for index, value in enumerate(self._rows[column]):
            value = value.isoformat() if isinstance(value, date) else value
            if isinstance(value, str) != isinstance(low, str) or value is None:
                raise ValueError(
                    f"where={{{column}: [{low!r}, {high!r}]}}: row {index} of {self.name!r} holds {value!r}, which is "
                    "not to be compared with these. Give both bounds as texts for texts and dates, else as numbers."
                )
            if low <= value < high:
                found.append(index)
        return found


class ProblemStream:
    """An endless, resumable stream of prompts, of which each process takes its share.

    A dataset is shuffled anew in each epoch; a generated task is taken in the order of its numbers. Prompts over the
    budget are skipped and counted in `num_dropped`. All processes walk the whole stream and keep every num_processes-th
    prompt, so order, `num_dropped` and state are the same on each of them and do not depend on how many there are.
    """

    def __init__(
        self, source: Source, prompter: Prompter, *, seed: int, process_index: int = 0, num_processes: int = 1
    ) -> None:
        self.source, self.prompter, self.seed = source, prompter, seed
        self.process_index, self.num_processes = process_index, num_processes
        self.num_dropped = 0
        self._position = 0  # problems walked past, dropped ones included
        self._barren = 0  # dropped in a row
        self._epoch_order: tuple[int, list[int]] | None = None

    def take(self, total: int) -> list[Prompt]:
        """This process's share of the stream's next `total` prompts."""
        taken: list[Prompt] = []
        while (missing := total - len(taken)) > 0:
            problems = [self._problem(self._position + i) for i in range(missing)]
            self._position += missing
            for prompt in self.prompter.encode_batch(problems):
                if prompt is None:
                    self.num_dropped += 1
                    self._barren += 1
                else:
                    taken.append(prompt)
                    self._barren = 0
            if self._barren >= (self.source.size or _MAX_BARREN):
                raise ValueError(
                    f"max_prompt_length={self.prompter.max_prompt_length}: the last {self._barren} prompts were all "
                    "longer. Raise it, or choose shorter problems or a shorter template."
                )
        return taken[self.process_index :: self.num_processes]

    def state_dict(self) -> dict[str, int]:
        """All that a resume needs; plain integers, the same on every process."""
        return {"position": self._position, "num_dropped": self.num_dropped}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._position, self.num_dropped = state["position"], state["num_dropped"]

    def _problem(self, position: int) -> Problem:
        if self.source.size is None:
            return self.source[position]
        epoch, place = divmod(position, self.source.size)
        if self._epoch_order is None or self._epoch_order[0] != epoch:
            self._epoch_order = epoch, _shuffled(self.source.size, f"{self.seed}/{epoch}")
        problem = self.source[self._epoch_order[1][place]]
        if epoch == 0:
            return problem
        # A row that comes again, maybe within one rollout, is a group of its own with random numbers of its own.
        return Problem(id=f"{problem.id}@{epoch}", prompt=problem.prompt, columns=problem.columns)


def held_out(source: Source, prompter: Prompter, num_problems: int) -> list[Prompt]:
    """Prompts for evaluation, always the same ones: distinct, and a fixed random choice of a dataset's rows.

    Fewer than num_problems where the source has no more that are distinct and fit the budget.
    """
    prompts: list[Prompt] = []
    for problem in distinct(source, range(20 * num_problems) if source.size is None else fixed_order(source.size)):
        if len(prompts) == num_problems:
            break
        if (prompt := prompter.encode(problem)) is not None:
            prompts.append(prompt)
    if not prompts:
        raise ValueError(f"max_prompt_length={prompter.max_prompt_length}: every held-out prompt is longer. Raise it.")
    return prompts


def fixed_order(size: int) -> list[int]:
    """Rows of a dataset in the order in which held-out problems are chosen: random, and always the same."""
    return _shuffled(size, "held out")


def distinct(source: Source, order: Iterable[int]) -> Iterator[Problem]:
    """Problems in this order, without those whose prompt came before."""
    seen: set[str] = set()
    for index in order:
        problem = source[index]
        if (key := repr(problem.prompt)) not in seen:
            seen.add(key)
            yield problem


def _reasoning_gym(name: str, options: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """A reasoning_gym task as a generator like those of rollout.tasks, with columns `answer` and `metadata`.

    Its items come from a pool of `size` (an option; 100,000), because some tasks know no others.
    """
    task = _REASONING_GYM + name
    if find_spec("reasoning_gym") is None:
        raise ValueError(f"task {task!r} needs the package reasoning-gym: pip install reasoning-gym")
    import reasoning_gym  # pyright: ignore[reportMissingImports]
    from reasoning_gym.factory import DATASETS  # pyright: ignore[reportMissingImports]

    if name not in DATASETS:
        raise ValueError(f"task {task!r}: reasoning_gym has no such task.{_nearest(name, DATASETS)}")
    _check_options(task, DATASETS[name][1], options, given=("seed",))
    items = reasoning_gym.create_dataset(name, **{"size": 100_000, **options, "seed": 0})

    def generate(rng: random.Random, split: str) -> dict[str, Any]:
        for _ in range(1000):
            item = items[rng.randrange(len(items))]
            if tasks.split_of(f"{task} {item['question']}") == split:
                return {"prompt": item["question"], "answer": item["answer"], "metadata": item["metadata"]}
        raise ValueError(f"task {task!r}: no problem of split {split!r} in 1000 draws. Make the task more varied.")

    return generate


def _problem(problem_id: str, row: dict[str, Any], columns: dict[str, str]) -> Problem:
    renamed = {name: value for name, value in row.items() if name not in columns.values()}
    renamed |= {ours: row[theirs] for ours, theirs in columns.items()}
    prompt = renamed.pop("prompt")
    if not isinstance(prompt, str | list) or prompt == []:
        raise ValueError(f"{problem_id}: the prompt is {prompt!r}; it must be a string or a list of messages.")
    return Problem(id=problem_id, prompt=prompt, columns=renamed)


def _file_format(files: Sequence[str]) -> str:
    formats = {_FILE_FORMATS.get(Path(file).suffix) for file in files}
    kind = formats.pop()
    if formats or kind is None:
        known = ", ".join(_FILE_FORMATS)
        raise ValueError(f"dataset_files={list(files)}: files of one format are needed, of {known}.")
    return kind


def _found_columns(source: str, present: Sequence[str], columns: Columns) -> dict[str, str]:
    """Ours -> theirs as the source has them."""
    has = f"It has: {', '.join(present)}."
    found = {}
    for ours, names in columns.items():
        names = [names] if isinstance(names, str) else names
        there = [name for name in names if name in present]
        if not there:
            said = " or ".join(map(repr, names))
            raise ValueError(f"columns={columns}: {source} has no column {said}.{_nearest(names[0], present)} {has}")
        found[ours] = there[0]
    if "prompt" not in columns and "prompt" not in present:
        raise ValueError(
            f"{source} has no column 'prompt'. {has} Name the one with the question: columns: {{prompt: question}}."
        )
    return found


def _check_options(
    task: str, function: Callable[..., Any], options: dict[str, Any], given: tuple[str, ...] = ("rng", "split")
) -> None:
    known = [name for name in inspect.signature(function).parameters if name not in given]
    for option in options:
        if option not in known:
            raise ValueError(
                f"task_options={options}: task {task!r} has no option {option!r}.{_nearest(option, known)} "
                f"Options: {', '.join(known)}."
            )


def _nearest(word: str, known: "Sequence[str] | dict[str, Any]") -> str:
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def _shuffled(size: int, seed: str) -> list[int]:
    order = list(range(size))
    random.Random(seed).shuffle(order)
    return order
