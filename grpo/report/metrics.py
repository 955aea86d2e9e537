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
    """A mean, kept as sum and count; 0 if the count is 0."""

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
    """Population standard deviation, kept as sums that merge."""

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

    Quantiles do not merge, but counts do. The value is at most 26% above the exact quantile and never below it.
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
    """Tokens routed to each expert, [layers, experts]; reports each expert's share of its layer."""

    counts: np.ndarray

    def __add__(self, other: "ExpertLoad") -> "ExpertLoad":
        return ExpertLoad(self.counts + other.counts)

    @property
    def value(self) -> list[list[float]]:
        return (self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)).tolist()


Metrics = Mapping[str, Metric]
Value = float | list[list[float]]


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
    return {
        name: Sum(metric.value / steps) if isinstance(metric, Sum) else metric for name, metric in metrics.items()
    }


def values(metrics: Metrics) -> dict[str, Value]:
    """The reported value of each metric."""
    return {name: metric.value for name, metric in metrics.items()}
