"""Metrics that carry their own reduction, so that micro-batches and processes merge correctly."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewards.runner.score import ScoredGroup


class Metric(Protocol):
    """Merges with its like; `value` is what is reported."""

    def __add__(self, other: Self) -> Self: ...

    @property
    def value(self) -> "Value": ...


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean is a sum and a count; it reports 0 where nothing was counted."""

    total: float
    count: float = 1.0

    @classmethod
    def of(cls, values: ArrayLike) -> "Mean":
        values = np.asarray(values, dtype=np.float64)
        return cls(float(values.sum()), float(values.size))

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else 0.0


@dataclass(frozen=True, slots=True)
class Deviation:
    """Standard deviation (population), from sums that merge."""

    count: float
    total: float
    squares: float

    @classmethod
    def of(cls, values: ArrayLike) -> "Deviation":
        values = np.asarray(values, dtype=np.float64)
        return cls(float(values.size), float(values.sum()), float((values**2).sum()))

    def __add__(self, other: "Deviation") -> "Deviation":
        return Deviation(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def value(self) -> float:
        if not self.count:
            return 0.0
        mean = self.total / self.count
        return max(self.squares / self.count - mean**2, 0.0) ** 0.5


@dataclass(frozen=True, slots=True)
class Sum:
    value: float

    def __add__(self, other: "Sum") -> "Sum":
        return Sum(self.value + other.value)


@dataclass(frozen=True, slots=True)
class Max:
    value: float

    def __add__(self, other: "Max") -> "Max":
        return Max(max(self.value, other.value))


@dataclass(frozen=True, slots=True)
class Min:
    value: float

    def __add__(self, other: "Min") -> "Min":
        return Min(min(self.value, other.value))


@dataclass(frozen=True, slots=True)
class LogHistogram:
    """Counts of magnitudes in bins of a tenth of a decade; reports the upper edge of the bin that holds a quantile.

    Quantiles do not merge, counts do; the answer is at most 26% above the exact quantile, never below it.
    """

    counts: np.ndarray = field(repr=False)  # [len(EDGES) + 1]
    quantile: float = 0.999

    EDGES = np.logspace(-10, 2, 121)

    @classmethod
    def of(cls, values: ArrayLike, quantile: float = 0.999) -> "LogHistogram":
        bins = np.searchsorted(cls.EDGES, np.asarray(values, dtype=np.float64).ravel())
        return cls(np.bincount(bins, minlength=len(cls.EDGES) + 1), quantile)

    def __add__(self, other: "LogHistogram") -> "LogHistogram":
        return LogHistogram(self.counts + other.counts, self.quantile)

    @property
    def value(self) -> float:
        cumulative = np.cumsum(self.counts)
        if cumulative[-1] == 0:
            return 0.0
        index = int(np.searchsorted(cumulative, self.quantile * cumulative[-1]))
        return float(self.EDGES[index]) if index < len(self.EDGES) else float("inf")


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """Tokens each expert received, [layers, experts]; reports each expert's share of its layer."""

    counts: np.ndarray

    def __add__(self, other: "ExpertLoad") -> "ExpertLoad":
        return ExpertLoad(self.counts + other.counts)

    @property
    def value(self) -> list[list[float]]:
        return (self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)).tolist()


Metrics = Mapping[str, Metric]
Value = float | list[list[float]]


def merge(parts: Iterable[Metrics]) -> dict[str, Metric]:
    """Merge dictionaries of metrics key by key; a key may be missing from some."""
    merged: dict[str, Metric] = {}
    for part in parts:
        for name, metric in part.items():
            merged[name] = merged[name] + metric if name in merged else metric
    return merged


def values(metrics: Metrics) -> dict[str, Value]:
    """What is reported, by name."""
    return {name: metric.value for name, metric in metrics.items()}


def rollout_metrics(groups: "Sequence[ScoredGroup]") -> dict[str, Metric]:
    """Rewards and lengths of this process's groups, under TRL's names."""
    rewards = np.array([scored.rewards for scored in groups], dtype=np.float64)  # [groups, G]
    completions = [completion for scored in groups for completion in scored.group.completions]
    lengths = np.array([len(completion.token_ids) for completion in completions])
    deviations = np.nanstd(rewards, axis=1, ddof=1)
    metrics: dict[str, Metric] = {
        "reward": Mean.of(rewards[~np.isnan(rewards)]),
        "reward_std": Mean.of(deviations),
        "frac_reward_zero_std": Mean.of(np.isclose(deviations, 0.0)),
        "completions/mean_length": Mean.of(lengths),
        "completions/min_length": Min(float(lengths.min())),
        "completions/max_length": Max(float(lengths.max())),
        "completions/clipped_ratio": Mean.of([c.finish_reason == "length" for c in completions]),
        "completions/empty_ratio": Mean.of([not c.text.strip() for c in completions]),
        "num_tokens": Sum(float(lengths.sum() + sum(len(s.group.prompt_ids) * len(s.rewards) for s in groups))),
    }
    for name in groups[0].breakdown:
        scores = np.array([scored.breakdown[name] for scored in groups], dtype=np.float64)  # None becomes NaN
        applicable = scores[~np.isnan(scores)]
        metrics[f"rewards/{name}/mean"] = Mean.of(applicable)
        metrics[f"rewards/{name}/std"] = Deviation.of(applicable)
    for name in groups[0].gated:
        metrics[f"rewards/{name}/gated_ratio"] = Mean.of([shut for scored in groups for shut in scored.gated[name]])
    return metrics | logged_metrics(groups, taken=metrics)


def logged_metrics(groups: "Sequence[ScoredGroup]", taken: Iterable[str] = ()) -> dict[str, Metric]:
    """What reward functions gave to `log_metric`: the mean of the step's calls, as in TRL."""
    logged = merge({name: Mean.of(v) for name, v in scored.metrics.items()} for scored in groups)
    if clash := logged.keys() & set(taken):
        raise ValueError(f"a reward logs the metric {sorted(clash)}, which the run itself reports. Rename it.")
    return logged
