"""Pairs equal or unequal by construction, and properties that hold for all answers.

Equality is never decided by sympy: values are fractions, tables of coefficients or lists of these, and an unequal
answer is written from a different value.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from random import Random

from benchmarks.verifier.grading import baseline, is_right, ours, outcome
from benchmarks.verifier.pairs import (
    compound,
    extraction,
    irrational,
    labels,
    letters,
    notation,
    polynomial,
    rational,
    words,
)
from benchmarks.verifier.pairs.pair import Pair
from benchmarks.verifier.pairs.regions import families, sets
from benchmarks.verifier.pairs.writing import restyle, wrap
from benchmarks.verifier.report import code, table

KINDS = rational.KINDS | irrational.KINDS | polynomial.KINDS | letters.KINDS | compound.KINDS | words.KINDS
KINDS |= labels.KINDS | notation.KINDS | sets.KINDS | families.KINDS
_BASELINE_EVERY = 48  # math-verify takes seconds for some pairs
_EXTRACTION_EVERY = 20  # one pair in this many tests where the answer is found


def make_pairs(count: int, seed: int) -> list[Pair]:
    """`count` distinct pairs, cycling through the kinds."""
    rng = Random(seed)
    pairs = list(extraction.completions(rng, count // _EXTRACTION_EVERY))
    seen = {(p.reference, p.completion) for p in pairs}
    for kind in cycle(KINDS):
        for pair in KINDS[kind](rng).pairs(kind, rng):
            if (pair.reference, pair.completion) not in seen:
                seen.add((pair.reference, pair.completion))
                pairs.append(pair)
        if len(pairs) >= count:
            return pairs[:count]
    raise AssertionError("KINDS is empty")


def constructed(pairs: Sequence[Pair]) -> tuple[str, list[tuple[Pair, str]]]:
    """The table by kind, and the misgraded pairs with their outcome."""
    verdicts = ours([p.completion for p in pairs], [p.reference for p in pairs], "constructed pairs")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    wrong = []
    for pair, verdict in zip(pairs, verdicts, strict=True):
        count = counts[pair.kind]
        count["equal" if pair.equal else "unequal"] += 1
        count["unverifiable"] += verdict is not None and verdict.outcome == "unverifiable"
        count["reference unreadable"] += verdict is None
        if is_right(verdict) != pair.equal:
            count["false negative" if pair.equal else "false positive"] += 1
            wrong.append((pair, outcome(verdict)))
    names = ["equal", "false negative", "unequal", "false positive", "unverifiable", "reference unreadable"]
    rows = [[kind, *(count[n] for n in names)] for kind, count in counts.items()]
    rows.append(["**all**", *(sum(c[n] for c in counts.values()) for n in names)])
    return table(["kind", *names], rows), wrong


def math_verify_errors(pairs: Sequence[Pair]) -> str:
    """math-verify's errors on a sample of the pairs."""
    chosen = pairs[::_BASELINE_EVERY]
    given = baseline([p.completion for p in chosen], [p.reference for p in chosen], "math-verify alone")
    wrong = Counter(p.equal for p, right in zip(chosen, given, strict=True) if right != p.equal)
    return (
        f"math-verify alone, on {len(chosen):,} of these pairs: {wrong[True]:,} false negatives, "
        f"{wrong[False]:,} false positives."
    )


def symmetric(pairs: Sequence[Pair]) -> tuple[int, list[tuple[Pair, str]]]:
    """The number of pairs tested both ways round, and those whose verdict changed when swapped."""
    turned = [p for p in pairs if p.symmetric]
    there = ours([p.completion for p in turned], [p.reference for p in turned], "symmetry, forward")
    back = ours([rf"\boxed{{{p.reference}}}" for p in turned], [p.answer for p in turned], "symmetry, swapped")
    changed = [
        (p, f"{outcome(a)}, swapped {outcome(b)}")
        for p, a, b in zip(turned, there, back, strict=True)
        if is_right(a) != is_right(b)
    ]
    return len(turned), changed


