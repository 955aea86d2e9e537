"""Generation ahead of the update against lockstep, on the embedded base: docs/results/async.md and its chart.

    python benchmarks/async_rollouts.py                                          # k = 0, 1, 2, 4, three seeds each
    python benchmarks/async_rollouts.py --staleness 0 1 --seeds 42 --steps 4 rollout.problems_per_step=8 \
        --output /tmp/async.md

A server on each core and one trainer share the machine. Ahead, the trainer has one thread, which runs where there is
room: two would wait for each other while a server holds one's core. It leaves the servers a little more of the cores
than they leave it (`nice`), so that neither side waits much longer than the other at k = 1. Each run is
recipes/r1_zero.yaml in a folder of its own, evaluated before and after. A finished run is read from its folder, an
interrupted one goes on from its last checkpoint: the command can be stopped and repeated. Use another --folder for
other overrides.
"""

import argparse
import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx

from grpo.report.records import METRICS_FILE, Row, is_evaluation, read_rows

ROOT = Path(__file__).parents[1]
SERVER_OPTIONS = ("--host", "127.0.0.1", "--max-model-len", "176", "--max-num-seqs", "512")
CORES = sorted(os.sched_getaffinity(0))
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
ONE_THREAD = {"OMP_THREAD_LIMIT": "1"}
NICE = 3  # of a trainer beside servers
BARS = ("#1f5fa8", "#e08a2b")
Spread = tuple[float, float, float]  # mean over seeds, least, most


@dataclass(frozen=True, slots=True)
class Result:
    """What a finished run measured: means over its steps, without the first after a start, which fills the queue."""

    seconds: float  # per step
    trainer_waits: float  # share of a step
    server_rests: float
    update: float
    sync: float  # both sides: weights are written and taken
    stale: list[float]  # share of tokens that have missed 0, 1, … updates
    dropped: int  # groups, in all steps
    length: float
    effective: float | None  # sample size after the correction of stale tokens
    before: float  # held-out pass@1
    after: float
    low: float  # bounds of the run's own interval for `after`
    high: float

    @classmethod
    def of(cls, rows: Sequence[Row], k: int) -> "Result":
        evaluations = [row for row in rows if is_evaluation(row)]
        every = [row for row in rows if "step_time" in row]
        steps = [row for row in every if row["step"] > 1 and (not k or row["rollout/staleness_share_0"] < 1)]

        def mean(value: Callable[[Row], float]) -> float:
            return statistics.mean(value(row) for row in steps)

        whole = sum(row["step_time"] for row in steps)

        def share(*phases: str) -> float:
            return sum(row.get(f"time/{phase}", 0.0) for row in steps for phase in phases) / whole

        def idle(side: str) -> float:
            return sum(row[f"rollout/idle_{side}"] * row["step_time"] for row in steps) / whole

        effective = [row.get("sampling/importance_sampling_ratio/effective_sample_size") for row in steps]
        last = evaluations[-1]
        return cls(
            seconds=mean(lambda row: row["step_time"]),
            trainer_waits=idle("trainer") if k else share("generate", "reward"),
            server_rests=idle("generator") if k else 1 - share("generate", "sync"),
            update=share("score", "update"),
            sync=share("sync"),
            stale=[mean(lambda row, age=age: row[f"rollout/staleness_share_{age}"]) for age in range(k + 1)]
            if k
            else [1.0],
            dropped=int(sum(row.get("rollout/dropped_stale", 0) for row in every)),
            length=mean(lambda row: row["completions/mean_length"]),
            effective=statistics.mean(found) if (found := [one for one in effective if one is not None]) else None,
            before=evaluations[0]["eval/pass@1"],
            after=last["eval/pass@1"],
            low=last["eval/pass@1_low"],
            high=last["eval/pass@1_high"],
        )


# -- runs


