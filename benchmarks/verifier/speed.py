"""Pairs per second, ours and plain math-verify, on the same groups, alternating in the same run.

Plain math-verify is how a reward function would use it: parse the reference answer, parse the completion, verify, one
pair at a time in one process. Ours uses its worker processes. The mixes:

- generations: 100 MATH problems, 8 unmodified completions of Qwen2.5-Math each
- hard answers: HardVerify's problems, 8 answers each, drawn from the right and the wrong one
- many kinds: 150 non-integer reference answers of MATH, 16 answers each: the reference restyled or one digit changed
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from benchmarks.verifier.fuzz import latencies, percentile
from benchmarks.verifier.grading import math_verify_alone, progress
from benchmarks.verifier.pairs.writing import restyle
from benchmarks.verifier.properties import other_digit, real_references
from benchmarks.verifier.report import table
from rewards.answers.accuracy import verify

Group = list[tuple[str, str]]  # (completion, reference), all for one problem
_AT_ONCE = 8  # groups per call of ours, as in a rollout step


def generations(data: Path) -> list[Group]:
    rows = [json.loads(line) for line in (data / "generations/qwen25math_math100x8.jsonl").read_text().splitlines()]
    problems = dict.fromkeys(row["idx"] for row in rows)
    return [[(r["completion"], r["gold"]) for r in rows if r["idx"] == idx] for idx in problems]


def hard(data: Path, rng: Random) -> list[Group]:
    rows = [json.loads(line) for line in (data / "verifier/hardverify_math.jsonl").read_text().splitlines()]
    fields = ["pred_correct", "pred_wrong"]
    return [[(rf"So it is \boxed{{{r[rng.choice(fields)]}}}.", r["gold"]) for _ in range(8)] for r in rows]


def many_kinds(data: Path, rng: Random) -> list[Group]:
    references = [g for g in real_references(data) if not g.isdecimal() and any(c.isdecimal() for c in g)]
    return [
        [
            (rf"So it is \boxed{{{restyle(rng, g) if rng.random() < 0.5 else other_digit(rng, g)}}}.", g)
            for _ in range(16)
        ]
        for g in rng.sample(references, 150)
    ]


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(name: str, groups: list[Group]) -> list[str]:
    """One table row: pairs, distinct pairs, pairs per second of both, speed-up."""
    mine = theirs = 0.0
    for start in progress(range(0, len(groups), _AT_ONCE), name):
        pairs = [pair for group in groups[start : start + _AT_ONCE] for pair in group]
        mine += seconds(lambda pairs=pairs: verify([c for c, _ in pairs], [g for _, g in pairs]))
        theirs += seconds(lambda pairs=pairs: [math_verify_alone(c, g) for c, g in pairs])
    pairs = [pair for group in groups for pair in group]
    count = len(pairs)
    return [
        name,
        f"{count:,}",
        f"{len(set(pairs)):,}",
        f"{count / mine:,.0f}",
        f"{count / theirs:,.0f}",
        f"**{theirs / mine:.1f}x**",
    ]


def report(data: Path, seed: int) -> str:
    rng = Random(seed)
    mixes = {"generations": generations(data), "hard answers": hard(data, rng), "many kinds": many_kinds(data, rng)}
    verify([rf"\boxed{{x+{n}}}" for n in range(64)], [f"{n}+x" for n in range(64)])  # starts the workers
    math_verify_alone("\\boxed{x+1}", "1+x")  # and imports sympy here
    rows = [compare(name, groups) for name, groups in mixes.items()]
    mixed = [group for groups in mixes.values() for group in groups]
    fresh = {
        name: latencies([pair for group in groups for pair in group], f"{name}, single calls")
        for name, groups in fresh_groups(data, seed + 1).items()
    }
    return "\n\n".join(
        [
            f"# Speed on {os.cpu_count()} cores, seed {seed}, {len(mixed)} groups",
            table(["mix", "pairs", "distinct pairs", "ours, pairs/s", "math-verify, pairs/s", "faster"], rows),
            "Single calls with one new pair each, in ms:",
            table(
                ["mix", "calls", "p50", "p90", "p99", "max"],
                [[n, len(t), *(f"{percentile(t, s):.2f}" for s in (0.5, 0.9, 0.99, 1))] for n, t in fresh.items()],
            ),
        ]
    )


def fresh_groups(data: Path, seed: int) -> dict[str, list[Group]]:
    """Pairs that no cache contains yet."""
    rng = Random(seed)
    return {"many kinds": many_kinds(data, rng)}
