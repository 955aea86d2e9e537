"""Engines return the experts that their tokens took: those of a plain forward pass, but for near-ties."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from grpo.model.moe import moe_layers, record_routes
from grpo.model.weights import checkpoint_weights
from rollout.engines.build import build_engine
from rollout.types import Group, Sampling
from tests.rollout.engines.agreement import load, make_prompts

SETTINGS: dict[str, Any] = {
    "dtype": "float32",
    "device": "cpu",
    "max_model_len": 64,
    "max_num_seqs": 6,  # fewer than completions: some wait
    "kv_cache_gib": 0.05,
    "gpu_memory_utilization": 0.1,
    "vllm_options": {},
}


@torch.no_grad()
def routes_of(model: PreTrainedModel, token_ids: list[int]) -> np.ndarray:
    with record_routes(model) as routes:
        model(torch.tensor([token_ids]))
    return routes.compact()


def check(groups: list[Group], model: PreTrainedModel) -> None:
    differ = []
    for group in groups:
        for completion in group.completions:
            expected = routes_of(model, [*group.prompt_ids, *completion.token_ids])[:-1]
            assert completion.routes is not None and completion.routes.dtype == np.uint8
            assert completion.routes.shape == expected.shape
            differ.append((np.sort(completion.routes, -1) != np.sort(expected, -1)).any(-1).mean())
    assert np.mean(differ) < 0.005


@pytest.mark.parametrize("name", ["hf", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_routes_are_those_of_a_plain_forward_pass(tiny_v3: Path, name: str) -> None:
    """Prompts and completions of different lengths, some with a common beginning; again after new weights."""
    if name == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed")
    engine: Any = build_engine(name, str(tiny_v3), **SETTINGS, return_routes=True)
    model = load(tiny_v3)
    prompts = make_prompts(4, prefix=range(20))
    check(list(engine.generate(prompts, Sampling(num_generations=3, max_completion_length=12))), model)
    for block in moe_layers(model).values():
        block.gate.e_score_correction_bias.copy_(torch.linspace(-1, 1, 8))
    engine.publish(checkpoint_weights(model), 1)
    check(list(engine.generate(prompts, Sampling(num_generations=1, max_completion_length=12, temperature=0))), model)
    engine.close()
