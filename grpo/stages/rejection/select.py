"""Which candidates become the dataset. Texts are read batch by batch; of a sample that passed, 32 bytes stay in memory.

candidates -> filters -> without duplicates -> at most so many per problem -> at most so many per source
"""

import json
from array import array
from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from grpo.recipe.stages.rejection import FilterConfig, SelectConfig
from grpo.stages.rejection.candidates import Candidate, Candidates
from grpo.stages.rejection.filters import passes

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Removal:
    """Removal("finished", seen=320, removed=12)"""

    by: str
    seen: int
    removed: int


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the samples, in the order in which they were removed."""

    sampled: int
    problems: int
    removals: list[Removal]
    kept: int
    problems_covered: int
    sources: dict[str, int]  # samples kept of each


@dataclass(slots=True)
class Passed:
    """The samples that passed all filters, as one array per property."""

    position: array = field(default_factory=lambda: array("q"))  # among all candidates, ascending
    problem: array = field(default_factory=lambda: array("q"))  # number of its problem
    source: array = field(default_factory=lambda: array("i"))  # number of its source
    key: array = field(default_factory=lambda: array("Q"))  # of a problem's samples, the smallest is preferred
    digest: array = field(default_factory=lambda: array("Q"))  # of prompt and completion, without white space

    def add(self, position: int, problem: int, source: int, key: int, digest: int) -> None:
        for values, value in zip(
            (self.position, self.problem, self.source, self.key, self.digest),
            (position, problem, source, key, digest),
            strict=True,
        ):
            values.append(value)


def select(
    candidates: Candidates, filters: list[FilterConfig], section: SelectConfig, seed: int
) -> tuple[Indices, Counts]:
    """Positions of the kept samples among all candidates, ascending, and the counts."""
    seen, removed = Counter[str](), Counter[str]()
    passed, sources = Passed(), dict[str, int]()
    sampled, problems, problem_id = 0, 0, None
    for table in candidates.tables():
        for candidate in table.to_pylist():
            if candidate["problem_id"] != problem_id:
                problems, problem_id = problems + 1, candidate["problem_id"]
            if removed_by(filters, candidate, seen, removed) is None:
                source = sources.setdefault(candidate["data_source"], len(sources))
                passed.add(sampled, problems, source, _key(candidate, section.order, seed), digest(candidate))
            sampled += 1
    kept, removals = _choose(passed, section)
    taken = np.asarray(passed.source, np.int32)[kept]
    return np.asarray(passed.position, np.int64)[kept], Counts(
        sampled=sampled,
        problems=problems,
        removals=[Removal(f.label, seen[f.label], removed[f.label]) for f in filters] + removals,
        kept=len(kept),
        problems_covered=len(np.unique(np.asarray(passed.problem, np.int64)[kept])),
        sources={name: int((taken == number).sum()) for name, number in sources.items()},
    )


def removed_by(
    filters: list[FilterConfig], candidate: Candidate, seen: Counter[str], removed: Counter[str]
) -> str | None:
    """The first filter that removes the candidate; counts what each sees and removes."""
    for chosen in filters:
        seen[chosen.label] += 1
        if not passes(chosen, candidate):
            removed[chosen.label] += 1
            return chosen.label
    return None


def _choose(passed: Passed, section: SelectConfig) -> tuple[Indices, list[Removal]]:
    """Indices into `passed`, ascending, and what each limit removed."""
    problem, source = np.asarray(passed.problem, np.int64), np.asarray(passed.source, np.int32)
    key, digest = np.asarray(passed.key, np.uint64), np.asarray(passed.digest, np.uint64)
    kept, removals = np.arange(len(problem)), list[Removal]()

    def keep(by: str, remaining: Indices) -> None:
        nonlocal kept
        removals.append(Removal(by, len(kept), len(kept) - len(remaining)))
        kept = np.sort(remaining)

    if section.deduplicate:
        keep("duplicates", np.unique(digest, return_index=True)[1])
    preferred = kept[np.lexsort((kept, key[kept], problem[kept]))]
    rank = np.zeros(len(problem), np.int64)  # of a sample within its problem
    rank[preferred] = _places(problem[preferred])
    if section.max_per_problem is not None:
        keep("max_per_problem", kept[rank[kept] < section.max_per_problem])
    if section.max_per_source is not None:
        by_source = kept[np.lexsort((kept, rank[kept], source[kept]))]
        keep("max_per_source", by_source[_places(source[by_source]) < section.max_per_source])
    return kept, removals


def _places(groups: NDArray) -> Indices:
    """[0, 1, 2, 0, 1] for the groups [7, 7, 7, 9, 9]: each element's place in its run."""
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])[: len(groups)]
    lengths = np.diff(np.r_[starts, len(groups)])
    return np.arange(len(groups)) - np.repeat(starts, lengths)


def _key(candidate: Candidate, order: str, seed: int) -> int:
    if order == "shortest":
        return candidate["num_tokens"]
    if order == "first":
        return candidate["sample"]
    return _hash(f"{seed}/{candidate['problem_id']}/{candidate['sample']}")


def digest(candidate: Candidate) -> int:
    """Equal for completions of one prompt that differ in white space only."""
    return _hash(f"{json.dumps(candidate['prompt'])}\0{' '.join(candidate['completion'].split())}")


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
