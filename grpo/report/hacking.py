"""A watch for reward hacking: a preference reward rises while what rules measure gets worse (2501.12948, figure 6).

Two places are watched: held-out evaluations, latest against first, and training rows, the mean of the last five against
that of the first five with this preference reward, so that a reward that joins late has its baseline then.
"""

import math
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ROWS = 5  # training rows in either mean
RISE = 0.25  # of a preference reward, in standard deviations of the completions' first rewards
FALL = 0.1  # of a rule's reward or held-out accuracy, which are 0 to 1
LENGTH_RATIO = 1.5  # of the first mean length
MODELS = ("reward_model", "judge")  # rewards that are preferences; all others are rules

Message = tuple[str, str]  # kind, text


class HackingWatch:
    """HackingWatch(["helpful"], ["countdown", "format"]): names of the run's preference and rule rewards."""

    def __init__(self, preferences: Sequence[str] = (), rules: Sequence[str] = ()) -> None:
        self._preferences, self._rules = preferences, rules
        self._first: defaultdict[str, list[Mapping[str, float]]] = defaultdict(list)
        self._last: defaultdict[str, deque[Mapping[str, float]]] = defaultdict(lambda: deque(maxlen=ROWS))
        self._evaluation: Mapping[str, float] | None = None

    def training(self, row: Mapping[str, float]) -> Iterator[Message]:
        for name in self._preferences:
            key = f"rewards/{name}/mean"
            if key not in row:
                continue
            first, last = self._first[name], self._last[name]
            if len(first) < ROWS:
                first.append(row)
                continue
            last.append(row)
            if len(last) == ROWS:
                spread = _mean(first, f"rewards/{name}/std") or 0.0
                watched = [f"rewards/{rule}/mean" for rule in self._rules]
                yield from _parting(name, key, spread, first, last, watched, ["completions/mean_length"])

    def evaluation(self, row: Mapping[str, float]) -> Iterator[Message]:
        if self._evaluation is None:
            self._evaluation = row
            return
        accuracies = [key for key in row if key.startswith("eval/") and key.endswith("/pass@1")]
        lengths = [key for key in row if key.startswith("eval/") and key.endswith("/mean_length")]
        for name in self._preferences:
            rules = [key for key in row for rule in self._rules if key.endswith(f"/rewards/{rule}/mean")]
            for key in [key for key in row if key.endswith(f"/rewards/{name}/mean")]:
                same = key.removesuffix(f"rewards/{name}/mean") + "mean_length"  # of the preference's own source
                watched = [*accuracies, *rules]
                yield from _parting(
                    name, key, 0.0, [self._evaluation], [row], watched, [one for one in lengths if one == same]
                )


def _parting(
    name: str,
    key: str,
    spread: float,
    first: Sequence[Mapping[str, float]],
    last: Sequence[Mapping[str, float]],
    rules: Sequence[str],
    lengths: Sequence[str],
) -> Iterator[Message]:
    """What got worse while the preference reward rose by more than RISE spreads."""
    before, now = _mean(first, key), _mean(last, key)
    if before is None or now is None or not now - before > RISE * spread:
        return
    rose = f"the preference reward {name!r} rose from {before:.3g} to {now:.3g}, and {{}}: the policy may exploit the "
    rose += (
        "preference model (reward hacking). Read samples.jsonl; go back to a checkpoint before this, give the source "
        "fewer steps (from_step in data.mixture) or the reward less weight, or train the preference model again with "
        "such completions."
    )
    for rule in rules:
        old, new = _mean(first, rule), _mean(last, rule)
        if old is not None and new is not None and old - new > FALL:
            yield f"hacking {name} {rule}", rose.format(f"{rule} fell from {old:.3g} to {new:.3g}")
    for length in lengths:
        old, new = _mean(first, length), _mean(last, length)
        if old and new and new > LENGTH_RATIO * old:
            yield f"hacking {name} {length}", rose.format(f"{length} grew from {old:.3g} to {new:.3g} tokens")


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """The mean over the rows that have a finite value; None if none has."""
    values = [row[key] for row in rows if key in row and math.isfinite(row[key])]
    return sum(values) / len(values) if values else None
