"""Which problems have been trained on, when they are not trained on in the order in which they are taken."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accelerate.utils import gather_object

from rollout.data.columns import Reason
from rollout.data.stream import ProblemStream, PromptStream
from rollout.types import Prompt


@dataclass(frozen=True, slots=True)
class _Take:
    """_Take({"position": 64, …}, size=32): the stream before a call of `take`, and its problems in all processes."""

    state: dict[str, Any]
    size: int


class TrackedStream:
    """A PromptStream whose state leaves out what was taken and not trained on.

    The state is that of the stream before its first `take` with a problem that has not been trained on, and the ids of
    the later problems that have: a resumed run takes from there and leaves those out, so each problem is trained on
    once. It is the same on all processes.
    """

    def __init__(self, stream: PromptStream) -> None:
        self._stream = stream
        self._forget()

    def _forget(self, trained_before: Sequence[str] = ()) -> None:
        self._takes: dict[int, _Take] = {}  # by number, from the first that is not complete
        self._first = self._next = 0
        self._numbers: dict[str, int] = {}  # this process's problems that are not known to be trained on -> take
        self._trained: defaultdict[int, set[str]] = defaultdict(set)  # ids by take, of all processes
        self._left_out: list[str] = []  # this process's since the last `trained`
        self._before = set(trained_before)  # trained on before the run was resumed, and not met again yet

    @property
    def streams(self) -> dict[str, ProblemStream]:
        return self._stream.streams

    @property
    def dropped(self) -> Counter[Reason]:
        return self._stream.dropped

    @property
    def num_dropped(self) -> int:
        return self._stream.num_dropped

    def first(self, count: int) -> list[Prompt]:
        """As of the stream."""
        return self._stream.first(count)

    def take(self, total: int) -> list[Prompt]:
        """This process's share of the next `total` prompts, without those trained on before; maybe none."""
        self._takes[self._next] = _Take(self._stream.state_dict(), total)
        prompts = self._stream.take(total)
        self._numbers |= {prompt.problem.id: self._next for prompt in prompts}
        self._next += 1
        self._left_out += [prompt.problem.id for prompt in prompts if prompt.problem.id in self._before]
        return [prompt for prompt in prompts if prompt.problem.id not in self._before]

    def trained(self, ids: Sequence[str]) -> None:
        """These problems of this process have been trained on. All processes call it together."""
        own = [(self._numbers.pop(one), one) for one in (*ids, *self._left_out)]
        self._left_out = []
        for number, one in gather_object(own):
            self._trained[number].add(one)
            self._before.discard(one)
        while (take := self._takes.get(self._first)) and len(self._trained[self._first]) == take.size:
            del self._takes[self._first], self._trained[self._first]
            self._first += 1

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs."""
        take = self._takes.get(self._first)
        state = take.state if take else self._stream.state_dict()
        return {**state, "trained": sorted(self._before.union(*self._trained.values()))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._stream.load_state_dict({name: value for name, value in state.items() if name != "trained"})
        self._forget(state.get("trained", ()))
