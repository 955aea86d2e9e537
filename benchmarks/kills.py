"""Kill a short run at random moments: is anything left running, and does it continue bit for bit?

    python benchmarks/kills.py [--engine vllm] [--repeats 3] [--output docs/results/kills.md]

Sends SIGKILL, SIGTERM and SIGINT to the launcher (`grpo train`), the trainer and a reward worker of a run on a tiny
random DeepSeek-V3. Every process of a run is recognised by a variable in its environment. Afterwards the run continues
with `trainer.resume_from_checkpoint=true`, and its metrics must equal an uninterrupted run's.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from grpo.report.records import METRICS_FILE, Row, deterministic, read_rows

ROOT = Path(__file__).parents[1]
MARK = "GRPO_KILLS_RUN"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
RUN = uuid.uuid4().hex
Target = Literal["launcher", "trainer", "worker"]
TARGETS: tuple[Target, ...] = ("launcher", "trainer", "worker")
RECIPE = """
stage: grpo
model: {model_name_or_path: ./model}
data: {task: countdown, template: "{prompt} :", max_prompt_length: 32}
rollout: {engine: ENGINE, problems_per_step: 4, num_generations: 4, max_completion_length: 24, kv_cache_gib: 0.1}
rewards:
  - {function: countdown}
  - {function: soft_overlong_punishment, options: {max_completion_len: 24, soft_punish_cache: 20}}
trainer: {max_steps: 8, save_steps: 2, learning_rate: 1.0e-3}
evaluation: {num_problems: 8, num_samples: 2, eval_steps: 4}
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome(SIGTERM, "trainer", seconds=4.2, step=3, code=143, left=0, equal=True)"""

    signal: signal.Signals
    target: Target
    seconds: float  # from start to signal
    step: int  # logged when the signal was sent
    code: int  # of the launcher, as a shell shows it
    left: int  # processes still running 3 s after the launcher's end
    equal: bool  # the continued run's metrics are those of an uninterrupted one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("hf", "vllm"), default="hf")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the table here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        outcomes = list(run(Path(folder), options.engine, options.repeats, random.Random(options.seed)))
    table = render(outcomes)
    print(table)
    if options.output:
        command = f"python benchmarks/kills.py --engine {options.engine} --repeats {options.repeats}"
        options.output.write_text(f"# Killed runs\n\n`{command}`\n\n{table}\n")
    sys.exit(any(outcome.left or not outcome.equal for outcome in outcomes))


def run(folder: Path, engine: str, repeats: int, moments: random.Random) -> Iterator[Outcome]:
    make_model(folder / "model")
    (folder / "recipe.yaml").write_text(RECIPE.replace("ENGINE", engine))
    started = time.monotonic()
    whole = start(folder, "whole")
    assert whole.wait() == 0, (folder / "whole.log").read_text()
    duration = time.monotonic() - started
    expected = rows(folder, "whole")
    print(f"the uninterrupted run took {duration:.0f} s", file=sys.stderr)
    for number in SIGNALS:
        for target in TARGETS:
            for repeat in range(repeats):
                name = f"{number.name}-{target}-{repeat}"
                yield kill(folder, name, number, target, moments.uniform(0.1, 0.95) * duration, expected)


def kill(folder: Path, name: str, number: signal.Signals, target: Target, at: float, expected: list[Row]) -> Outcome:
    started = time.monotonic()
    process = start(folder, name)
    time.sleep(at)
    while (pid := find(process.pid, target)) is None and process.poll() is None:
        time.sleep(0.05)
    seconds, step = time.monotonic() - started, max((row["step"] for row in rows(folder, name)), default=0)
    if pid is not None and psutil.pid_exists(pid):
        os.kill(pid, number)
    code = process.wait(timeout=300)
    time.sleep(3)
    left = marked(name)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    again = start(folder, name, "trainer.resume_from_checkpoint=true")
    equal = again.wait(timeout=600) == 0 and rows(folder, name) == expected
    outcome = Outcome(number, target, seconds, step, code if code >= 0 else 128 - code, len(left), equal)
    print(outcome, file=sys.stderr)
    if not equal or left:
        print((folder / f"{name}.log").read_text(), file=sys.stderr)
    return outcome


def start(folder: Path, name: str, *overrides: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "grpo", "train", "--num_processes", "1", "recipe.yaml"]
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [*command, f"trainer.output_dir={name}", *overrides],
            cwd=folder,
            env={**os.environ, MARK: name + RUN, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )


def marked(name: str) -> list[int]:
    """The running processes of a run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == name + RUN and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def find(launcher: int, target: Target) -> int | None:
    """The target's process id; None if it has not started yet."""
    try:
        trainers = psutil.Process(launcher).children()
        if target == "launcher":
            return launcher
        if target == "trainer":
            return trainers[0].pid if trainers else None
        return next((worker.pid for trainer in trainers for worker in trainer.children()), None)
    except psutil.Error:
        return None


def rows(folder: Path, name: str) -> list[Row]:
    return [deterministic(row) for row in read_rows(folder / name / METRICS_FILE)]


def make_model(folder: Path) -> None:
    """The embedded base's architecture with random weights, 0.2M parameters, and its tokenizer."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 32, "num_hidden_layers": 2}
    config = AutoConfig.from_pretrained(ROOT / "recipes/v3_base", **shape)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    AutoTokenizer.from_pretrained(ROOT / "recipes/v3_base").save_pretrained(folder)


def render(outcomes: list[Outcome]) -> str:
    lines = ["| signal | to | sent at (s) | at step | exit codes | left running | continued bit for bit |"]
    lines.append("|---|---|---|---|---|---|---|")
    for number in SIGNALS:
        for target in TARGETS:
            group = [outcome for outcome in outcomes if (outcome.signal, outcome.target) == (number, target)]
            cells = [
                number.name,
                target,
                ", ".join(f"{outcome.seconds:.0f}" for outcome in group),
                ", ".join(str(outcome.step) for outcome in group),
                ", ".join(str(outcome.code) for outcome in group),
                str(sum(outcome.left for outcome in group)),
                f"{sum(outcome.equal for outcome in group)} of {len(group)}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
