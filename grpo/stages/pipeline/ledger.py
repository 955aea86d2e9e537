"""What has finished, from which recipe and which inputs: one file per node, `<output>/ledger/<node>.json`.

A node is identified by its recipe and its inputs' identities, so a change reaches everything that was made from it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

from grpo.stages import changes
from grpo.stages.pipeline.graph import Node, unresolved

# What may change without making a finished result another one.
FREE = {"report", "output", "num_reward_workers"}
FREE |= {f"rollout.{name}" for name in ("max_num_seqs", "max_model_len", "gpu_memory_utilization", "kv_cache_gib")}
FREE |= {f"rollout.{name}" for name in ("sleep_level", "servers", "adapters")}
FREE |= {f"trainer.{name}" for name in ("num_reward_workers", "save_steps", "save_total_limit", "output_dir")}
FREE |= {"trainer.allow_changes"}


@dataclass(frozen=True, slots=True)
class Entry:
    """Entry(values={"trainer.max_steps": "30", …}, inputs={"cold_start": "3f9c…"}, result="runs/r1/rl")"""

    values: dict[str, str]  # the whole recipe, flat, as JSON texts, without nulls; references not resolved
    inputs: dict[str, str]  # identities of the nodes it reads
    result: str | None  # the folder it wrote; None: it has started

    @property
    def identity(self) -> str:
        return sha256(json.dumps([self.values, self.inputs], sort_keys=True).encode()).hexdigest()[:16]

    def continues(self, before: "Entry", allowed: Sequence[str]) -> bool:
        """Whether the stage goes on in its folder: it had not finished, or only keys differ that it lets change.

        What a run on its own may always change when it is resumed, one that had not finished may here.
        """
        changed = self._changed_keys(before)
        free = changes.FREE if before.result is None else ()
        is_same_work = self.inputs == before.inputs and all(changes.covered(key, (*free, *allowed)) for key in changed)
        return is_same_work and (before.result is None or bool(changed))

    def changes(self, before: "Entry") -> list[str]:
        """What differs: `trainer.max_steps was 30, now 50`, `its input cold_start`."""
        lines = [
            f"{key} was {before.values.get(key, 'not set')}, now {self.values.get(key, 'not set')}"
            for key in self._changed_keys(before)
        ]
        names = dict.fromkeys([*before.inputs, *self.inputs])
        return lines + [f"its input {name}" for name in names if before.inputs.get(name) != self.inputs.get(name)]

    def _changed_keys(self, before: "Entry") -> list[str]:
        keys = dict.fromkeys([*before.values, *self.values])
        return [key for key in keys if before.values.get(key) != self.values.get(key)]


class Ledger:
    """The entries of a pipeline's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "ledger"

    def read(self, node: Node) -> Entry | None:
        file = self._file(node)
        return Entry(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

    def write(self, node: Node, entry: Entry) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self._file(node)
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(entry), indent=1) + "\n", encoding="utf-8")
        draft.replace(file)

    def _file(self, node: Node) -> Path:
        return self.folder / f"{node.name}.json"


def expected(node: Node, base: str, identities: Mapping[str, str]) -> Entry:
    """The entry of a node that runs now. base: what `from: base` means."""
    recipe = node.recipe(unresolved(base, node.inputs)).model_dump(mode="json")
    values = {key: json.dumps(value) for key, value in _flat(recipe)}
    return Entry(values, {name: identities[name] for name in node.inputs}, None)


def set_aside(folder: Path) -> Path | None:
    """Rename a folder to `<folder>.previous-N`; None if there is none."""
    if not folder.exists():
        return None
    for number in count(1):
        target = folder.with_name(f"{folder.name}.previous-{number}")
        if not target.exists():
            return folder.rename(target)
    raise AssertionError


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            if f"{prefix}{key}" not in FREE:
                yield from _flat(value, f"{prefix}{key}.")
    elif values is not None:  # a key that a later version adds, null by default, changes nothing
        yield prefix.removesuffix("."), values
