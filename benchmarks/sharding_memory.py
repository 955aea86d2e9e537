"""Memory per process of a policy sharded by FSDP2 over 1 to 4 processes, on CPU over gloo: docs/scale.md.

    python benchmarks/sharding_memory.py [PROCESSES ...]

A random DeepSeek-V3-style MoE takes two optimizer steps and sends its weights once. Tensors are counted by their bytes
in this process; `resident` is what the process holds alone (USS) after that, above what it held before the model.
"""

import gc
import subprocess
import sys

import psutil
import torch
from accelerate.state import PartialState
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, set_seed

from grpo.algorithm.loss import LossOutput
from grpo.learner.batch import Sample
from grpo.learner.policy import Policy
from grpo.learner.scoring import Batching
from grpo.model.sharding import local
from grpo.recipe.config import ModelConfig, TrainerConfig
from grpo.stages import parts
from grpo.stages.mesh import process_mesh

CONFIG = DeepseekV3Config(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=1536,
    moe_intermediate_size=256,
    num_hidden_layers=10,
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
    if sys.argv[1:] == ["--one"]:
        measure()
        return
    print("processes  weights  gradients  AdamW  sum  resident, largest (MiB)", flush=True)
    for count in sys.argv[1:] or ["1", "2", "3", "4"]:
        # One process without a launcher: accelerate would wrap it in DDP, which keeps the gradient twice.
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", count] if count != "1" else []
        subprocess.run([sys.executable, *launcher, __file__, "--one"], check=True)


def measure() -> None:
    torch.set_num_threads(1)
    PartialState(cpu=True)
    accelerator = parts.accelerator(ModelConfig(model_name_or_path="random"))
    before = psutil.Process().memory_full_info().uss
    set_seed(0)
    trainer = TrainerConfig(sharding="fsdp2", gradient_checkpointing=True)
    model = DeepseekV3ForCausalLM(CONFIG).float()
    model.set_experts_implementation("grouped_mm")
    policy = Policy(
        model,
        trainer,
        accelerator,
        max_steps=10,
        temperature=1.0,
        batching=Batching(max_tokens=64, pad_token_id=0, packed=False),
        mesh=process_mesh(trainer, accelerator),
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
    gc.collect()
    resident = psutil.Process().memory_full_info().uss - before
    weights = list(model.parameters())
    gradients = [p.grad for p in weights if p.grad is not None]
    moments = [tensor for state in policy.optimizer.state.values() for tensor in state.values()]
    sizes = [held(weights), held(gradients), held(moments)]
    largest: int = max(accelerator.gather(torch.tensor([resident])).tolist())  # type: ignore[union-attr]
    line = "  ".join(f"{size / MIB:7.1f}" for size in [*sizes, sum(sizes), largest])
    accelerator.print(f"{accelerator.num_processes}  {line}", flush=True)


def held(tensors: list[Tensor]) -> int:
    """Bytes of this process's parts."""
    return sum(local(tensor).nbytes for tensor in tensors)


if __name__ == "__main__":
    main()
