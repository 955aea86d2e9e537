"""Tiny models shared by all tests: a DeepSeek-V3-style MoE and a dense Llama, float32, with a byte tokenizer.

Their weights are random, with a variance large enough that a wrong rotary embedding, a swapped expert or a forgotten
bias moves the log-probs far beyond rounding error.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # of the runs that tests start, several at a time

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DeepseekV4Config,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

if TYPE_CHECKING:
    from rollout.engines.vllm import VLLMEngine

torch.set_num_threads(1)  # faster for models this small, especially on a busy machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, so that no process is left with one when the others have nothing more to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


TAGS = ["<think>", "</think>", "<answer>", "</answer>"]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte (ids 0-255), then <bos> 256, <eos> 257, <pad> 258 and the four tags 259-262."""
    vocab = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<eos>", "<pad>"])
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def tiny_v3_config() -> DeepseekV3Config:
    """MLA, layer 0 dense, then 8 routed experts (top-2, from 1 of 2 groups) and 1 shared expert: 0.2M parameters."""
    return DeepseekV3Config(
        vocab_size=263,
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=32,
        num_hidden_layers=3,
        first_k_dense_replace=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_nope_head_dim=24,  # 32 with the rotary part: vLLM's CPU attention only supports 32, 64, 80, 96, …
        qk_rope_head_dim=8,
        v_head_dim=16,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        routed_scaling_factor=2.5,
        norm_topk_prob=True,
        max_position_embeddings=512,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
        # transformers ignores these two; vLLM routes by them, and the official checkpoint has them
        topk_method="noaux_tc",
        scoring_func="sigmoid",
    )


def tiny_v4_config(compressed: int = 4) -> DeepseekV4Config:
    """Two layers with 4 experts, of which the first attends to windows of so many positions, compressed."""
    return DeepseekV4Config(
        vocab_size=263,
        hidden_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        compress_ratios=[compressed, 0],
        num_attention_heads=2,
        head_dim=16,
        qk_rope_head_dim=8,
        q_lora_rank=16,
        o_groups=2,
        o_lora_rank=8,
        index_head_dim=16,
        index_n_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        num_hash_layers=0,
        hc_mult=2,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
    )


def tiny_llama_config() -> LlamaConfig:
    """Dense, grouped-query attention, tied embeddings: 0.1M parameters."""
    return LlamaConfig(
        vocab_size=263,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
    )


def sharpen(model: PreTrainedModel, seed: int) -> None:
    """Redraw every weight with high variance: matrices N(0, 1.5/fan_in), norms around 1, gate biases around 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            if "norm" in name:
                tensor.copy_(1 + 0.1 * noise)
            elif "e_score_correction_bias" in name:
                tensor.copy_(0.1 * noise)
            elif "embed_tokens" in name:
                tensor.copy_(0.3 * noise)
            else:
                tensor.copy_(noise * (1.5 / tensor.shape[-1]) ** 0.5)


def save_tiny(model: PreTrainedModel, folder: Path) -> Path:
    sharpen(model, seed=0)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_v3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a random DeepseekV3ForCausalLM and its tokenizer."""
    return save_tiny(DeepseekV3ForCausalLM(tiny_v3_config()), tmp_path_factory.mktemp("models") / "tiny_v3")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a random LlamaForCausalLM and the same tokenizer."""
    return save_tiny(LlamaForCausalLM(tiny_llama_config()), tmp_path_factory.mktemp("models") / "tiny_llama")


@pytest.fixture(scope="session")
def vllm_v3(tiny_v3: Path) -> Iterator["VLLMEngine"]:
    """One engine for all tests, because starting one takes seconds; each test loads the weights it needs."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from rollout.engines.vllm import VLLMEngine

    limits = {"max_model_len": 256, "max_num_seqs": 64, "kv_cache_gib": 0.1, "gpu_memory_utilization": 0.1}
    engine = VLLMEngine(str(tiny_v3), dtype="float32", return_kept=True, **limits)
    yield engine
    engine.close()
