"""What `grpo plan` says a trainer holds on CPU, against what it holds: docs/scale.md.

    python benchmarks/memory/plan_memory.py [--processes 1 2 4] [--give-back] recipes/r1_zero.yaml [section.key=value …]

In each of so many processes over gloo, the recipe's model takes two optimizer steps on one full micro-batch of
full-length samples. `measured` is the peak of resident memory above what was held before the model, in the process that
holds most; `plan` is the sum of `grpo plan`'s parts without the engine's, which are reserved as stated. glibc's
malloc keeps some of what is freed; with `--give-back`, freed blocks above 64 KiB go back at once.
"""

import argparse
import gc
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.state import PartialState
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, set_seed

from grpo.algorithm.loss import LossOutput
from grpo.estimate.layout.gpus import cpu
from grpo.estimate.layout.layout import lay_out
from grpo.estimate.models import Models
from grpo.estimate.work import micro_batch
from grpo.launch.processes import keep_freed_memory
from grpo.learner.batch import Sample
from grpo.learner.policy import Policy
from grpo.learner.scoring import Batching
from grpo.model.load import load_model
from grpo.recipe.config import OnPolicyRecipe
from grpo.recipe.load import load_recipe
from grpo.stages import parts
from grpo.stages.mesh import process_mesh

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--give-back", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_intermixed_args()
    if given.one:
        measure(given.recipe, given.overrides)
        return
    returned = {"MALLOC_MMAP_THRESHOLD_": "65536"} if given.give_back else {}
    print("processes  plan  measured (MiB)  plan is above by", flush=True)
    for count in given.processes:
        # One process without a launcher, which would set up a process group.
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)] if count > 1 else []
        command = [sys.executable, *launcher, __file__, "--one", given.recipe, *given.overrides]
        subprocess.run(command, env=os.environ | returned, check=True)


def measure(path: str, overrides: Sequence[str]) -> None:
    torch.set_num_threads(1)
    PartialState(cpu=True)
    recipe = load_recipe(path, overrides)
    assert isinstance(recipe, OnPolicyRecipe)
    accelerator = parts.accelerator(recipe.model)
    keep_freed_memory()  # as grpo/stages/run.py does
    processes = accelerator.num_processes
    planned = lay_out(recipe, Models(), cpu(processes, 64 * 2**30, 1e11, processes), processes).on_trainer
    plan = sum(size for part, size in planned.items() if not part.startswith("engine"))
    set_seed(0)
    rows, length = micro_batch(recipe)
    two_steps(small_model(), recipe, accelerator, 1, 16)  # what libraries take at their first use
    gc.collect()
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    two_steps(
        load_model(recipe.model, mesh=process_mesh(recipe.trainer, accelerator)), recipe, accelerator, rows, length
    )
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    measured: Any = accelerator.gather(torch.tensor([int(peak.split()[1]) * 1024 - before])).max().item()
    accelerator.print(f"{processes}  {plan / MIB:.0f}  {measured / MIB:.0f}  {plan / measured - 1:+.1%}", flush=True)
    if accelerator.is_main_process:
        print("   " + ", ".join(f"{part} {size / MIB:.0f}" for part, size in planned.items()), flush=True)


def small_model() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config)


def two_steps(model: PreTrainedModel, recipe: OnPolicyRecipe, accelerator: Any, rows: int, length: int) -> None:
    if recipe.trainer.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = Policy(
        model,
        recipe.trainer,
        accelerator,
        max_steps=10,
        temperature=1.0,
        batching=Batching(max_tokens=rows * length, pad_token_id=0, packed=False),
        mesh=process_mesh(recipe.trainer, accelerator),
    )
    prompt = min(8, length // 2)
    samples = [
        Sample(
            problem_id=str(i),
            prompt_ids=torch.randint(3, 60, (prompt,)).tolist(),
            completion_ids=torch.randint(3, 60, (length - prompt,)).tolist(),
            mini_batch=0,
            sampling_logprobs=0.0,
            advantages=1.0,
            token_weights=0.01,
        )
        for i in range(rows)
    ]
    for _ in range(2):
        policy.update(
            samples, lambda logprobs, _entropy, batch: LossOutput(-(logprobs * batch.token_weights).sum(), {})
        )


if __name__ == "__main__":
    main()
