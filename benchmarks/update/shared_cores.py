"""An update beside busy loops: how far is it from its fair share of the cores?

    python benchmarks/update/shared_cores.py [--loops 2] [--steps 4]

Times our side of `benchmarks/trl/update_vs_trl.py` on idle cores, and beside endless loops that started before it, as a
run that finds its cores shared does it (`grpo train` then sets OMP_WAIT_POLICY=PASSIVE), and with the default. The fair
share is measured too: as many processes as cores, each with the same fixed work and nothing to wait for, idle and
beside the same loops. All is in one session, so that the scheduler's autogroups do not count.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from grpo.launch.processes import wait_without_spinning_on_shared_cores

UPDATE = Path(__file__).parents[1] / "trl/update_vs_trl.py"
MODEL = "import sys, pathlib, update_vs_trl; update_vs_trl.make_model(pathlib.Path(sys.argv[1]))"
LOOP = "while True: pass"
WORK = "for _ in range(10**8): pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loops", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, "-c", MODEL, scratch], check=True, cwd=UPDATE.parent)
        idle, work = update(scratch, options.steps, {}), fixed_work()
        with busy(options.loops):
            share = fixed_work() / work
            default = update(scratch, options.steps, {})
            wait_without_spinning_on_shared_cores()
            chosen = update(scratch, options.steps, {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "ACTIVE")})
    print(f"fair share: {share:.2f}x the idle time, {share * idle:.1f} s per update")
    for name, seconds in {"idle": idle, "beside loops, spinning": default, "beside loops, as a run": chosen}.items():
        print(f"{name:24} {seconds:6.2f} s per update, {seconds / (share * idle):.2f}x the fair share")


def update(scratch: str, steps: int, environment: dict[str, str]) -> float:
    """Median seconds of our update, in a process of its own; the first step warms up."""
    command = [sys.executable, str(UPDATE), "--side", "ours", "--folder", scratch, "--steps", str(steps + 1)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
    return float(np.median(json.loads(Path(scratch, "ours.json").read_text())["seconds"][1:]))


def fixed_work() -> float:
    """Seconds until as many processes as cores have each done the same work."""
    started = time.perf_counter()
    workers = [subprocess.Popen([sys.executable, "-c", WORK]) for _ in range(os.cpu_count() or 1)]
    for worker in workers:
        worker.wait()
    return time.perf_counter() - started


@contextmanager
def busy(loops: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
