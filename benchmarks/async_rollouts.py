"""Generation ahead of the update against lockstep: recipes/r1_zero.yaml, one server process and one trainer process.

    python benchmarks/async_rollouts.py [--steps 30] [--staleness 0 1 2 4] [--seeds 42] [rollout.problems_per_step=8 …]

Server and trainer have one core each. Prints per k: seconds per step, the share of it in which each side waited, the
share of tokens by staleness, groups dropped, and held-out pass@1 with its interval; draws the same into `chart.svg`.
Steps 2 to N count: the first also fills the queue. A folder that has the run already is read, not run again.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx

ROOT = Path(__file__).parent.parent
SERVER_OPTIONS = ("--host", "127.0.0.1", "--max-model-len", "176", "--max-num-seqs", "512")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
ENDS = ("", "_low", "_high")  # of a metric and its confidence interval
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--folder", type=Path, default=Path("runs/async_rollouts"))
    given, overrides = parser.parse_known_args()
    cores = sorted(os.sched_getaffinity(0))
    runs = {(k, seed): given.folder / f"k{k}-seed{seed}" for k in given.staleness for seed in given.seeds}
    given.folder.mkdir(parents=True, exist_ok=True)
    if missing := {key: folder for key, folder in runs.items() if not (folder / "done.json").exists()}:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [*grpo("serve", str(ROOT / "recipes/v3_base")), "--for-training", "--port", str(port)]
        server = start([*command, *SERVER_OPTIONS], given.folder / "server.log", cores[-1])
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(f"{url}/health", server)
            for (k, seed), folder in missing.items():
                train(k, seed, folder, url, [f"trainer.max_steps={given.steps}", *overrides], cores[0])
        finally:
            server.terminate()
            server.wait()
    table = [summary(k, [read(runs[k, seed]) for seed in given.seeds]) for k in given.staleness]
    for row in table:
        print("  ".join(f"{name} {value}" for name, value in row.items() if not isinstance(value, list)))
        print("   tokens by staleness:", ", ".join(f"{i}: {share:.1%}" for i, share in enumerate(row["staleness"])))
    draw(table, given.folder / "chart.svg")


def grpo(*words: str) -> list[str]:
    return [sys.executable, "-m", "grpo", *words]


def start(command: Sequence[str], log: Path, core: int) -> subprocess.Popen[bytes]:
    """The command on one core, with its output in a file."""
    environment = {**os.environ, **ONE_THREAD}
    with log.open("wb") as output:
        return subprocess.Popen(
            ["taskset", "-c", str(core), *command], cwd=ROOT, env=environment, stdout=output, stderr=output
        )


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    while True:
        assert server.poll() is None, "the server has ended; see server.log"
        try:
            if httpx.get(url, timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(1)


def train(k: int, seed: int, folder: Path, url: str, overrides: Sequence[str], core: int) -> None:
    command = grpo("train", "recipes/r1_zero.yaml", "rollout.engine=server", f"rollout.servers=[{url}]")
    command += [f"rollout.max_staleness={k}", f"trainer.seed={seed}", f"trainer.output_dir={folder.resolve()}"]
    began = time.perf_counter()
    run = start([*command, *overrides], folder.with_suffix(".log"), core)
    assert run.wait() == 0, f"the run has failed; see {folder.with_suffix('.log')}"
    print(f"k={k} seed={seed}: {time.perf_counter() - began:.0f} s", flush=True)


def read(folder: Path) -> list[Row]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def summary(k: int, runs: Sequence[Sequence[Row]]) -> Row:
    """Means over the steps of all seeds."""
    steps = [row for rows in runs for row in rows if "reward" in row and row["step"] > 1]
    last = [[row for row in rows if "eval/pass@1" in row][-1] for rows in runs if any("eval/pass@1" in r for r in rows)]

    def idle(row: Row) -> tuple[float, float]:
        if k:
            return row["rollout/idle_trainer"], row["rollout/idle_generator"]
        generating = row["time/generate"] / row["step_time"]
        return generating + row.get("time/reward", 0) / row["step_time"], 1 - generating

    trainer, generator = zip(*map(idle, steps), strict=True)
    shares = [fmean(row.get(f"rollout/staleness_share_{age}") or 0 for row in steps) for age in range(k + 1)]
    return {
        "k": k,
        "s/step": round(fmean(row["step_time"] for row in steps), 2),
        "trainer idle": f"{fmean(trainer):.1%}",
        "generation idle": f"{fmean(generator):.1%}",
        "sync": f"{fmean(row['time/sync'] / row['step_time'] for row in steps):.1%}",
        "dropped": sum(row.get("rollout/dropped_stale", 0) for row in steps),
        "pass@1": " ".join(
            f"{r['eval/pass@1']:.3f} ({r['eval/pass@1_low']:.3f}–{r['eval/pass@1_high']:.3f})" for r in last
        ),
        "staleness": shares if k else [1.0],
        "idle": [fmean(trainer), fmean(generator)],
        "curves": [[(row["step"], row["eval/pass@1"]) for row in rows if "eval/pass@1" in row] for rows in runs],
    }


def draw(table: Sequence[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, ((seconds, idle), (stale, curves)) = pyplot.subplots(2, 2, figsize=(9, 6), layout="constrained")
    names = [f"k={row['k']}" for row in table]
    seconds.bar(names, [row["s/step"] for row in table])
    seconds.set_title("seconds per step")
    for side, label, shift in ((0, "trainer", -0.2), (1, "generation", 0.2)):
        idle.bar([i + shift for i in range(len(table))], [row["idle"][side] for row in table], 0.4, label=label)
    idle.set_xticks(range(len(table)), names)
    idle.set_title("share of a step spent waiting")
    idle.legend()
    for i, row in enumerate(table):
        ages = range(len(row["staleness"]))
        stale.bar([age + 0.2 * (i - len(table) / 2) for age in ages], row["staleness"], 0.2, label=names[i])
        for curve in row["curves"]:
            curves.plot(*zip(*curve, strict=True), color=f"C{i}", label=names[i]) if curve else None
    stale.set_title("share of tokens by missed updates")
    stale.legend()
    curves.set_title("held-out pass@1 by step")
    figure.savefig(path)
    print(path)


if __name__ == "__main__":
    main()
