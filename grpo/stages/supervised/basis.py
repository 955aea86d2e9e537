"""What a run's steps are made from, kept beside its checkpoints' marks: on another basis, a resumed run would train on
the wrong rows.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from grpo.learner.checkpoint import STATE
from grpo.recipe.errors import RefusedError

FILE = "basis.json"  # inside a checkpoint's STATE


@dataclass(frozen=True, slots=True)
class Basis:
    """Basis("9f0c3a1b2d4e5f60", processes=2, gradient_accumulation_steps=1)

    The last two decide which micro-batches make a step, where rows are batched one micro-batch after another; where
    they are not, they stay at 1.
    """

    rows: str  # their fingerprint
    processes: int = 1
    gradient_accumulation_steps: int = 1

    @property
    def per_step(self) -> int:
        """Micro-batches of a step, of all processes."""
        return self.processes * self.gradient_accumulation_steps

    def write(self, checkpoint: Path) -> None:
        """To be called before the checkpoint is marked as complete."""
        (checkpoint / STATE).mkdir(exist_ok=True)
        (checkpoint / STATE / FILE).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    def check(self, checkpoint: Path, allowed: Sequence[str]) -> None:
        """Refuse to continue a checkpoint of another basis. allowed: trainer.allow_changes; `data` allows other rows.

        Raises:
            RefusedError: rows would be taken twice or never.
        """
        file = checkpoint / STATE / FILE
        if not file.is_file():
            raise RefusedError(
                f"{checkpoint} has no {STATE}/{FILE}: an earlier version wrote it, and nothing says which rows it has "
                f"been trained on. Start from its weights with model.model_name_or_path={checkpoint}."
            )
        before = Basis(**json.loads(file.read_text(encoding="utf-8")))
        if before.per_step != self.per_step:
            raise RefusedError(
                f"{checkpoint} is of {before.processes} processes with trainer.gradient_accumulation_steps="
                f"{before.gradient_accumulation_steps}, and this run has {self.processes} with "
                f"{self.gradient_accumulation_steps}: with another product, a step has other rows, and some would be "
                f"taken twice or never. Launch {before.processes} processes, or keep the product at {before.per_step}."
            )
        if before.rows != self.rows and not any(name.partition(".")[0] == "data" for name in allowed):
            raise RefusedError(
                f"data: the rows have changed since {checkpoint}, so some would be taken twice or never. Restore them, "
                "start a new run, or allow it with trainer.allow_changes=[data]."
            )


def fingerprint(rows: Dataset) -> str:
    """A hash of what the rows hold, numbers and lists of numbers, in their order."""
    digest = blake2b(digest_size=8)
    for table in rows.with_format("arrow").iter(1000):
        for column in table.columns:  # type: ignore[union-attr]
            if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
                digest.update(pc.list_value_length(column).to_numpy().tobytes())  # type: ignore[attr-defined]
                column = pc.list_flatten(column)  # type: ignore[attr-defined]
            digest.update(column.to_numpy().tobytes())
    return digest.hexdigest()