class Servers:
    """One on each core, started for the first run that needs them and ended by `close`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._processes = folder, {}

    def urls(self) -> list[str]:
        if not self._processes:
            print(f"starting {len(CORES)} servers", flush=True)
            for core in CORES:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", 0))
                    port = probe.getsockname()[1]
                words = ["serve", str(ROOT / "recipes" / "v3_base"), "--for-training", "--port", str(port)]
                log = self._folder / f"server_{core}.log"
                self._processes[f"http://127.0.0.1:{port}"] = start([*words, *SERVER_OPTIONS], log, [core])
            while not all(map(_is_up, self._processes)):
                if any(process.poll() is not None for process in self._processes.values()):
                    raise SystemExit(f"a server has ended; see {self._folder}/server_*.log")
                time.sleep(1)
        return [*self._processes]

    def close(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait()


def _is_up(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/health", timeout=5).is_success
    return False


def start(
    words: Sequence[str],
    log: Path,
    cores: Sequence[int],
    limits: Mapping[str, str] = MappingProxyType({}),
    niceness: int = 0,
) -> "subprocess.Popen[bytes]":
    """`grpo …` on these cores, a thread on each unless `limits` say otherwise, with its output added to a file."""
    command = ["nice", "-n", str(niceness), "taskset", "-c", ",".join(map(str, cores)), sys.executable, "-m", "grpo"]
    command += words
    environment = {**os.environ, **WAITING, "OMP_NUM_THREADS": str(len(cores)), **limits}
    with log.open("ab") as output:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)


def run(k: int, seed: int, options: argparse.Namespace, servers: Servers) -> Result:
    """Train, or read what has been trained."""
    out = (options.folder / f"k{k}_{seed}_{options.steps}").resolve()
    metrics, log = out / METRICS_FILE, out.with_suffix(".log")

    def is_finished() -> bool:
        return any(is_evaluation(row) and row["step"] == options.steps for row in read_rows(metrics))

    if not is_finished():
        settings = [
            "rollout.engine=server",
            f"rollout.servers=[{', '.join(servers.urls())}]",
            f"rollout.max_staleness={k}",
            *options.overrides,
            f"trainer.output_dir={out}",
            f"trainer.seed={seed}",
            f"trainer.max_steps={options.steps}",
            "trainer.resume_from_checkpoint=true",
            "evaluation.eval_steps=0",
        ]
        print(f"training {out}", flush=True)
        command = ["train", str(ROOT / "recipes" / "r1_zero.yaml"), *settings]
        training = start(command, log, CORES, *((ONE_THREAD, NICE) if k else ()))
        try:
            follow(training, metrics, options.steps)
        finally:
            training.terminate()
            training.wait()
    if not is_finished():
        raise SystemExit(f"{metrics} has no evaluation at step {options.steps}. See {log}.")
    return Result.of(list(read_rows(metrics)), k)


def follow(training: "subprocess.Popen[bytes]", metrics: Path, steps: int) -> None:
    """Print each new step until the run has ended."""
    shown = max((row["step"] for row in read_rows(metrics)), default=0)
    while training.poll() is None:
        time.sleep(1)
        for row in read_rows(metrics):
            if "step_time" in row and row["step"] > shown:
                shown = row["step"]
                print(f"  step {shown} of {steps}: {row['step_time']:.1f} s, reward {row['reward']:.3f}", flush=True)


# -- results


def interval(results: Sequence[Result]) -> Spread:
    """Held-out pass@1 and its bounds: the range over seeds, or of one run its own 95% interval."""
    if len(results) == 1:
        return results[0].after, results[0].low, results[0].high
    return spread(results, lambda result: result.after)


def spread(results: Sequence[Result], value: Callable[[Result], float]) -> Spread:
    values = [value(result) for result in results]
    return statistics.mean(values), min(values), max(values)


def table(results: dict[int, list[Result]], options: argparse.Namespace, chart: Path) -> str:
    seeds = ", ".join(map(str, options.seeds))
    bounds = "its 95% interval" if len(options.seeds) == 1 else f"the range over seeds {seeds}"
    before = statistics.mean(result.before for runs in results.values() for result in runs)
    lines = [
        "# Asynchronous rollouts on the embedded base",
        "",
        f"    python {' '.join(['benchmarks/async_rollouts.py', *options.typed])}",
        "",
        f"`recipes/r1_zero.yaml` with {options.steps} steps and what the command changes; {len(CORES)} "
        f"servers, a core each, and a trainer that shares these cores, unless k is 0 with one thread and nice {NICE}. "
        "k is `rollout.max_staleness`, 0 is lockstep. Times are means over steps and seeds [range over seeds], without "
        "the first step after a start; shares are of the sum of these steps. Trainer waits: for groups. Servers rest: "
        "nothing is being generated and no weights are taken. Sync: they are written and taken, servers are frozen. "
        "Missed updates: share of tokens that were sampled 0, 1, … updates before the one that trains on them. ESS: "
        "effective sample size of the weights that correct for it, as a share. Held-out pass@1 with "
        f"{bounds}; the base has {before:.3f}.",
        "",
        f"![time, waiting, staleness and pass@1]({chart.parent.name}/{chart.name})",
        "",
        "| k | s/step | trainer waits | servers rest | update | sync | missed updates 0, 1, … | dropped | ESS | length "
        "| pass@1 |",
        "|" + "---|" * 11,
    ]
    for k, runs in results.items():
        seconds, low, high = spread(runs, lambda r: r.seconds)
        shares = [spread(runs, value)[0] for value in (waits, rests, lambda r: r.update, lambda r: r.sync)]
        effective = [r.effective for r in runs if r.effective is not None]
        middle, least, most = interval(runs)
        lines.append(
            f"| {k} | {seconds:.1f} [{low:.1f}, {high:.1f}] | {' | '.join(f'{share:.1%}' for share in shares)} "
            f"| {', '.join(f'{share:.1%}' for share in stale(runs))} | {sum(r.dropped for r in runs)} "
            f"| {f'{statistics.mean(effective):.3f}' if effective else '–'} "
            f"| {spread(runs, lambda r: r.length)[0]:.1f} | {middle:.3f} [{least:.3f}, {most:.3f}] |"
        )
    return "\n".join(lines) + "\n"


def waits(result: Result) -> float:
    return result.trainer_waits


def rests(result: Result) -> float:
    return result.server_rests


def stale(runs: Sequence[Result]) -> list[float]:
    """Share of tokens by missed updates, over seeds."""
    return [statistics.mean(shares) for shares in zip(*(result.stale for result in runs), strict=True)]


def draw(results: dict[int, list[Result]], path: Path) -> None:
    """Four panels with a place per k: time, waiting, staleness and pass@1; means over seeds, ranges as lines."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "async"  # the same bytes for the same numbers
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 4, figsize=(13, 3.4), layout="constrained")
    places, names = range(len(results)), [f"k = {k}" for k in results]

    def bars(panel: Any, shift: float, width: float, spreads: Sequence[Spread], **style: Any) -> None:
        for place, (middle, low, high) in zip(places, spreads, strict=True):
            panel.bar(place + shift, middle, width, **style)
            panel.plot([place + shift] * 2, [low, high], color="#333333", linewidth=1.2)
            style.pop("label", None)

    def of(value: Callable[[Result], float]) -> list[Spread]:
        return [spread(runs, value) for runs in results.values()]

    seconds, idle, missed, score = panels
    bars(seconds, 0, 0.6, of(lambda r: r.seconds), color=BARS[0])
    seconds.set_title("seconds per step", fontsize=10)
    bars(idle, -0.2, 0.38, of(lambda r: 100 * waits(r)), color=BARS[0], label="trainer waits")
    bars(idle, 0.2, 0.38, of(lambda r: 100 * rests(r)), color=BARS[1], label="servers rest")
    idle.axhline(15, color="#888888", linewidth=1, linestyle="--")
    idle.set_ylim(0, 100)
    idle.set_title("% of a step (dashed: 15)", fontsize=10)
    idle.legend(frameon=False, fontsize=9)
    ages = max(len(stale(runs)) for runs in results.values())
    bottom = [0.0] * len(results)
    for age in range(ages):
        shares = [100 * shares[age] if age < len(shares) else 0.0 for shares in map(stale, results.values())]
        tone = pyplot.get_cmap("viridis_r")(0.1 + 0.8 * age / max(ages - 1, 1))
        missed.bar(places, shares, 0.6, bottom=bottom, color=tone, label=str(age))
        bottom = [height + share for height, share in zip(bottom, shares, strict=True)]
    missed.set_title("% of tokens by missed updates", fontsize=10)
    missed.legend(frameon=False, fontsize=9, ncols=ages, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    if 0 in results:
        lockstep = interval(results[0])[0]
        score.axhspan(lockstep - 0.02, lockstep + 0.02, color="#888888", alpha=0.15, linewidth=0)
    for place, runs in zip(places, results.values(), strict=True):
        middle, low, high = interval(runs)
        score.plot([place, place], [low, high], color="#7aa6d6", linewidth=3, solid_capstyle="round")
        score.plot([place] * len(runs), [r.after for r in runs], "_", color=BARS[0], markersize=9)
        score.plot([place], [middle], "o", color=BARS[0], markersize=5)
    score.set_title("pass@1 (grey: lockstep ± 0.02)", fontsize=10)
    score.set_xlim(-0.5, len(results) - 0.5)
    for panel in panels:
        panel.set_xticks(places, names)
        panel.grid(axis="y", alpha=0.25)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2, 4], metavar="K")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--folder", type=Path, default=Path("runs/async"), help="of the runs")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "async.md")
    options, options.overrides = parser.parse_known_args()  # of the recipe, such as rollout.problems_per_step=8
    places = [word for name in ("--folder", "--output") for word in (name, str(getattr(options, name[2:])))]
    options.typed = [word for word in sys.argv[1:] if word not in places]  # without where this machine keeps it
    if unknown := [word for word in options.overrides if "=" not in word or word.startswith("-")]:
        parser.error(f"{unknown[0]!r} is neither an option nor an override such as rollout.problems_per_step=8.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends server and run
    options.folder.mkdir(parents=True, exist_ok=True)
    results: dict[int, list[Result]] = {}
    chart = options.output.parent / options.output.stem / "chart.svg"
    with contextlib.closing(Servers(options.folder)) as servers:
        for seed in options.seeds:  # the first seed of all comes before the second of one
            for k in options.staleness:
                results.setdefault(k, []).append(run(k, seed, options, servers))
                done = {k: runs for k, runs in results.items() if len(runs) == len(results[k])}
                options.output.write_text(table(done, options, chart), encoding="utf-8")
    draw(results, chart)
    print(options.output.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
