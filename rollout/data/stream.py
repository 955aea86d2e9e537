"""The order in which problems are used: an endless stream for training, a fixed selection for evaluation."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import islice
from typing import Any, Protocol

from rollout.data.columns import Reason, UnusableRowError
from rollout.data.curriculum import Curriculum
from rollout.data.prompts import Prompter
from rollout.data.sources import Source
from rollout.types import Problem, Prompt

OTHER_SHAPE = "Start a new run from its weights: model.model_name_or_path=CHECKPOINT, without resuming."
_FINGERPRINTED = 8  # rows
_MAX_DROPPED_IN_A_ROW = 1000  # of a generated task: if so many are all too long, the rest will be as well


class PromptStream(Protocol):
    """What a trainer needs of a stream; see `ProblemStream`."""

    @property
    def streams(self) -> dict[str, "ProblemStream"]: ...
    @property
    def dropped(self) -> Counter[Reason]: ...
    @property
    def num_dropped(self) -> int: ...
    def take(self, total: int) -> list[Prompt]: ...
    def first(self, count: int) -> list[Prompt]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class ProblemStream:
    """An endless, resumable stream of prompts, sharded over processes.

    Datasets are reshuffled every epoch; endless sources are taken in index order. Rows that cannot become a prompt (too
    long, empty, malformed) are skipped and counted in `dropped`. Every process walks the whole stream and keeps every
    num_processes-th prompt, so order, `dropped` and state are the same on all processes, whatever their number.

    curriculum: of a dataset: which rows are passed over, and which problems are taken again; told by `observe`.
    may_change: resuming with a dataset that has changed since the state was saved is meant.
    """

    def __init__(
        self,
        source: Source,
        prompter: Prompter,
        *,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
        curriculum: Curriculum | None = None,
        may_change: bool = False,
    ) -> None:
        assert curriculum is None or source.size is not None, "an endless source repeats no problem"
        self.source, self.prompter, self.seed, self.curriculum = source, prompter, seed, curriculum
        self.process_index, self.num_processes = process_index, num_processes
        self._may_change, self._dataset = may_change, _fingerprint(source)
        self.dropped: Counter[Reason] = Counter()
        self._position = 0  # problems consumed so far, dropped ones included
        self._dropped_in_a_row = 0
        self._again: list[int] = []  # positions to be taken before others
        self._orders: dict[int, list[int]] = {}  # of the epochs used last

    @property
    def streams(self) -> dict[str, "ProblemStream"]:
        """By name, as of a mixture: one stream without a name."""
        return {"": self}

    @property
    def num_dropped(self) -> int:
        """Rows skipped so far, for any reason."""
        return self.dropped.total()

    @property
    def epochs(self) -> float | None:
        """Passes over the dataset so far, rows passed over included; None for an endless source."""
        return self._position / self.source.size if self.source.size else None

    def take(self, total: int) -> list[Prompt]:
        """This process's share of the stream's next `total` prompts."""
        taken: list[Prompt] = []
        while (missing := total - len(taken)) > 0:
            positions = [self._next() for _ in range(missing)]
            prompts = self._encoded([self._problem(position) for position in positions])
            for position, prompt in zip(positions, prompts, strict=True):
                if isinstance(prompt, UnusableRowError):
                    self.dropped[prompt.reason] += 1
                    self._dropped_in_a_row += 1
                else:
                    taken.append(replace(prompt, position=position))
                    self._dropped_in_a_row = 0
            if self._dropped_in_a_row >= (self.source.size or _MAX_DROPPED_IN_A_ROW):
                raise ValueError(
                    f"max_prompt_length={self.prompter.max_prompt_length}: the last {self._dropped_in_a_row} rows were "
                    f"all unusable ({counts(self.dropped)} so far). Raise it, or choose other problems or a shorter "
                    "template."
                )
        return taken[self.process_index :: self.num_processes]

    def begin(self, step: int) -> None:
        """A rollout after `step` optimizer steps begins: problems due to be drawn again come first in it."""
        if self.curriculum is not None:
            self._again += self.curriculum.due(step)

    def observe(self, rates: Sequence[tuple[int, float]], step: int) -> None:
        """Tell the curriculum of (position, pass rate) of problems taken; of all processes, the same in each."""
        if self.curriculum is not None:
            self.curriculum.observe([(self._row(position), position, rate) for position, rate in rates], step)

    def first(self, count: int) -> list[Prompt]:
        """The first usable prompts, always the same ones, without moving the stream: at most `count`."""
        size = _MAX_DROPPED_IN_A_ROW if self.source.size is None else self.source.size
        prompts = map(self.prompter.encode, usable(self.source, range(size)))
        return list(islice((prompt for prompt in prompts if isinstance(prompt, Prompt)), count))

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs; plain values, the same on every process."""
        state: dict[str, Any] = {"position": self._position, "dropped": dict(self.dropped)}
        if self._dataset is not None:
            state["dataset"] = self._dataset
        if self.curriculum is not None:
            state |= {"again": list(self._again), "curriculum": self.curriculum.state_dict()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        refuse_ahead(state)
        if "position" not in state:
            raise ValueError(f"data: the checkpoint is of a mixture, and this run has one source. {OTHER_SHAPE}")
        if not self._may_change:
            self._refuse_changed(state.get("dataset"))
        self._position, self.dropped = state["position"], Counter(state["dropped"])
        if self.curriculum is not None:
            self._again = list(state.get("again", ()))
            self.curriculum.load_state_dict(state.get("curriculum", Curriculum.EMPTY))

    def _refuse_changed(self, before: Mapping[str, Any] | None) -> None:
        if before is None or self._dataset is None or before == self._dataset:
            return
        rows, now = before["rows"], self._dataset["rows"]
        change = f"{rows} rows, now {now}" if rows != now else f"{rows} rows, of which some are others"
        raise ValueError(
            f"data: the dataset has changed since the checkpoint ({change}), so rows would be taken twice or never. "
            "Restore it, start a new run, or allow it with trainer.allow_changes=[data]."
        )

    def _next(self) -> int:
        """The position of the next problem: one to be drawn again, or the first one ahead that is not passed over."""
        if self._again:
            return self._again.pop(0)
        while True:
            position = self._position
            self._position += 1
            if self.curriculum is None or self.curriculum.admits(self._row(position), position):
                return position

    def _encoded(self, rows: Sequence[Problem | UnusableRowError]) -> list[Prompt | UnusableRowError]:
        encoded = iter(self.prompter.encode_batch([row for row in rows if isinstance(row, Problem)]))
        return [next(encoded) if isinstance(row, Problem) else row for row in rows]

    def _problem(self, position: int) -> Problem | UnusableRowError:
        if self.source.size is None:
            return row_of(self.source, position)
        problem, epoch = row_of(self.source, self._row(position)), position // self.source.size
        if epoch == 0 or isinstance(problem, UnusableRowError):
            return problem
        # A repeated row, possibly within one rollout, forms its own group with its own random numbers.
        return Problem(id=f"{problem.id}@{epoch}", prompt=problem.prompt, columns=problem.columns)

    def _row(self, position: int) -> int:
        """The row of a dataset at a position of the stream."""
        assert self.source.size is not None
        epoch, place = divmod(position, self.source.size)
        if epoch not in self._orders:
            if len(self._orders) > 1:
                del self._orders[min(self._orders)]
            self._orders[epoch] = _shuffled(self.source.size, f"{self.seed}/{epoch}")
        return self._orders[epoch][place]


def _fingerprint(source: Source) -> dict[str, Any] | None:
    """{"rows": 7473, "hash": "9f0c…"}: by which a dataset is known again, from its size and a few rows."""
    if source.size is None:
        return None
    indices = random.Random("fingerprint").sample(range(source.size), min(_FINGERPRINTED, source.size))
    rows = [row_of(source, index) for index in indices]
    seen = [(row.prompt, row.columns) if isinstance(row, Problem) else str(row) for row in rows]
    return {"rows": source.size, "hash": blake2b(repr(seen).encode(errors="replace"), digest_size=8).hexdigest()}


def refuse_ahead(state: Mapping[str, Any]) -> None:
    """A stream that goes on from its position alone would take again what was trained on beyond it."""
    if trained := state.get("trained"):
        raise ValueError(
            f"rollout.max_staleness=0: the checkpoint is of a run ahead of the update, which had trained on "
            f"{len(trained)} problems after the first one that it had not, and lockstep would train on them again. "
            "Resume with max_staleness of 1 or more."
        )


def row_of(source: Source, index: int) -> Problem | UnusableRowError:
    """A source's row, or why it is no problem."""
    try:
        return source[index]
    except UnusableRowError as error:
        return error


def usable(source: Source, order: Iterable[int]) -> Iterator[Problem]:
    """Problems in this order without rows that are none; `check_prompts` and the stream count those."""
    return (row for index in order if isinstance(row := row_of(source, index), Problem))


def counts(dropped: Mapping[Reason, int]) -> str:
    """ "3 too long, 1 empty", the most frequent first."""
    return ", ".join(f"{count} {reason}" for reason, count in Counter(dropped).most_common())


def held_out(source: Source, prompter: Prompter, num_problems: int) -> tuple[list[Prompt], Counter[Reason]]:
    """Distinct prompts for evaluation, the same ones every time, and the rows skipped on the way, by reason.

    Of a dataset, a fixed random sample. Fewer than num_problems if the source has too few distinct usable prompts.
    """
    prompts: list[Prompt] = []
    dropped: Counter[Reason] = Counter()
    order = range(20 * num_problems) if source.size is None else fixed_order(source.size)
    seen: set[str] = set()
    for row in (row_of(source, index) for index in order):
        if isinstance(row, Problem) and (key := repr(row.prompt)) in seen:
            continue
        prompt: Prompt | UnusableRowError
        if isinstance(row, Problem):
            seen.add(key)
            prompt = prompter.encode(row)
        else:
            prompt = row
        if isinstance(prompt, Prompt):
            prompts.append(prompt)
        elif prompt.reason == "malformed":
            raise prompt
        else:
            dropped[prompt.reason] += 1
        if len(prompts) == num_problems:
            break
    if not prompts:
        raise ValueError(f"max_prompt_length={prompter.max_prompt_length}: every held-out prompt is longer. Raise it.")
    return prompts, dropped


def fixed_order(size: int) -> list[int]:
    """Row numbers in the fixed random order in which held-out problems are chosen."""
    return _shuffled(size, "held out")


def distinct(source: Source, order: Iterable[int]) -> Iterator[Problem]:
    """Problems in this order, skipping repeated prompts."""
    seen: set[str] = set()
    for problem in usable(source, order):
        if (key := repr(problem.prompt)) not in seen:
            seen.add(key)
            yield problem


def _shuffled(size: int, seed: str) -> list[int]:
    order = list(range(size))
    random.Random(seed).shuffle(order)
    return order
