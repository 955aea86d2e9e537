"""A gold answer with what equals it and what nearly does, by construction. Other modules hold the kinds."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from random import Random

from benchmarks.verifier.writing import restyle, wrap

_DECIMALS = re.compile(r"\.[0-9]")


@dataclass(frozen=True, slots=True)
class Pair:
    """A question to the verifier with its answer: Pair("integer", "42", "\\boxed{43}", "off by one", False)."""

    kind: str
    gold: str
    answer: str  # as it stands in the box
    completion: str
    why: str  # how the answer was written, or made wrong
    equal: bool
    symmetric: bool  # whether gold and answer may change places


@dataclass(frozen=True, slots=True)
class Case:
    """One gold answer with answers equal and unequal to it, each with its story. Stories of equal answers say which way
    of writing it is, those of unequal ones what was changed."""

    gold: str
    equal: list[tuple[str, str]]
    unequal: list[tuple[str, str]]
    symmetric: bool = True
    plain: bool = False  # text, to which LaTeX's freedom of spacing does not apply

    def pairs(self, kind: str, rng: Random, most: int = 3) -> Iterator[Pair]:
        """Up to `most` pairs of each sort, styled and wrapped at random."""
        for stories, equal in ((self.equal, True), (self.unequal, False)):
            for why, answer in rng.sample(stories, min(most, len(stories))):
                gold = self.gold if self.plain or rng.random() < 0.5 else restyle(rng, self.gold)
                shown = answer if self.plain or rng.random() < 0.5 else wrap(rng, restyle(rng, answer))
                symmetric = self.symmetric and not _DECIMALS.search(answer)  # as a gold, it might be a rounded one
                yield Pair(kind, gold, shown, rf"\boxed{{{shown}}}", why, equal, symmetric)


Generator = Callable[[Random], Case]


def unique(rng: Random, draw: Callable[[Random], Fraction], count: int) -> list[Fraction]:
    values: list[Fraction] = []
    while len(values) < count:
        value = draw(rng)
        if value not in values:
            values.append(value)
    return values


def small(rng: Random) -> Fraction:
    """An integer or a small fraction, also negative, not 0."""
    while True:
        value = Fraction(rng.randint(-20, 20), rng.choice([1, 1, 2, 3, 4, 5, 7]))
        if value:
            return value


def different(stories: Iterable[tuple[str, Fraction | None]], value: Fraction) -> list[tuple[str, Fraction]]:
    """The stories whose value really differs."""
    return [(why, other) for why, other in stories if other is not None and other != value]
