"""Peak memory of filtering and selecting 10^5 and 10^6 generated samples, each in a process of its own.

    python benchmarks/rejection_memory.py [SAMPLES ...]

Texts are random words, so no engine runs. Every part that grows with the number of samples does: candidates on disk,
filters, selection, the dataset.
"""

import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from grpo.recipe.stages.rejection import RejectionRecipe
from grpo.stages.rejection.candidates import FOLDER, Candidate, Candidates
from grpo.stages.rejection.dataset import write_dataset

SIZES = (100_000, 1_000_000)
GENERATIONS, PROBLEMS_PER_BATCH = 16, 64
WORDS = [f"word{i}" for i in range(2000)]
RECIPE = {
    "stage": "rejection",
    "model": {"model_name_or_path": "generated"},
    "data": {"task": "countdown"},
    "rewards": [{"function": "accuracy"}, {"function": "language"}],
    "filters": [
        {"name": "finished"},
        {"name": "correct", "reward": "accuracy"},
        {"name": "reward", "reward": "language", "min": 0.1},
        {"name": "paragraph_length", "max_words": 200},
        {"name": "code_blocks"},
        {"name": "repetition"},
    ],
    "select": {"max_per_problem": 8, "max_per_source": 100_000},
}


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        measure(int(sys.argv[2]))
        return
    print(f"{'samples':>9} {'kept':>8} {'candidates, MB':>15} {'peak RSS, MB':>13} {'at start, MB':>13} {'seconds':>8}")
    for size in map(int, sys.argv[1:] or SIZES):
        subprocess.run([sys.executable, __file__, "--one", str(size)], check=True)


def measure(size: int) -> None:
    before = peak_mb()
    with TemporaryDirectory() as folder:
        recipe = RejectionRecipe.model_validate(RECIPE | {"output": folder})
        candidates = Candidates(Path(folder) / FOLDER)
        for first in range(0, size, GENERATIONS * PROBLEMS_PER_BATCH):
            count = min(GENERATIONS * PROBLEMS_PER_BATCH, size - first)
            candidates.write([sample(first + i) for i in range(count)], ["accuracy", "language"], state={})
        start = time.perf_counter()
        kept = write_dataset(recipe).kept
        seconds = time.perf_counter() - start
        on_disk = sum(path.stat().st_size for path in candidates.files) / 1e6
    print(f"{size:>9} {kept:>8} {on_disk:>15.0f} {peak_mb():>13.0f} {before:>13.0f} {seconds:>8.0f}", flush=True)


def sample(index: int) -> Candidate:
    rng = random.Random(index)
    return {
        "prompt": f"question {index // GENERATIONS}",
        "completion": " ".join(rng.choices(WORDS, k=100)),  # about 700 characters
        "data_source": f"source {index // GENERATIONS % 5}",
        "problem_id": f"generated/train/{index // GENERATIONS}",
        "sample": index % GENERATIONS,
        "num_tokens": rng.randrange(50, 400),
        "finished": rng.random() < 0.95,
        "rewards/accuracy": float(rng.random() < 0.7),
        "rewards/language": rng.random(),
    }


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
