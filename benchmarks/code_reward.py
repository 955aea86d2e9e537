"""The code reward on public datasets, under attack, and its speed.

    python benchmarks/code_reward.py sets           reference solutions and public generations
    python benchmarks/code_reward.py attacks        adversarial submissions, self-test, bombs; each level and user
    python benchmarks/code_reward.py leaks          1,000 submissions in a row, and what is left behind
    python benchmarks/code_reward.py throughput     executions per second, and where the time goes

`--data` is a folder with verifier/, generations/ and eval/; missing files are reported and skipped.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from rewards.programs.code import run_tests  # noqa: E402
from rewards.programs.datasets import humaneval_tests, mbpp_tests  # noqa: E402
from rewards.programs.results import CodeResult  # noqa: E402
from rewards.programs.sandbox import isolation, pool  # noqa: E402
from rewards.programs.sandbox.box import Box  # noqa: E402
from rewards.programs.sandbox.isolation import LEVELS, Level  # noqa: E402
from rewards.programs.sandbox.limits import Limits  # noqa: E402
from rewards.programs.sandbox.running import Running  # noqa: E402


def available() -> list[Level]:
    """The sandbox levels that work here; prints why the others do not."""
    missing = pool.problems()
    for level, problem in missing.items():
        print(f"skipped: {level}: {problem}")
    return [level for level in LEVELS[:-1] if level not in missing]


def rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        print(f"skipped: {path} does not exist")
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def sets(data: Path) -> None:
    """Score reference solutions, which must pass, and public generations, whose scores are published."""
    humaneval = rows(data / "eval/humaneval/test.jsonl")
    mbpp = rows(data / "eval/mbpp/mbpp.jsonl")
    leetcode = rows(data / "eval/leetcode/rllm_test.jsonl")

    def of_humaneval(row: dict[str, Any]) -> Any:
        return humaneval_tests(row["prompt"], row["test"], row["entry_point"])

    def of_mbpp(row: dict[str, Any]) -> Any:
        return mbpp_tests(row["test_list"], row["test_setup_code"])

    grade("HumanEval, reference", humaneval, lambda row: row["prompt"] + row["canonical_solution"], of_humaneval)
    grade("MBPP, reference", mbpp, lambda row: row["code"], of_mbpp)
    for index, row in enumerate(leetcode):
        row["task_id"] = index
    grade("LeetCode, reference", leetcode, lambda row: row["solutions"], lambda row: row["tests"])

    tasks = {row["task_id"]: row for row in humaneval}
    generated = [row for row in rows(data / "generations/qwen25coder_1.5b_humaneval.jsonl") if row["task_id"] in tasks]
    results = grade(
        "HumanEval, Qwen2.5-Coder-1.5B (published 43.9)",
        generated,
        lambda row: row["solution"],
        lambda row: of_humaneval(tasks[row["task_id"]]),
        quiet=True,
    )
    disagreements(generated, results)

    # The generations answer MBPP+, whose tests differ from MBPP's. If the prompt's example, which a generation repeats,
    # is one of MBPP's own tests, both pose the same problem.
    problems = {row["task_id"]: row for row in mbpp}
    generated = rows(data / "generations/qwen25coder_1.5b_mbpp.jsonl")
    same = [row for row in generated if _asks_the_same(row, problems.get(int(row["task_id"].partition("/")[2])))]
    results = grade(
        f"MBPP, Qwen2.5-Coder-1.5B, {len(same)} of {len(generated)} tasks whose example is MBPP's",
        same,
        lambda row: row["solution"],
        lambda row: of_mbpp(problems[int(row["task_id"].partition("/")[2])]),
        quiet=True,
    )
    disagreements(same, results)


def _asks_the_same(row: dict[str, Any], problem: dict[str, Any] | None) -> bool:
    example = next((line for line in row["solution"].splitlines() if line.startswith("assert ")), None)
    squeezed = {"".join(test.split()) for test in (problem or {}).get("test_list", [])}
    return example is not None and "".join(example.split()) in squeezed


def grade(
    title: str,
    problems: Sequence[dict[str, Any]],
    program: Callable[[Any], str],
    tests: Callable[[Any], Any],
    *,
    quiet: bool = False,
) -> list[CodeResult]:
    """Run the programs, print how many pass and, unless quiet, each failure."""
    started = time.perf_counter()
    results = run_tests(
        [program(row) for row in problems], [tests(row) for row in problems], code_in="text", time_limit=10
    )
    seconds = time.perf_counter() - started
    passed = sum(result.passed for result in results)
    if problems:
        print(f"{title}: {passed}/{len(problems)} = {100 * passed / len(problems):.2f} in {seconds:.1f} s")
    for row, result in zip(problems, results, strict=True):
        if not result.passed and not quiet:
            print(f"   {row['task_id']}: {result.reason}: {result.first_failure.detail}")
    return results


def disagreements(generated: Sequence[dict[str, Any]], results: Sequence[CodeResult]) -> None:
    labels = [row["base_status"] == "pass" for row in generated]
    if labels:
        print(f"   published on these: {100 * statistics.mean(labels):.2f}")
    for row, label, result in zip(generated, labels, results, strict=True):
        if label != result.passed:
            print(f"   {row['task_id']}: published {row['base_status']}, here {result.reason}", end=" ")
            print(result.first_failure.detail)


ADVERSARIAL = {
    "call": {"type": "call", "entry_point": "f", "cases": [{"input": [1], "output": 2}, {"input": [5], "output": 6}]},
    "call_list": {"type": "call", "entry_point": "f", "cases": [{"input": [1], "output": [1, 2]}]},
    "stdin": {"type": "stdin", "cases": [{"input": "4\n1 2 3 4\n", "output": "YES\n1\n2\n3\n"}]},
    "stdin_float": {"type": "stdin", "tolerance": 1e-6, "cases": [{"input": "", "output": "1.0\n"}]},
    "stdin_big": {"type": "stdin", "cases": [{"input": "", "output": "100000000000000000\n"}]},
}


def attacks(data: Path, user: str | None) -> None:
    """Each level, as this user and, from root, as an ordinary user, each in its own process."""
    if user is None:
        for level in available():
            for who in ["-", "61000"] if os.getuid() == 0 else ["-"]:
                options = ["--data", str(data.resolve()), "--user", f"{level}:{who}"]
                subprocess.run([sys.executable, __file__, "attacks", *options], check=True)
        return
    from tests.rewards.programs import hostile

    level, _, who = user.partition(":")
    adversarial = rows(data / "verifier/adversarial_code.jsonl")
    if who != "-":
        hostile.become(int(who))
    started = time.perf_counter()
    results = run_tests(
        [row["submission"] for row in adversarial],
        [ADVERSARIAL[row["kind"]] for row in adversarial],
        code_in="text",
        isolation=level,  # type: ignore[arg-type]
        time_limit=1,
        memory_mb=256,
    )
    wrong = [row["id"] for row, v in zip(adversarial, results, strict=True) if v.passed != row["expected"]]
    seconds = time.perf_counter() - started
    print(f"{level}, user {os.getuid()}: {len(adversarial) - len(wrong)}/{len(adversarial)} adversarial submissions as")
    print(f"   expected in {seconds:.1f} s {wrong or ''}")
    report = hostile.attack(level)
    probe = report["probe"]
    print(f"   self-test: {len(probe['held'])} attacks refused, succeeded: {probe['broken'] or 'none'}")
    print(f"   {len(report['failed'])} bombs and tricks in {report['seconds']:.1f} s, sandbox still works: ", end="")
    print(report["afterwards"])
    for name, outcome in {**report["passed"], **report["failed"]}.items():
        print(f"      {name}: {outcome[:70]!r}")


def leaks() -> None:
    """Descriptors, processes, files and memory before and after 1,000 consecutive submissions."""
    kinds = ["print(input())", "print(input(", "import os\nos.fork()\nprint(input())", "1/0", "open('x', 'w')"]
    tests = {"type": "stdin", "cases": [{"input": "3\n", "output": "3\n"}], "time_limit": 1}
    run_tests(kinds, [tests] * len(kinds), code_in="text")
    pool.close_all()
    print("before", footprint())
    started = time.perf_counter()
    for index in range(1000):
        run_tests([f"{kinds[index % 50 if index % 50 < len(kinds) else 0]}\n#{index}"], [tests], code_in="text")
    print(f"1,000 submissions in {time.perf_counter() - started:.1f} s")
    print("with the pool", footprint())
    pool.close_all()
    print("after ", footprint())


def footprint() -> dict[str, int]:
    tree = [os.getpid()]
    for pid in tree:
        for task in Path(f"/proc/{pid}/task").iterdir():
            tree += map(int, (task / "children").read_text().split())
    memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    return {
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "processes": len(tree),
        "files": len(list(Path("/tmp").glob("sandbox-*"))),
        "memory_mib": memory,
    }


def throughput(data: Path) -> None:
    """Median latencies of single runs, then throughput of many."""
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    fresh = [isolation.python(), "-S", "-c", "pass"]
    print(f"{'starting Python each time, no sandbox':45} {median(lambda: subprocess.run(fresh, check=True)):6.1f} ms")
    empty: dict[str, Any] = {"mode": "script", "preamble": "", "source": ""}
    levels = available()
    for level in (*levels, "none"):
        print(f"{level + ': a new sandbox':45} {median(lambda level=level: Box(level).close(), 5):6.1f} ms")
        box = Box(level)

        def one(job: dict[str, Any], box: Box = box) -> None:
            with Running(box, job, Limits()) as running:
                running.feed(b"", last=True)
                running.wait()

        def parts() -> Iterator[float]:
            for _ in range(100):
                started = time.perf_counter()
                with Running(box, empty, Limits()) as running:  # noqa: B023
                    sent = time.perf_counter()
                    running.feed(b"", last=True)
                    ended = running.wait()
                yield from ((sent - started) * 1e3, ended.cpu * 1e3, (time.perf_counter() - started) * 1e3)

        numbers = list(parts())
        handed, cpu, whole = (statistics.median(numbers[i::3]) for i in range(3))
        print(f"{level + ': an empty program':45} {whole:6.1f} ms: {handed:.1f} to hand over, {cpu:.1f} its CPU")
        with_work = median(lambda one=one: one(empty | {"source": "import heapq\nprint(sum(range(10**5)))"}))
        print(f"{level + ': a small program':45} {with_work:6.1f} ms")
        box.close()
    count = 400
    tests = {"type": "stdin", "cases": [{"input": "1 2\n", "output": "3\n"}]}
    for level in levels:
        programs = [f"print(sum(map(int, input().split())))  # {i}" for i in range(count)]
        run_tests(programs[:4], [tests] * 4, code_in="text", isolation=level)
        started = time.perf_counter()
        run_tests(programs, [tests] * count, code_in="text", isolation=level)
        print(f"{level + ': stdin tests, all cores':45} {count / (time.perf_counter() - started):6.0f} per second")
    problems = rows(data / "eval/humaneval/test.jsonl")
    if problems:
        started = time.perf_counter()
        run_tests(
            [row["prompt"] + row["canonical_solution"] for row in problems],
            [humaneval_tests(row["prompt"], row["test"], row["entry_point"]) for row in problems],
            code_in="text",
        )
        rate = len(problems) / (time.perf_counter() - started)
        print(f"{'HumanEval, asserts in their own sandbox':45} {rate:6.0f} solutions per second")


def median(action: Callable[[], object], repeats: int = 30) -> float:
    times: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sets", "attacks", "leaks", "throughput"])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--user", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.what == "attacks":
        attacks(options.data, options.user)
    elif options.what == "leaks":
        leaks()
    else:
        {"sets": sets, "throughput": throughput}[options.what](options.data)


if __name__ == "__main__":
    main()
