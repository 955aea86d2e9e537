"""Pairs per second, ours against plain math-verify, on the same groups in the same run, turn by turn.

Plain math-verify is what a reward function does with it: parse the gold, parse the completion, verify, one pair after
the other in one process. Ours has its workers. The mixes:

- generations: 100 problems of MATH with the 8 completions of Qwen2.5-Math to each, as they are
- hard answers: HardVerify's problems, 8 each: the right and the wrong answer, drawn at random
- many kinds: 150 golds of MATH that are not integers, 16 each: the gold set otherwise, or with a digit changed
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from benchmarks.verifier.fuzz import latencies, percentile
from benchmarks.verifier.grading import math_verify_alone, progress
from benchmarks.verifier.properties import other_digit, real_golds
from benchmarks.verifier.report import table
from benchmarks.verifier.writing import restyle
from rewards.answers.accuracy import judge

Group = list[tuple[str, str]]  # (completion, gold), all to one problem
_AT_ONCE = 8  # groups in one call of ours, as a rollout step gives them


def generations(data: Path) -> list[Group]:
    rows = [json.loads(line) for line in (data / "generations/qwen25math_math100x8.jsonl").read_text().splitlines()]
    problems = dict.fromkeys(row["idx"] for row in rows)
    return [[(r["completion"], r["gold"]) for r in rows if r["idx"] == idx] for idx in problems]


def hard(data: Path, rng: Random) -> list[Group]:
    rows = [json.loads(line) for line in (data / "verifier/hardverify_math.jsonl").read_text().splitlines()]
    fields = ["pred_correct", "pred_wrong"]
    return [[(rf"So it is \boxed{{{r[rng.choice(fields)]}}}.", r["gold"]) for _ in range(8)] for r in rows]


def many_kinds(data: Path, rng: Random) -> list[Group]:
    golds = [g for g in real_golds(data) if not g.isdecimal() and any(c.isdecimal() for c in g)]
    return [
        [
            (rf"So it is \boxed{{{restyle(rng, g) if rng.random() < 0.5 else other_digit(rng, g)}}}.", g)
            for _ in range(16)
        ]
        for g in rng.sample(golds, 150)
    ]


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(name: str, groups: list[Group]) -> list[str]:
    """One row: pairs, different pairs, pairs per second of both, and how much faster ours is."""
    mine = theirs = 0.0
    for start in progress(range(0, len(groups), _AT_ONCE), name):
        pairs = [pair for group in groups[start : start + _AT_ONCE] for pair in group]
        mine += seconds(lambda pairs=pairs: judge([c for c, _ in pairs], [g for _, g in pairs]))
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
    judge([rf"\boxed{{x+{n}}}" for n in range(64)], [f"{n}+x" for n in range(64)])  # starts the workers
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
            table(["mix", "pairs", "different pairs", "ours, pairs/s", "math-verify, pairs/s", "faster"], rows),
            "Single calls of one pair each, not seen before, in ms:",
            table(
                ["mix", "calls", "p50", "p90", "p99", "max"],
                [[n, len(t), *(f"{percentile(t, s):.2f}" for s in (0.5, 0.9, 0.99, 1))] for n, t in fresh.items()],
            ),
        ]
    )


def fresh_groups(data: Path, seed: int) -> dict[str, list[Group]]:
    """Answers that the comparison has not put into any cache."""
    rng = Random(seed)
    return {"many kinds": many_kinds(data, rng)}
