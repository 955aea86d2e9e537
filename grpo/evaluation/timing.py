"""Throughput: how long generation takes, and how long grading takes after it."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rollout.types import Group


@dataclass(slots=True)
class Clock:
    """Times generation separately from the grading that follows it."""

    start: float = field(default_factory=time.perf_counter)
    end: float = 0.0
    tokens: int = 0

    def over(self, groups: Iterable[Group]) -> Iterator[Group]:
        """Pass the engine's groups through, timing them and counting their tokens."""
        for group in groups:
            self.tokens += sum(len(completion.token_ids) for completion in group.completions)
            self.end = time.perf_counter()
            yield group

    def timing(self) -> dict[str, float]:
        """Tokens, seconds until the last one was generated, and seconds of grading after that."""
        generating = max(self.end - self.start, 0.0)
        grading = time.perf_counter() - self.start - generating
        return {"generated_tokens": self.tokens, "seconds": generating, "grading_tail_seconds": grading}


def merge_timing(shares: Sequence[dict[str, float]]) -> dict[str, float]:
    """Timing over all processes: tokens add up, the slowest process sets the seconds."""
    tokens = sum(share["generated_tokens"] for share in shares)
    seconds = max(share["seconds"] for share in shares)
    return {
        "generated_tokens": tokens,
        "seconds": seconds,
        "grading_tail_seconds": max(share["grading_tail_seconds"] for share in shares),
        "tokens_per_second": tokens / seconds if seconds else 0.0,
    }
