"""Pairs equal and unequal by construction, and properties that hold whatever the answers are.

Nothing here asks sympy what is equal: values are fractions, tables of coefficients or lists of those, and an unequal
answer is written from another value.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from random import Random

from benchmarks.verifier import extraction, irrational, letters, polynomial, rational, several, wordy
from benchmarks.verifier.grading import baseline, is_right, ours, outcome
from benchmarks.verifier.pairs import Pair
from benchmarks.verifier.report import code, table
from benchmarks.verifier.writing import restyle, wrap

KINDS = rational.KINDS | irrational.KINDS | polynomial.KINDS | letters.KINDS | several.KINDS | wordy.KINDS
_BASELINE_EVERY = 48  # math-verify takes seconds for some pairs
_EXTRACTION_EVERY = 20  # one pair in so many is about where the answer stands


def make_pairs(count: int, seed: int) -> list[Pair]:
    """`count` different pairs, the kinds in turn."""
    rng = Random(seed)
    pairs = list(extraction.completions(rng, count // _EXTRACTION_EVERY))
    seen = {(p.gold, p.completion) for p in pairs}
    for kind in cycle(KINDS):
        for pair in KINDS[kind](rng).pairs(kind, rng):
            if (pair.gold, pair.completion) not in seen:
                seen.add((pair.gold, pair.completion))
                pairs.append(pair)
        if len(pairs) >= count:
            return pairs[:count]
    raise AssertionError("KINDS is empty")


def constructed(pairs: Sequence[Pair]) -> tuple[str, list[tuple[Pair, str]]]:
    """The table by kind, and the pairs judged wrongly with what was said of them."""
    verdicts = ours([p.completion for p in pairs], [p.gold for p in pairs], "constructed pairs")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    wrong = []
    for pair, verdict in zip(pairs, verdicts, strict=True):
        count = counts[pair.kind]
        count["equal" if pair.equal else "unequal"] += 1
        count["unverifiable"] += verdict is not None and verdict.outcome == "unverifiable"
        count["gold unreadable"] += verdict is None
        if is_right(verdict) != pair.equal:
            count["false negative" if pair.equal else "false positive"] += 1
            wrong.append((pair, outcome(verdict)))
    names = ["equal", "false negative", "unequal", "false positive", "unverifiable", "gold unreadable"]
    rows = [[kind, *(count[n] for n in names)] for kind, count in counts.items()]
    rows.append(["**all**", *(sum(c[n] for c in counts.values()) for n in names)])
    return table(["kind", *names], rows), wrong


def math_verify_errors(pairs: Sequence[Pair]) -> str:
    """What math-verify alone says of some of the pairs."""
    chosen = pairs[::_BASELINE_EVERY]
    given = baseline([p.completion for p in chosen], [p.gold for p in chosen], "math-verify alone")
    wrong = Counter(p.equal for p, right in zip(chosen, given, strict=True) if right != p.equal)
    return (
        f"math-verify alone, on {len(chosen):,} of these pairs: {wrong[True]:,} false negatives, "
        f"{wrong[False]:,} false positives."
    )


def symmetric(pairs: Sequence[Pair]) -> tuple[int, list[tuple[Pair, str]]]:
    """How many pairs were turned round, and those whose verdict changed although gold and answer may change places."""
    turned = [p for p in pairs if p.symmetric]
    there = ours([p.completion for p in turned], [p.gold for p in turned], "symmetry, there")
    back = ours([rf"\boxed{{{p.gold}}}" for p in turned], [p.answer for p in turned], "symmetry, back")
    changed = [
        (p, f"{outcome(a)}, turned round {outcome(b)}")
        for p, a, b in zip(turned, there, back, strict=True)
        if is_right(a) != is_right(b)
    ]
    return len(turned), changed


def real_golds(folder: Path) -> list[str]:
    """The different golds of MATH, training and test part, in order."""
    train = (json.loads(line)["answer"] for line in (folder / "eval/math/train7474.jsonl").read_text().splitlines())
    test = (json.loads(line)["solution"] for line in (folder / "eval/math/test5000.jsonl").read_text().splitlines())
    return [gold for gold in dict.fromkeys([*train, *map(_boxed, test)]) if gold]


def _boxed(solution: str) -> str:
    """The content of the last box of a reference solution."""
    rest = solution.rpartition(r"\boxed{")[2]
    depth = 1
    for i, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[:i]
    return ""


def reflexive(golds: Sequence[str], seed: int) -> tuple[int, list[tuple[str, str, str]]]:
    """Every gold against itself, set otherwise and wrapped: how many, and (gold, answer, verdict) of the failures."""
    rng = Random(seed)
    answers = [(g, shown) for g in golds for shown in (g, restyle(rng, g), wrap(rng, restyle(rng, g)))]
    verdicts = ours([rf"\boxed{{{a}}}" for _, a in answers], [g for g, _ in answers], "reflexive, invariant")
    return len(answers), [(g, a, outcome(v)) for (g, a), v in zip(answers, verdicts, strict=True) if not is_right(v)]


def digit_changed(golds: Sequence[str], seed: int) -> tuple[int, list[tuple[str, str, str]]]:
    """Every gold with one digit changed, which must not equal it. Some still do (0·5 is 0·6), so they are listed."""
    rng = Random(seed)
    pairs = [(g, other_digit(rng, g)) for g in golds if any(c.isdecimal() for c in g)]
    verdicts = ours([rf"\boxed{{{a}}}" for _, a in pairs], [g for g, _ in pairs], "one digit changed")
    return len(pairs), [(g, a, outcome(v)) for (g, a), v in zip(pairs, verdicts, strict=True) if is_right(v)]


def other_digit(rng: Random, text: str) -> str:
    place = rng.choice([i for i, c in enumerate(text) if c.isdecimal()])
    return text[:place] + rng.choice([d for d in "123456789" if d != text[place]]) + text[place + 1 :]


def listing(wrong: Sequence[tuple[Pair, str]], most: int = 4) -> Iterator[list[str]]:
    """Failures by kind and story, the most frequent first, with some of each."""
    classes: dict[tuple[str, bool, str], list[tuple[Pair, str]]] = defaultdict(list)
    for pair, said in wrong:
        classes[pair.kind, pair.equal, pair.why].append((pair, said))
    for (kind, equal, why), members in sorted(classes.items(), key=lambda item: -len(item[1])):
        for pair, said in members[:most]:
            shown = pair.completion if pair.kind == "extraction" else pair.answer
            yield [kind, "equal" if equal else "unequal", why, len(members), code(pair.gold), code(shown), said]


def report(data: Path, count: int, seed: int) -> str:
    pairs = make_pairs(count, seed)
    text, wrong = constructed(pairs)
    turned, changed = symmetric(pairs)
    golds = real_golds(data)
    reflected, not_equal = reflexive(golds, seed)
    mutated, still_equal = digit_changed(golds, seed)
    columns = ["kind", "are", "how", "of these", "gold", "answer", "verdict"]
    plain = ["gold", "answer", "verdict"]
    return "\n\n".join(
        [
            f"# Properties: {len(pairs):,} constructed pairs, seed {seed}",
            text,
            f"Judged wrongly: {len(wrong):,}. " + math_verify_errors(pairs),
            table(columns, listing(wrong)) if wrong else "",
            f"Symmetry: {turned:,} pairs turned round, {len(changed):,} verdicts changed.",
            table(columns, listing(changed)) if changed else "",
            f"Reflexive and invariant: {len(golds):,} golds of MATH against themselves as they are, set otherwise, and "
            f"wrapped: {reflected:,} pairs, {len(not_equal):,} not right.",
            table(plain, [[code(g), code(a), said] for g, a, said in not_equal[:200]]) if not_equal else "",
            f"One digit changed: {mutated:,} golds of MATH, {len(still_equal):,} still right.",
            table(plain, [[code(g), code(a), said] for g, a, said in still_equal[:100]]) if still_equal else "",
        ]
    )
