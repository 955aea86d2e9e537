"""Kill a pipeline once in every stage, start it again each time, and compare all results with an uninterrupted run's.

    python benchmarks/faults/pipeline_kills.py tests/grpo/stages/pipeline/r1_small.yaml --output runs/kills

SIGKILL goes to the whole process group, at a random moment of the stage's own duration in the uninterrupted run.
Compared bytewise: weights and tokenizers of models, rows of datasets, results of evaluations.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path

STARTS = re.compile(r"== (.+?): stage (\w+)(, continued)?")
COMPARED = ("*.safetensors", "tokenizer.json", "*.parquet", "results.json", "chunks/*.jsonl")


def start(recipe: Path, output: Path, overrides: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "grpo", "train", str(recipe), f"output={output}", *overrides]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1, start_new_session=True
    )


def uninterrupted(recipe: Path, output: Path, overrides: list[str]) -> dict[str, float]:
    """Seconds per stage."""
    process, begun = start(recipe, output, overrides), dict[str, float]()
    assert process.stdout is not None
    for line in process.stdout:
        if found := STARTS.match(line):
            begun[found[1]] = time.monotonic()
    if process.wait():
        sys.exit(f"the uninterrupted run failed with exit code {process.returncode}")
    ends = [*list(begun.values())[1:], time.monotonic()]
    return {name: end - started for (name, started), end in zip(begun.items(), ends, strict=True)}


def killed(recipe: Path, output: Path, overrides: list[str], seconds: dict[str, float], rng: random.Random) -> None:
    """Run to the end, killing everything once in each stage."""
    waiting = set(seconds)
    while True:
        process = start(recipe, output, overrides)
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            found = STARTS.match(line)
            if found and found[1] in waiting:
                waiting.remove(found[1])
                delay = rng.uniform(0.3, 0.95) * seconds[found[1]]
                threading.Timer(delay, _kill, [process]).start()
                print(f"{found[1]}: killed after {delay:.1f} s of {seconds[found[1]]:.1f}", flush=True)
        code = process.wait()
        if code == 0 and not waiting:
            return
        if code not in (0, -signal.SIGKILL):
            sys.exit(f"exit code {code}:\n" + "".join(lines[-30:]))


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def contents(output: Path) -> dict[str, str]:
    """Hash of every result by its path; checkpoints' own files are results too."""
    files = {path for pattern in COMPARED for path in output.rglob(pattern) if ".previous" not in str(path)}
    return {str(path.relative_to(output)): sha256(path.read_bytes()).hexdigest()[:16] for path in sorted(files)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--output", type=Path, required=True, help="a new folder for both runs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    # Both run in the same folder, since datasets name the model they come from.
    whole, interrupted = options.output / "uninterrupted", options.output / "run"
    seconds = uninterrupted(options.recipe, interrupted, options.overrides)
    interrupted.rename(whole)
    print(f"uninterrupted: {len(seconds)} stages in {sum(seconds.values()):.0f} s", flush=True)
    killed(options.recipe, interrupted, options.overrides, seconds, random.Random(options.seed))
    before, after = contents(whole), contents(interrupted)
    different = sorted(name for name in before | after if before.get(name) != after.get(name))
    for name in different:
        print(f"  {name}: {before.get(name, 'missing')} and {after.get(name, 'missing')}")
    print(f"{len(before)} files compared, {len(different)} different")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
