"""Memory per process of a policy sharded by FSDP2 over 1 to 4 processes, on CPU over gloo: docs/scale.md.

    python benchmarks/sharding_memory.py [PROCESSES ...]

A random DeepSeek-V3-style MoE is read from a folder, takes two optimizer steps and sends its weights once. Tensors are
counted by their bytes in this process; `loaded` and `resident` are what the process holds alone (USS) after reading and
at the end, above what it held before, in the process that holds most.

    python benchmarks/sharding_memory.py --keep-freed [PROCESSES ...]

glibc's malloc keeps what is freed once blocks of up to 32 MiB have been. Here, blocks above 1 MiB go back at once;
`--keep-freed` leaves glibc its way.
"""

import gc
import os
import subprocess
import sys
import tempfile
from typing import Any

import psutil
import torch
from accelerate.state import PartialState
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, set_seed

from grpo.algorithm.loss import LossOutput
from grpo.learner.batch import Sample
from grpo.learner.policy import Policy
from grpo.learner.scoring import Batching
from grpo.model.load import load_model
from grpo.model.sharding import local
from grpo.recipe.config import ModelConfig, TrainerConfig
from grpo.stages import parts
from grpo.stages.mesh import process_mesh

CONFIG = DeepseekV3Config(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=1536,
    moe_intermediate_size=256,
    num_hidden_layers=4,
    first_k_dense_replace=1,
    num_attention_heads=8,
    num_key_value_heads=8,
    q_lora_rank=128,
    kv_lora_rank=128,
    qk_nope_head_dim=32,
    qk_rope_head_dim=32,
    v_head_dim=64,
    n_routed_experts=16,
    n_shared_experts=1,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
)
MIB = 2**20


def main() -> None:
    words = sys.argv[1:]
    if words[:1] == ["--one"]:
        measure(words[1])
        return
    returned = {} if "--keep-freed" in words else {"MALLOC_MMAP_THRESHOLD_": str(MIB)}
    with tempfile.TemporaryDirectory() as folder:
        set_seed(0)
        DeepseekV3ForCausalLM(CONFIG).save_pretrained(folder)
        print("processes  weights  gradients  AdamW  sum  loaded  resident (MiB)", flush=True)
        for count in [word for word in words if word.isdecimal()] or ["1", "2", "3", "4"]:
            # One process without a launcher: accelerate would wrap it in DDP, which keeps the gradient twice.
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", count]
            command = [sys.executable, *(launcher if count != "1" else []), __file__, "--one", folder]
            subprocess.run(command, env=os.environ | returned, check=True)


def measure(folder: str) -> None:
    torch.set_num_threads(1)
    PartialState(cpu=True)
    section = ModelConfig(model_name_or_path=folder)
    accelerator = parts.accelerator(section)
    trainer = TrainerConfig(sharding="fsdp2", gradient_checkpointing=True)
    mesh = process_mesh(trainer, accelerator)
    before = own_memory()
    model = load_model(section, mesh=mesh)
    loaded = own_memory() - before
    model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = Policy(
        model,
        trainer,
        accelerator,
        max_steps=10,
        temperature=1.0,
        batching=Batching(max_tokens=64, pad_token_id=0),
        mesh=mesh,
    )
    samples = [
        Sample(
            problem_id=str(i),
            prompt_ids=[5] * 8,
            completion_ids=[7 + i] * 24,
            mini_batch=0,
            sampling_logprobs=0.0,
            advantages=1.0,
            token_weights=0.01,
        )
        for i in range(2)
    ]
    for _ in range(2):
        policy.update(
            samples, lambda logprobs, _entropy, batch: LossOutput(-(logprobs * batch.token_weights).sum(), {})
        )
    for _name, _tensor in policy.weights():
        pass
    resident = own_memory() - before
    weights = list(model.parameters())
    gradients = [p.grad for p in weights if p.grad is not None]
    moments = [tensor for state in policy.optimizer.state.values() for tensor in state.values()]
    sizes = [held(weights), held(gradients), held(moments)]
    largest: Any = accelerator.gather(torch.tensor([[loaded, resident]]))
    line = "  ".join(f"{size / MIB:7.1f}" for size in [*sizes, sum(sizes), *largest.amax(0).tolist()])
    accelerator.print(f"{accelerator.num_processes}  {line}", flush=True)


def own_memory() -> int:
    gc.collect()
    return psutil.Process().memory_full_info().uss


def held(tensors: list[Tensor]) -> int:
    """Bytes of this process's parts."""
    return sum(local(tensor).nbytes for tensor in tensors)


if __name__ == "__main__":
    main()
