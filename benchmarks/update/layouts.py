"""What the layout of a micro-batch costs: padded rows, one packed row, one row with shared prompts.

    python benchmarks/update/layouts.py [--steps 3]

Seconds of an update (forward, backward, optimizer step) on the embedded base with groups of 16: as in r1_zero, with
prompts of 12 tokens, and with long ones. One run, the same samples, weights and gradients in all layouts.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
from accelerate import Accelerator

from grpo.launch.processes import keep_freed_memory
from grpo.learner.batch import Sample
from grpo.learner.objective import loss_function
from grpo.learner.policy import Policy
from grpo.learner.scoring import Batching
from grpo.model.load import load_model
from grpo.recipe.config import AlgorithmConfig, ModelConfig
from grpo.recipe.optimizer import OptimizerConfig

BASE = Path(__file__).parents[2] / "recipes/v3_base"
SIZE = 16
SHAPES = {  # groups, prompt, mean and longest completion
    "r1_zero": (32, 12, 50, 144),
    "long prompts": (8, 256, 64, 144),
}


def samples(groups: int, prompt: int, mean: int, longest: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    found = []
    for group in range(groups):
        prompt_ids = rng.integers(3, 500, prompt).tolist()
        for length in np.clip(rng.lognormal(np.log(mean) - 0.1, 0.45, SIZE), 4, longest).astype(int):
            found.append(
                Sample(
                    problem_id=str(group),
                    prompt_ids=prompt_ids,
                    completion_ids=rng.integers(3, 500, length).tolist(),
                    mini_batch=0,
                    sampling_logprobs=0.0,
                    advantages=float(rng.normal()),
                    token_weights=1e-4,
                )
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    keep_freed_memory()  # as grpo/stages/run.py does
    accelerator = Accelerator()
    for name, shape in SHAPES.items():
        batch = samples(*shape)
        unshared = sum(sample.length for sample in batch)
        shared = sum(len(sample.completion_ids) for sample in batch) + shape[0] * shape[1]
        print(f"{name}: {len(batch)} samples of {shape[1]} + {shape[2]} tokens, {unshared:,}; shared {shared:,}")
        times = {}
        for layout in ("padded", "packed", "shared"):
            policy = Policy(
                load_model(ModelConfig(model_name_or_path=str(BASE))),
                OptimizerConfig(learning_rate=1e-6),
                accelerator,
                max_steps=9,
                temperature=1.0,
                batching=Batching(8192, pad_token_id=0),
            )
            policy.batching = replace(policy.batching, packed=layout != "padded", shared=layout == "shared")
            seconds = []
            for _ in range(options.steps + 1):
                started = time.perf_counter()
                policy.update(batch, loss_function(AlgorithmConfig()))
                seconds.append(time.perf_counter() - started)
            times[layout] = median(seconds[1:])  # the first one warms up
            print(f"  {layout:8} {times[layout]:6.2f} s  {times['padded'] / times[layout]:.2f}x")


if __name__ == "__main__":
    main()
