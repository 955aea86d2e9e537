"""A mixture of sources: each prompt comes from one of them, chosen by weight; sources may join later.

Left out: sources that leave again, and weights that change.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rollout.data.columns import Reason
from rollout.data.sources import Source
from rollout.data.stream import OTHER_SHAPE, ProblemStream, refuse_ahead
from rollout.types import Problem, Prompt


class NamedSource:
    """A source whose problems have the column data_source = `name`, and ids that no other source has."""

    def __init__(self, name: str, source: Source) -> None:
        self.name, self._source = name, source

    @property
    def size(self) -> int | None:
        return self._source.size

    def __getitem__(self, index: int) -> Problem:
        problem = self._source[index]
        columns = {**problem.columns, "data_source": self.name}
        return Problem(id=f"{self.name}/{problem.id}", prompt=problem.prompt, columns=columns)


@dataclass(frozen=True, slots=True)
class Part:
    """Part(stream, weight=0.25, first=41600): a source that joins with the prompt of this number."""

    stream: ProblemStream  # of all processes: the mixture takes each process's share
    weight: float = 1.0
    first: int = 0


class MixedStream:
    """An endless, resumable stream of prompts from several sources, sharded over processes like `ProblemStream`.

    Which source prompt n comes from depends on (seed, n) and the weights of the sources that have joined. Those are
    settled for each `take`, that is for each rollout, at its first prompt.
    """

    def __init__(self, parts: Mapping[str, Part], *, seed: int, process_index: int = 0, num_processes: int = 1) -> None:
        assert any(part.first == 0 for part in parts.values()), "the first prompt needs a source"
        self._parts, self._seed = parts, seed
        self._process_index, self._num_processes = process_index, num_processes
        self._taken = 0  # prompts so far, over all processes

    @property
    def streams(self) -> dict[str, ProblemStream]:
        return {name: part.stream for name, part in self._parts.items()}

    @property
    def dropped(self) -> Counter[Reason]:
        return sum((stream.dropped for stream in self.streams.values()), Counter())

    @property
    def num_dropped(self) -> int:
        return self.dropped.total()

    def take(self, total: int) -> list[Prompt]:
        """This process's share of the next `total` prompts."""
        joined = [name for name, part in self._parts.items() if part.first <= self._taken]
        weights = [self._parts[name].weight for name in joined]
        chosen = [self._choose(joined, weights, self._taken + i) for i in range(total)]
        count = Counter(chosen)
        taken = {name: iter(self._parts[name].stream.take(count[name])) for name in joined}
        self._taken += total
        return [next(taken[name]) for name in chosen][self._process_index :: self._num_processes]

    def first(self, count: int) -> list[Prompt]:
        """Some usable prompts of every source, always the same ones, without moving the stream: at most `count`."""
        found = [stream.first(count) for stream in self.streams.values()]
        return [prompts[i] for i in range(count) for prompts in found if i < len(prompts)][:count]

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs, the same on every process."""
        streams = {name: stream.state_dict() for name, stream in self.streams.items()}
        return {"taken": self._taken, "streams": streams}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        refuse_ahead(state)
        if "taken" not in state:
            raise ValueError(f"data: the checkpoint is of one source, and this run has a mixture. {OTHER_SHAPE}")
        self._taken = state["taken"]
        for name, stream in self.streams.items():
            if name in state["streams"]:
                stream.load_state_dict(state["streams"][name])
            elif self._process_index == 0:
                print(f"data.mixture: {name} is not in the checkpoint, and starts with its first problem.", flush=True)

    def _choose(self, names: Sequence[str], weights: Sequence[float], number: int) -> str:
        return random.Random(f"{self._seed}/source/{number}").choices(names, weights)[0]
