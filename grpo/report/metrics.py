"""Metrics that carry their own reduction, so they merge correctly across micro-batches and processes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np
from numpy.typing import ArrayLike


class Metric(Protocol):
    """Adding two metrics of the same class merges them; `value` is what is reported."""

    def __add__(self, other: Self) -> Self: ...

    @property
    def value(self) -> "Value": ...


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean, kept as sum and count; None if the count is 0."""

    total: float
    count: float = 1.0

    @classmethod
    def of(cls, values: ArrayLike) -> "Mean":
        values = np.asarray(values, dtype=np.float64)
        return cls(float(values.sum()), float(values.size))

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


@dataclass(frozen=True, slots=True)
class Deviation:
    """Sample standard deviation (n - 1 in the denominator), as TRL's `nanstd`; None for fewer than two values.

    Kept as count, mean and sum of squared differences from the mean, which merge without cancellation (Chan et al.).
    """

    count: float
    mean: float
    squares: float

    @classmethod
    def of(cls, values: ArrayLike) -> "Deviation":
        values = np.asarray(values, dtype=np.float64)
        mean = float(values.mean()) if values.size else 0.0
        return cls(float(values.size), mean, float(((values - mean) ** 2).sum()))

    def __add__(self, other: "Deviation") -> "Deviation":
        count = self.count + other.count
        if not count:
            return self
        difference = other.mean - self.mean
        return Deviation(
            count,
            self.mean + difference * other.count / count,
            self.squares + other.squares + difference**2 * self.count * other.count / count,
        )

    @property
    def value(self) -> float | None:
        return (self.squares / (self.count - 1)) ** 0.5 if self.count > 1 else None


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
class EffectiveSampleSize:
    """(sum w)^2 / (n sum w^2) of n importance weights w: 1 if equal, 1/n for a single one; None if all are 0."""

    total: float
    squares: float
    count: float

    def __add__(self, other: "EffectiveSampleSize") -> "EffectiveSampleSize":
        return EffectiveSampleSize(self.total + other.total, self.squares + other.squares, self.count + other.count)

    @property
    def value(self) -> float | None:
        return self.total**2 / (self.count * self.squares) if self.squares else None


@dataclass(frozen=True, slots=True)
class LogHistogram:
    """Counts of magnitudes in bins of a tenth of a decade; reports the upper edge of the bin that holds a quantile.

    Quantiles do not merge, but counts do. The value is at most 26% above the exact quantile and never below it;
    None without values.
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
    def value(self) -> float | None:
        cumulative = np.cumsum(self.counts)
        if cumulative[-1] == 0:
            return None
        index = int(np.searchsorted(cumulative, self.quantile * cumulative[-1]))
        return float(self.EDGES[index]) if index < len(self.EDGES) else float("inf")


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """Tokens routed to each expert, [layers, experts]; reports their shares of each layer, None without tokens."""

    counts: np.ndarray

    def __add__(self, other: "ExpertLoad") -> "ExpertLoad":
        return ExpertLoad(self.counts + other.counts)

    @property
    def value(self) -> list[list[float]] | None:
        if not self.counts.any():
            return None
        return (self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)).tolist()


Metrics = Mapping[str, Metric]
Value = float | list[list[float]] | None  # None: nothing to measure; null in files, "–" when shown


def merge(parts: Iterable[Metrics]) -> dict[str, Metric]:
    """Merge dictionaries of metrics key by key; keys may differ."""
    merged: dict[str, Metric] = {}
    for part in parts:
        for name, metric in part.items():
            merged[name] = merged[name] + metric if name in merged else metric
    return merged


def per_step(metrics: Metrics, steps: int) -> dict[str, Metric]:
    """One optimizer step's metrics, each sum divided by the number of steps they will be merged over.

    The loss is a sum within a step (over micro-batches and processes) and a mean over a rollout's steps.
    """
    return {name: Sum(metric.value / steps) if isinstance(metric, Sum) else metric for name, metric in metrics.items()}


def values(metrics: Metrics) -> dict[str, Value]:
    """The reported value of each metric."""
    return {name: metric.value for name, metric in metrics.items()}
