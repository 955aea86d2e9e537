"""Sources of problems, by index: problem i never depends on who asks, or when.

So the whole state of the stream is a position, each process can compute its own share of the global order, and a
resumed run continues exactly where the last one stopped.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from rollout.data.columns import Columns
from rollout.data.dataset import DatasetSource
from rollout.data.generated import TaskSource
from rollout.data.streaming import StreamingSource
from rollout.types import Problem


class Source(Protocol):
    """Problems by index."""

    @property
    def size(self) -> int | None:
        """Number of problems; None: endless, generated or streamed."""
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
    streaming: bool = False,
    shuffle_buffer_size: int = 10_000,
    split: str = "train",
    seed: int = 0,
) -> Source:
    """The source a recipe's `data` section describes; exactly one of `task` and `dataset_name` is given.

    Args:
        split: for generated tasks: "train", "eval" (held out) or "pretrain", which share no problem. Datasets use
            `dataset_split` instead, e.g. "test" or "train[:-500]".
        streaming: read the dataset as it is needed, shuffled within blocks of `shuffle_buffer_size` rows.
        seed: for generated tasks and streams. Keep 0 for held-out problems, so that runs with any seed are evaluated on
            the same ones.
        dataset_files: load these files of the Hub repository or local folder instead of its default configuration.
        columns: our name -> the dataset's, e.g. {"prompt": "question", "solution": "answer"}; other columns keep their
            names. A dotted name, "reward_model.ground_truth", is a value inside a column. A list of names means the
            first one present, for datasets whose copies name a column differently.
    """
    if task is not None:
        return TaskSource(task, task_options or {}, split=split, seed=seed, columns=columns or {})
    assert dataset_name is not None
    where: dict[str, Any] = {
        "config": dataset_config,
        "split": dataset_split,
        "revision": dataset_revision,
        "files": dataset_files,
        "columns": columns or {},
    }
    if streaming:
        return StreamingSource(dataset_name, seed=seed, shuffle_buffer_size=shuffle_buffer_size, **where)
    return DatasetSource(dataset_name, **where)
