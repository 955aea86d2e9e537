"""Memory of a policy that trains all weights, adapters, or adapters on a base in 4 bits, on CPU: docs/lora.md.

    python benchmarks/memory/adapters.py [float32 | bfloat16]

A random dense model of 49M parameters is read from a folder, takes three optimizer steps and sends its weights thrice.
`weights` to `AdamW` are tensors counted by their bytes; `resident` is what the process holds alone (USS) at the end,
above what it held before. Times are this process's own on one core, the least of the last two rounds.
"""

import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable

import psutil
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from grpo.algorithm.loss import LossOutput
from grpo.learner.batch import Sample
from grpo.learner.policy import Policy
from grpo.learner.scoring import Batching
from grpo.model.adapters import attach_adapters
from grpo.model.load import load_model
from grpo.recipe.config import PolicyConfig, TrainerConfig
from grpo.recipe.loop.lora import LoRAConfig
from grpo.stages import parts

CONFIG = LlamaConfig(
    vocab_size=4096,
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=4,
    num_attention_heads=16,
    num_key_value_heads=4,
    tie_word_embeddings=True,
)
LORA = LoRAConfig(r=16)
KINDS = {"full": {}, "lora": {"lora": LORA}, "qlora": {"lora": LORA, "quantization": "4bit"}}
MIB = 2**20


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        measure(*sys.argv[2:])
        return
    with tempfile.TemporaryDirectory() as folder:
        set_seed(0)
        LlamaForCausalLM(CONFIG).save_pretrained(folder)
        print("       weights  gradients  AdamW  sum  resident (MiB)  update  send (CPU s)", flush=True)
        for kind in KINDS:  # in a process each, and freed memory goes back at once
            command = [sys.executable, __file__, "--one", folder, kind, *sys.argv[1:]]
            subprocess.run(command, env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MIB)}, check=True)


def measure(folder: str, kind: str, dtype: str = "float32") -> None:
    torch.set_num_threads(1)
    section = PolicyConfig.model_validate({"model_name_or_path": folder, "dtype": dtype, **KINDS[kind]})
    accelerator, trainer = parts.accelerator(section), TrainerConfig(gradient_checkpointing=True)
    if section.quantization:
        import bitsandbytes  # noqa: F401  its code is no part of the model
    before = own_memory()
    model = load_model(section)
    if section.lora:
        attach_adapters(model, section.lora)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    batching = Batching(max_tokens=256, pad_token_id=0)
    policy = Policy(model, trainer, accelerator, max_steps=10, temperature=1.0, batching=batching)
    updates, sends = [], []
    for _ in range(3):
        start = time.process_time()
        policy.update(SAMPLES, lambda logprobs, _, batch: LossOutput(-(logprobs * batch.token_weights).sum(), {}))
        sent = time.process_time()
        for _name, _tensor in policy.weights():
            pass
        updates.append(sent - start)
        sends.append(time.process_time() - sent)
    resident = own_memory() - before
    moments = (tensor for state in policy.optimizer.state.values() for tensor in state.values())
    sizes = [held(model.parameters()), held(p.grad for p in model.parameters() if p.grad is not None), held(moments)]
    line = "  ".join(f"{size / MIB:7.1f}" for size in [*sizes, sum(sizes), resident])
    print(f"{kind:5}  {line}  {min(updates[1:]):.2f}  {min(sends[1:]):.2f}", flush=True)


SAMPLES = [
    Sample(
        problem_id=str(i),
        prompt_ids=[5] * 32,
        completion_ids=[7 + i] * 96,
        mini_batch=0,
        sampling_logprobs=0.0,
        advantages=1.0,
        token_weights=0.01,
    )
    for i in range(4)
]


def own_memory() -> int:
    gc.collect()
    return psutil.Process().memory_full_info().uss


def held(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


if __name__ == "__main__":
    main()
