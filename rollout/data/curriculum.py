"""Which rows of a dataset to use again: by the pass rates that the run itself observed.

A curriculum is asked at every row, in the stream's order, and its answer depends on (seed, position) and on what was
observed before; so with the same observations every process, and a resumed run, takes the same problems.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

NEWEST = 0.5  # what the newest group counts in a row's running pass rate


@dataclass(frozen=True, slots=True)
class CurriculumSettings:
    """CurriculumSettings(low=0.1, high=0.9, weighting="band", revisit=0.1, replay_after=20, replay_below=0.0)"""

    low: float = 0.0
    high: float = 1.0
    weighting: Literal["band", "variance"] = "band"
    revisit: float = 0.1
    replay_after: int = 0
    replay_below: float = 0.0

    def probability(self, rate: float) -> float:
        """That a row with this pass rate is used when the stream reaches it."""
        if self.weighting == "variance":
            return max(4 * rate * (1 - rate), self.revisit)
        return 1.0 if self.low <= rate <= self.high else self.revisit


class Curriculum:
    """The running pass rate of each row, and the problems to be drawn again."""

    EMPTY: Mapping[str, Any] = {"rates": {}, "skipped": 0, "replays": [], "replayed": []}  # the state of a new one

    def __init__(self, settings: CurriculumSettings, *, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.rates: dict[int, float] = {}  # of rows that have been used
        self.skipped = 0  # rows passed over so far
        self._replays: list[tuple[int, int]] = []  # (step, position), in the order in which they are due
        self._replayed: set[int] = set()  # positions drawn again, whose groups have not been observed yet

    def admits(self, row: int, position: int) -> bool:
        """Whether to use a row that the stream has reached; rows not used before always are."""
        if row not in self.rates:
            return True
        probability = self.settings.probability(self.rates[row])
        admitted = probability >= 1 or random.Random(f"{self.seed}/curriculum/{position}").random() < probability
        self.skipped += not admitted
        return admitted

    def observe(self, found: Iterable[tuple[int, int, float]], step: int) -> None:
        """Add (row, position, pass rate) of groups that were sampled after `step` optimizer steps.

        A problem drawn again is not queued once more: else those never solved would fill every batch.
        """
        for row, position, rate in found:
            self.rates[row] = rate if row not in self.rates else NEWEST * rate + (1 - NEWEST) * self.rates[row]
            if position in self._replayed:
                self._replayed.remove(position)
            elif self.settings.replay_after and rate <= self.settings.replay_below:
                self._replays.append((step + self.settings.replay_after, position))

    def due(self, step: int) -> list[int]:
        """Positions to be drawn again by a rollout after `step` optimizer steps; each is returned once."""
        due = [position for when, position in self._replays if when <= step]
        self._replays = [replay for replay in self._replays if replay[0] > step]
        self._replayed |= set(due)
        return due

    def state_dict(self) -> dict[str, Any]:
        return {
            "rates": dict(self.rates),
            "skipped": self.skipped,
            "replays": list(self._replays),
            "replayed": sorted(self._replayed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rates, self.skipped = dict(state["rates"]), state["skipped"]
        self._replays, self._replayed = list(state["replays"]), set(state["replayed"])