def real_references(folder: Path) -> list[str]:
    """The distinct reference answers of MATH, training and test split, in order."""
    train = (json.loads(line)["answer"] for line in (folder / "eval/math/train7474.jsonl").read_text().splitlines())
    test = (json.loads(line)["solution"] for line in (folder / "eval/math/test5000.jsonl").read_text().splitlines())
    return [reference for reference in dict.fromkeys([*train, *map(_boxed, test)]) if reference]


def _boxed(solution: str) -> str:
    """The content of a reference solution's last box."""
    rest = solution.rpartition(r"\boxed{")[2]
    depth = 1
    for i, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[:i]
    return ""


def reflexive(references: Sequence[str], seed: int) -> tuple[int, list[tuple[str, str, str]]]:
    """Each reference answer against itself, restyled and wrapped: the count, and the failures with their outcome."""
    rng = Random(seed)
    answers = [(g, shown) for g in references for shown in (g, restyle(rng, g), wrap(rng, restyle(rng, g)))]
    verdicts = ours([rf"\boxed{{{a}}}" for _, a in answers], [g for g, _ in answers], "reflexive, invariant")
    return len(answers), [(g, a, outcome(v)) for (g, a), v in zip(answers, verdicts, strict=True) if not is_right(v)]


def digit_changed(references: Sequence[str], seed: int) -> tuple[int, list[tuple[str, str, str]]]:
    """Each reference answer with one digit changed: the count, and those still equal, which are rare (0·5, 0·6)."""
    rng = Random(seed)
    pairs = [(g, other_digit(rng, g)) for g in references if any(c.isdecimal() for c in g)]
    verdicts = ours([rf"\boxed{{{a}}}" for _, a in pairs], [g for g, _ in pairs], "one digit changed")
    return len(pairs), [(g, a, outcome(v)) for (g, a), v in zip(pairs, verdicts, strict=True) if is_right(v)]


def other_digit(rng: Random, text: str) -> str:
    place = rng.choice([i for i, c in enumerate(text) if c.isdecimal()])
    return text[:place] + rng.choice([d for d in "123456789" if d != text[place]]) + text[place + 1 :]


def listing(wrong: Sequence[tuple[Pair, str]], most: int = 4) -> Iterator[list[str]]:
    """Table rows of failures by kind and label, the most frequent first, with a few examples each."""
    classes: dict[tuple[str, bool, str], list[tuple[Pair, str]]] = defaultdict(list)
    for pair, said in wrong:
        classes[pair.kind, pair.equal, pair.why].append((pair, said))
    for (kind, equal, why), members in sorted(classes.items(), key=lambda item: -len(item[1])):
        for pair, said in members[:most]:
            shown = pair.completion if pair.kind == "extraction" else pair.answer
            yield [kind, "equal" if equal else "unequal", why, len(members), code(pair.reference), code(shown), said]


def report(data: Path, count: int, seed: int) -> str:
    pairs = make_pairs(count, seed)
    text, wrong = constructed(pairs)
    turned, changed = symmetric(pairs)
    references = real_references(data)
    reflected, not_equal = reflexive(references, seed)
    mutated, still_equal = digit_changed(references, seed)
    columns = ["kind", "are", "label", "count", "reference", "answer", "verdict"]
    plain = ["reference", "answer", "verdict"]
    return "\n\n".join(
        [
            f"# Properties: {len(pairs):,} constructed pairs, seed {seed}",
            text,
            f"Misgraded: {len(wrong):,}. " + math_verify_errors(pairs),
            table(columns, listing(wrong)) if wrong else "",
            f"Symmetry: {turned:,} pairs swapped, {len(changed):,} verdicts changed.",
            table(columns, listing(changed)) if changed else "",
            f"Reflexivity and invariance: {len(references):,} reference answers of MATH against themselves, unchanged, "
            f"restyled and wrapped: {reflected:,} pairs, {len(not_equal):,} not right.",
            table(plain, [[code(g), code(a), said] for g, a, said in not_equal[:200]]) if not_equal else "",
            f"One digit changed: {mutated:,} reference answers of MATH, {len(still_equal):,} still right.",
            table(plain, [[code(g), code(a), said] for g, a, said in still_equal[:100]]) if still_equal else "",
        ]
    )
