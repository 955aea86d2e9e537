"""Kill a short run at random moments: is anything left running, and does it continue bit for bit?

    python benchmarks/faults/kills.py [--engine vllm] [--repeats 20] [--jobs 2] [--output docs/results/kills.md]

Sends SIGKILL, SIGTERM and SIGINT to the launcher (`grpo train`), the trainer and a reward worker of a run on a tiny
random DeepSeek-V3. A third of the moments fall into the start, the others between two random steps. Every process of a
run is recognised by a variable in its environment. Afterwards the run continues with
`trainer.resume_from_checkpoint=true`, unless it has ended well, and its metrics and final weights must equal an
uninterrupted run's.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from grpo.report.records import METRICS_FILE, Row, deterministic, read_rows

ROOT = Path(__file__).parents[2]
MARK = "GRPO_KILLS_RUN"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
RUN = uuid.uuid4().hex
STEPS = 6
GRACE = 2.0  # seconds after the launcher's end in which the other processes may end
Target = Literal["launcher", "trainer", "worker"]
TARGETS: tuple[Target, ...] = ("launcher", "trainer", "worker")
# The reward differs among the completions of nearly every group, so that every step changes the weights.
RECIPE = f"""
stage: grpo
model: {{model_name_or_path: ./model}}
data: {{task: countdown, template: "{{prompt}} :", max_prompt_length: 32}}
rollout: {{engine: ENGINE, problems_per_step: 4, num_generations: 4, max_completion_length: 16, kv_cache_gib: 0.1}}
rewards: [{{function: ./reward.py:digits}}]
trainer: {{max_steps: {STEPS}, save_steps: 2, learning_rate: 1.0e-3}}
evaluation: {{num_problems: 4, num_samples: 2, eval_steps: 3}}
"""
REWARD = """
def digits(completions, **kwargs):
    return [float(sum(character.isdigit() for character in text)) for text in completions]
"""


@dataclass(frozen=True, slots=True)
class Case:
    """Case("SIGTERM-trainer-3", SIGTERM, "trainer", step=2, fraction=0.4)"""

    name: str
    signal: signal.Signals
    target: Target
    step: int  # wait for this step in the metrics; 0: for nothing
    fraction: float  # then for this fraction of the time to the next step in an uninterrupted run


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome(case, seconds=4.2, step=3, code=143, left=0, equal=True)"""

    case: Case
    seconds: float  # from start to signal
    step: int  # in the metrics when the signal was sent
    code: int  # of the launcher, as a shell shows it
    left: int  # processes still running GRACE seconds after the launcher's end
    equal: bool  # the continued run's metrics and weights are those of an uninterrupted one


@dataclass(frozen=True, slots=True)
class Whole:
    """The uninterrupted run."""

    rows: list[Row]
    weights: str
    times: list[float]  # seconds from the start to each step's row, from step 0 (the start itself) to the process's end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("hf", "vllm"), default="hf")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the table here too")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it, and its children
    command = (
        f"python benchmarks/faults/kills.py --engine {options.engine} --repeats {options.repeats} --seed {options.seed}"
    )
    outcomes: list[Outcome] = []
    cases = draw(options.repeats, random.Random(options.seed))
    with tempfile.TemporaryDirectory(prefix="kills-") as name, ThreadPoolExecutor(options.jobs) as pool:
        folder = Path(name)
        make_model(folder / "model")
        (folder / "reward.py").write_text(REWARD)
        (folder / "recipe.yaml").write_text(RECIPE.replace("ENGINE", options.engine))
        whole, *_ = pool.map(lambda number: run_whole(folder, f"whole-{number}"), range(options.jobs))
        print(f"the uninterrupted run took {whole.times[-1]:.0f} s", file=sys.stderr)
        for outcome in pool.map(lambda case: kill(folder, case, whole), cases):
            outcomes.append(outcome)
            if options.output:
                options.output.write_text(f"# Killed runs\n\n`{command}`\n\n{render(outcomes)}\n")
    print(render(outcomes))
    sys.exit(any(outcome.left or not outcome.equal for outcome in outcomes))


def draw(repeats: int, moments: random.Random) -> list[Case]:
    return [
        Case(
            f"{number.name}-{target}-{repeat}",
            number,
            target,
            step=0 if moments.random() < 1 / 3 else moments.randint(1, STEPS),
            fraction=moments.random(),
        )
        for repeat in range(repeats)
        for number in SIGNALS
        for target in TARGETS
    ]


def run_whole(folder: Path, name: str) -> Whole:
    started = time.monotonic()
    process = start(folder, name)
    times = [0.0]
    for step in range(1, STEPS + 1):
        wait_for(folder, name, step, process)
        times.append(time.monotonic() - started)
    assert process.wait() == 0, (folder / f"{name}.log").read_text()
    return Whole(rows(folder, name), weights(folder, name), [*times, time.monotonic() - started])


def kill(folder: Path, case: Case, whole: Whole) -> Outcome:
    name, started = case.name, time.monotonic()
    process = start(folder, name)
    wait_for(folder, name, case.step, process)
    time.sleep(case.fraction * (whole.times[case.step + 1] - whole.times[case.step]))
    while (target := find(process.pid, case.target)) is None and process.poll() is None:
        time.sleep(0.02)
    seconds, step = time.monotonic() - started, logged(folder, name)
    if target is not None:
        with suppress(psutil.NoSuchProcess):
            target.send_signal(case.signal)
    code = process.wait(timeout=3600)
    time.sleep(GRACE)
    left = marked(name)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    finished = code == 0 or start(folder, name, "trainer.resume_from_checkpoint=true").wait(timeout=3600) == 0
    equal = finished and rows(folder, name) == whole.rows and weights(folder, name) == whole.weights
    outcome = Outcome(case, seconds, step, code if code >= 0 else 128 - code, len(left), equal)
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


def wait_for(folder: Path, name: str, step: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until this step is in the metrics, or the process ended."""
    while logged(folder, name) < step and process.poll() is None:
        time.sleep(0.01)


def logged(folder: Path, name: str) -> int:
    return max((row["step"] for row in read_rows(folder / name / METRICS_FILE)), default=0)


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


def find(launcher: int, target: Target) -> psutil.Process | None:
    """The target process; None if it has not started yet."""
    try:
        process = psutil.Process(launcher)
        if target == "launcher":
            return process
        trainers = process.children()
        if target == "trainer":
            return trainers[0] if trainers else None
        return next((worker for trainer in trainers for worker in trainer.children()), None)
    except psutil.Error:
        return None


def rows(folder: Path, name: str) -> list[Row]:
    return [deterministic(row) for row in read_rows(folder / name / METRICS_FILE)]


def weights(folder: Path, name: str) -> str:
    """A hash of the last checkpoint's weights."""
    file = folder / name / f"checkpoint-{STEPS}" / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "no checkpoint"


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
            group = [outcome for outcome in outcomes if (outcome.case.signal, outcome.case.target) == (number, target)]
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
