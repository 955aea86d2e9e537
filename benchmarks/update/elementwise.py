"""The most that torch.compile could save of an update on CPU: the share of its elementwise parts.

    python benchmarks/update/elementwise.py

Forward and backward of each part, as often as an update of 128 samples on the embedded base runs it and on its sizes,
against the whole update, on one thread. CPU time, so that programs beside it matter less. The rest of an update is
matrix products and attention, which a compiler leaves to the same libraries, and the host's work around them.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

from grpo.learner.batch import Sample
from grpo.learner.objective import loss_function
from grpo.learner.policy import Policy
from grpo.learner.scoring import Batching
from grpo.model.load import load_model
from grpo.recipe.config import AlgorithmConfig, ModelConfig
from grpo.recipe.optimizer import OptimizerConfig

BASE = Path(__file__).parents[2] / "recipes/v3_base"
GROUPS, SIZE, PROMPT = 8, 16, 12
Part = Callable[..., Tensor]


def draw() -> list[Sample]:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(50) - 0.1, 0.45, GROUPS * SIZE), 4, 144).astype(int)
    return [
        Sample(
            problem_id=str(i // SIZE),
            prompt_ids=[3 + i // SIZE] * PROMPT,
            completion_ids=rng.integers(3, 60, length).tolist(),
            mini_batch=0,
            sampling_logprobs=-3.0,
            advantages=float(rng.normal()),
            token_weights=1e-4,
        )
        for i, length in enumerate(lengths)
    ]


def update_seconds(model: Any, samples: list[Sample], repeats: int) -> float:
    optimizer = OptimizerConfig(learning_rate=1e-9)
    batching = Batching(8192, pad_token_id=0)
    policy = Policy(model, optimizer, Accelerator(cpu=True), max_steps=99, temperature=1.0, batching=batching)
    found = []
    for _ in range(repeats + 1):
        started = time.process_time()
        policy.update(samples, loss_function(AlgorithmConfig()))
        found.append(time.process_time() - started)
    return float(np.median(found[1:]))


def norm(x: Tensor, weight: Tensor) -> Tensor:
    """As DeepseekV3RMSNorm."""
    h = x.float()
    return weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    q, k = v3.apply_rotary_pos_emb_interleave(q, k, cos, sin)
    return torch.cat([q.flatten(), k.flatten()])


def gate(gate: Tensor, up: Tensor) -> Tensor:
    return torch.nn.functional.silu(gate) * up


def surrogate(logprobs: Tensor, old: Tensor, advantages: Tensor, weights: Tensor) -> Tensor:
    """The clipped objective, without its metrics."""
    ratio = (logprobs - old).exp()
    return (-torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages) * weights).sum()


def parts(config: Any, tokens: int, trained: int) -> dict[str, list[tuple[Part, int, list[Tensor]]]]:
    """Name -> (function, calls in an update, arguments)."""
    layers, moe = config.num_hidden_layers, config.num_hidden_layers - config.first_k_dense_replace
    heads = config.num_attention_heads

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, requires_grad=True)

    def normed(width: int, count: int) -> tuple[Part, int, list[Tensor]]:
        return norm, count, [drawn(1, tokens, width), drawn(width)]

    rotary = config.qk_rope_head_dim
    angles = [torch.randn(1, tokens, rotary) for _ in range(2)]
    latents = [(width, layers) for width in (config.q_lora_rank, config.kv_lora_rank) if width]
    return {
        "norms": [normed(width, count) for width, count in [(config.hidden_size, 2 * layers + 1), *latents]],
        "rope": [(rope, layers, [drawn(1, heads, tokens, rotary), drawn(1, 1, tokens, rotary), *angles])],
        "gates": [
            (gate, count, [drawn(n, width), drawn(n, width)])
            for n, width, count in (
                (tokens, config.intermediate_size, layers - moe),
                (tokens, config.moe_intermediate_size * config.n_shared_experts, moe),
                (tokens * config.num_experts_per_tok, config.moe_intermediate_size, moe),
            )
        ],
        "loss": [(surrogate, 1, [drawn(trained), *(torch.randn(trained) for _ in range(3))])],
    }


def seconds(function: Part, count: int, arguments: list[Tensor]) -> float:
    """CPU time of so many calls, forward and backward."""
    started = time.process_time()
    for _ in range(count):
        output = function(*arguments)
        output.backward(torch.ones_like(output))
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, samples = load_model(ModelConfig(model_name_or_path=str(BASE))), draw()
    trained = sum(len(sample.completion_ids) for sample in samples)
    tokens = trained + GROUPS * PROMPT  # a prompt once
    whole = update_seconds(model, samples, options.turns)
    print(f"an update of {len(samples)} samples, {tokens:,} tokens: {whole:.3f} s of CPU time", flush=True)
    for name, calls in parts(model.config, tokens, trained).items():
        plain = float(np.median([sum(seconds(*call) for call in calls) for _ in range(options.turns)]))
        print(f"{name:6} {plain / whole:6.2%}", flush=True)


if __name__ == "__main__":
    main()
