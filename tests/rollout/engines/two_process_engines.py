"""Run by test_engines.py in two processes that train together over gloo, each with its own engine."""

import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from grpo.model.weights import checkpoint_weights
from rollout.engines.vllm import VLLMEngine
from rollout.types import Sampling
from tests.rollout.engines.agreement import assert_agrees, load, make_prompts, perturb


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    assert accelerator.num_processes == 2
    engine = VLLMEngine(
        str(folder), dtype="float32", max_model_len=128, max_num_seqs=16, kv_cache_gib=0.05, gpu_memory_utilization=0.1
    )
    assert torch.get_num_threads() == max(1, len(os.sched_getaffinity(0)) // 2)
    sampling = Sampling(num_generations=2, max_completion_length=8 if rank == 0 else 24)
    model = load(folder)
    prompts = make_prompts(2 if rank == 0 else 7)
    assert_agrees(model, list(engine.generate(prompts, sampling)))
    if rank == 1:  # a process can generate while the other does something else
        assert_agrees(model, list(engine.generate(prompts, sampling)))
    perturb(model, "", seed=rank)
    engine.publish(checkpoint_weights(model), 1)
    assert_agrees(model, list(engine.generate(prompts, sampling)))
    engine.close()  # the trainer's process group survives
    accelerator.wait_for_everyone()
    total = accelerator.reduce(torch.tensor(float(rank + 1)), reduction="sum")
    print(f"process {rank}: sum {total.item()}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
