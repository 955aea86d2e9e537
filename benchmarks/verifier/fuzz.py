"""Hostile answers in bulk: no crash, no hang, no memory growth, no false positives."""

import importlib.util
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

import psutil

from benchmarks.verifier import hostile
from benchmarks.verifier.grading import outcome, progress
from benchmarks.verifier.properties import real_references
from benchmarks.verifier.report import code, table
from rewards.answers.accuracy import verify

_BATCH = 256
_BOMBS = 0.01
_SLOW = 1.0  # seconds; slower batches are counted


def ordinary(data: Path) -> list[tuple[str, str]]:
    """(completion, reference) as models write them: 800 answers to MATH problems, and HardVerify's."""
    pairs = []
    for line in (data / "generations/qwen25math_math100x8.jsonl").read_text().splitlines():
        row = json.loads(line)
        pairs.append((row["completion"], row["gold"]))
    for line in (data / "verifier/hardverify_math.jsonl").read_text().splitlines():
        row = json.loads(line)
        pairs += [(rf"\boxed{{{row[f'pred_{k}']}}}", row["gold"]) for k in ("correct", "wrong")]
    return pairs


def answers(rng: Random, real: Sequence[str], count: int) -> list[tuple[str, str]]:
    """(kind, answer); one in a hundred is a bomb."""
    out = []
    for _ in range(count):
        draw = rng.random()
        if draw < _BOMBS:
            out.append(("bomb", hostile.bomb(rng)))
        elif draw < 0.35:
            out.append(("grammar", hostile.grammar(rng, rng.randint(1, 6))))
        elif draw < 0.55:
            out.append(("raw", hostile.raw(rng)))
        else:
            out.append(("mutated", hostile.mutated(rng, real)))
    return out


def completion(rng: Random, answer: str) -> str:
    return rng.choice(
        [r"\boxed{{{}}}", r"\boxed{{{}}}", "<answer>{}</answer>", "<think>a</think> \\boxed{{{}}}", "{}"]
    ).format(answer)


def memory() -> tuple[float, float, set[int]]:
    """Resident MB of this process, the same summed over its children, and the children's pids."""
    this = psutil.Process()
    sizes = {}
    for child in this.children(recursive=True):
        try:
            sizes[child.pid] = child.memory_info().rss
        except psutil.NoSuchProcess:  # a worker that was just replaced
            continue
    return this.memory_info().rss / 1e6, sum(sizes.values()) / 1e6, set(sizes)


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def latencies(pairs: Sequence[tuple[str, str]], what: str) -> list[float]:
    """Latency of single calls in ms, each pair once."""
    times = []
    for text, reference in progress(list(dict.fromkeys(pairs)), what):
        start = time.perf_counter()
        verify([text], [reference])
        times.append(1000 * (time.perf_counter() - start))
    return times


def report(data: Path, count: int, seed: int) -> str:
    rng = Random(seed)
    references = real_references(data)
    normal = ordinary(data)
    verify([rf"\boxed{{x+{n}}}" for n in range(64)], [f"{n}+x" for n in range(64)])  # starts the workers
    before = latencies(normal[::2], "ordinary, before")
    fuzzed = answers(rng, references, count)
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in ("grammar", "raw", "mutated", "bomb")}
    samples, times, seen, right = [], [], set(), []
    for start in progress(range(0, count, _BATCH), "fuzzed"):
        part = fuzzed[start : start + _BATCH]
        against = [rng.choice(references) for _ in part]
        began = time.perf_counter()
        verdicts = verify([completion(rng, a) for _, a in part], against)
        times.append(time.perf_counter() - began)
        parent, workers, pids = memory()
        seen |= pids
        samples.append((start + len(part), parent, workers, len(pids)))
        for (kind, answer), reference, verdict in zip(part, against, verdicts, strict=True):
            counts[kind][verdict.outcome if verdict else "reference unreadable"] += 1
            if verdict is not None and verdict.outcome == "right":
                right.append([kind, code(reference), code(answer), outcome(verdict)])
    after = latencies(normal[1::2], "ordinary, after")
    outcomes = ["right", "wrong", "unverifiable", "reference unreadable"]
    shown = [
        samples[min(len(samples) - 1, round(share * (len(samples) - 1)))] for share in (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)
    ]
    gmpy2 = "with" if importlib.util.find_spec("gmpy2") else "without"
    return "\n\n".join(
        [
            f"# {count:,} fuzzed answers, seed {seed}, {gmpy2} gmpy2, {os.cpu_count()} cores",
            table(["kind", *outcomes], [[kind, *(c[o] for o in outcomes)] for kind, c in counts.items()]),
            f"{sum(times):.0f} s, {count / sum(times):,.0f} answers per second. Batches of {_BATCH}: "
            f"median {percentile(times, 0.5):.2f} s, longest {max(times):.2f} s; "
            f"{sum(t > _SLOW for t in times)} of {len(times)} took more than {_SLOW:.0f} s. "
            f"{len(seen)} worker processes in total.",
            table(
                ["after answers", "this process, MB", "workers, MB", "processes"],
                [[n, f"{p:.0f}", f"{w:.0f}", k] for n, p, w, k in shown],
            ),
            table(
                ["single calls, ordinary answers, ms", "p50", "p90", "p99", "max"],
                [
                    [name, *(f"{percentile(t, s):.2f}" for s in (0.5, 0.9, 0.99, 1))]
                    for name, t in (("before", before), ("after", after))
                ],
            ),
            f"Graded right: {len(right)} (mutations that keep the value, and chance hits such as 2):",
            table(["kind", "reference", "answer", "verdict"], right[:60]),
        ]
    )
