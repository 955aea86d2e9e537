"""The types of constructed pairs, and helpers shared by their generators."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from random import Random

from benchmarks.verifier.pairs.writing import restyle, wrap

_DECIMALS = re.compile(r"\.[0-9]")


@dataclass(frozen=True, slots=True)
class Pair:
    """One test of the verifier with the expected outcome: Pair("integer", "42", "\\boxed{43}", "off by one", False)."""

    kind: str
    reference: str
    answer: str  # as written in the box
    completion: str
    why: str  # how the answer was written or falsified
    equal: bool
    symmetric: bool  # whether reference and answer may be swapped


@dataclass(frozen=True, slots=True)
class Case:
    """One reference answer with equal and unequal answers as (label, answer).

    The label names the notation of an equal answer, or what was changed in an unequal one.
    """

    reference: str
    equal: list[tuple[str, str]]
    unequal: list[tuple[str, str]]
    symmetric: bool = True
    plain: bool = False  # text, in which LaTeX's free spacing does not apply

    def pairs(self, kind: str, rng: Random, most: int = 3) -> Iterator[Pair]:
        """Up to `most` equal and `most` unequal pairs, styled and wrapped at random."""
        for variants, equal in ((self.equal, True), (self.unequal, False)):
            for why, answer in rng.sample(variants, min(most, len(variants))):
                reference = self.reference if self.plain or rng.random() < 0.5 else restyle(rng, self.reference)
                shown = answer if self.plain or rng.random() < 0.5 else wrap(rng, restyle(rng, answer))
                symmetric = self.symmetric and not _DECIMALS.search(answer)  # as a reference, it might be a rounded one
                yield Pair(kind, reference, shown, rf"\boxed{{{shown}}}", why, equal, symmetric)


Generator = Callable[[Random], Case]


def unique(rng: Random, draw: Callable[[Random], Fraction], count: int) -> list[Fraction]:
    values: list[Fraction] = []
    while len(values) < count:
        value = draw(rng)
        if value not in values:
            values.append(value)
    return values


def small(rng: Random) -> Fraction:
    """A nonzero integer or small fraction of either sign."""
    while True:
        value = Fraction(rng.randint(-20, 20), rng.choice([1, 1, 2, 3, 4, 5, 7]))
        if value:
            return value


def different(variants: Iterable[tuple[str, Fraction | None]], value: Fraction) -> list[tuple[str, Fraction]]:
    """The labelled values that really differ from `value`."""
    return [(why, other) for why, other in variants if other is not None and other != value]
