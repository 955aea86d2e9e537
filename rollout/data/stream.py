"""The order in which problems are used: an endless stream for training, a fixed selection for evaluation."""

import random
from collections.abc import Iterable, Iterator
from itertools import islice

from rollout.data.prompts import Prompter
from rollout.data.sources import Source
from rollout.types import Problem, Prompt

_MAX_DROPPED_IN_A_ROW = 1000  # of a generated task: if so many are all too long, the rest will be as well


class ProblemStream:
    """An endless, resumable stream of prompts, sharded over processes.

    Datasets are reshuffled every epoch; generated tasks are taken in index order. Prompts over the length limit are
    skipped and counted in `num_dropped`. Every process walks the whole stream and keeps every num_processes-th prompt,
    so order, `num_dropped` and state are identical on all processes and independent of their number.
    """

    def __init__(
        self, source: Source, prompter: Prompter, *, seed: int, process_index: int = 0, num_processes: int = 1
    ) -> None:
        self.source, self.prompter, self.seed = source, prompter, seed
        self.process_index, self.num_processes = process_index, num_processes
        self.num_dropped = 0
        self._position = 0  # problems consumed so far, dropped ones included
        self._dropped_in_a_row = 0
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
                    self._dropped_in_a_row += 1
                else:
                    taken.append(prompt)
                    self._dropped_in_a_row = 0
            if self._dropped_in_a_row >= (self.source.size or _MAX_DROPPED_IN_A_ROW):
                raise ValueError(
                    f"max_prompt_length={self.prompter.max_prompt_length}: the last {self._dropped_in_a_row} prompts "
                    "were all longer. Raise it, or choose shorter problems or a shorter template."
                )
        return taken[self.process_index :: self.num_processes]

    def first(self, count: int) -> list[Prompt]:
        """Some prompts within the length limit, always the same ones, without moving the stream: at most `count`."""
        size = _MAX_DROPPED_IN_A_ROW if self.source.size is None else self.source.size
        prompts = (self.prompter.encode(self.source[index]) for index in range(min(size, _MAX_DROPPED_IN_A_ROW)))
        return list(islice((prompt for prompt in prompts if prompt is not None), count))

    def state_dict(self) -> dict[str, int]:
        """All that resuming needs; plain integers, the same on every process."""
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
        # A repeated row, possibly within one rollout, forms its own group with its own random numbers.
        return Problem(id=f"{problem.id}@{epoch}", prompt=problem.prompt, columns=problem.columns)


def held_out(source: Source, prompter: Prompter, num_problems: int) -> list[Prompt]:
    """Distinct prompts for evaluation, the same ones every time; for a dataset, a fixed random sample of its rows.

    Fewer than num_problems if the source has too few distinct prompts within the length limit.
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
    """Row numbers in the fixed random order in which held-out problems are chosen."""
    return _shuffled(size, "held out")


def distinct(source: Source, order: Iterable[int]) -> Iterator[Problem]:
    """Problems in this order, skipping repeated prompts."""
    seen: set[str] = set()
    for index in order:
        problem = source[index]
        if (key := repr(problem.prompt)) not in seen:
            seen.add(key)
            yield problem


def _shuffled(size: int, seed: str) -> list[int]:
    order = list(range(size))
    random.Random(seed).shuffle(order)
    return order
