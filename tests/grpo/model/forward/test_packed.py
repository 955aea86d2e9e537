"""Packed rows: nothing that a sample's tokens compute depends on what lies beside them in the row."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    DogeConfig,
    FalconH1Config,
    Gemma2Config,
    GPTJConfig,
    Lfm2Config,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
    NemotronConfig,
    PretrainedConfig,
    Qwen2Config,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flash_attention_mask

from grpo.learner.batch import Sample, collate
from grpo.learner.scoring import Batching, forward
from grpo.model.forward.packed import Segments, can_pack, use_packed_attention
from grpo.model.load import CompletionLogProbs, load_model
from grpo.recipe.config import ModelConfig

SMALL: dict[str, Any] = {"vocab_size": 8, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2}
EAGER: dict[str, Any] = {**SMALL, "attn_implementation": "eager"}


def sample(prompt: int, length: int, problem: int) -> Sample:
    ids = torch.randint(3, 250, (prompt + length,), generator=torch.Generator().manual_seed(100 * problem + length))
    asked = torch.randint(3, 250, (prompt,), generator=torch.Generator().manual_seed(problem))
    return Sample(
        problem_id=str(problem),
        prompt_ids=asked.tolist(),
        completion_ids=ids[prompt:].tolist(),
        mini_batch=0,
        sampling_logprobs=0.0,
        advantages=1.0,
        token_weights=1.0,
    )


# Longer than their prompt, shorter, of one token, and a prompt with a single completion.
SAMPLES = [sample(5, 9, 0), sample(5, 3, 0), sample(5, 1, 0), sample(4, 6, 1), sample(12, 4, 2), sample(12, 20, 2)]


def computed(folder: Path, layout: dict[str, bool]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of all completion tokens, and the gradient of a sum that weighs each differently."""
    model = load_model(ModelConfig(model_name_or_path=str(folder)))
    if layout:
        use_packed_attention(model)
    logprobs, _ = forward(CompletionLogProbs(model, 1.0), collate(SAMPLES, pad_token_id=0, **layout))
    (logprobs * torch.arange(1, len(logprobs) + 1)).sum().backward()
    return logprobs.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("model", ["tiny_v3", "tiny_llama"])
@pytest.mark.parametrize("layout", [{"packed": True}, {"packed": True, "shared": True}], ids=["packed", "shared"])
def test_log_probs_and_gradients_are_those_of_padded_rows(
    model: str, layout: dict[str, bool], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(model)
    (expected, gradient), (found, other) = computed(folder, {}), computed(folder, layout)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)
    torch.testing.assert_close(other, gradient, rtol=1e-4, atol=2e-6 * float(gradient.abs().max()))


def test_segments_say_where_each_sample_lies() -> None:
    segments = Segments.of([*SAMPLES[:2], SAMPLES[3]], shared=True)
    assert segments == Segments([5, 4], [[9, 3], [6]])
    assert segments.lengths == [5, 9, 3, 4, 6]
    assert segments.places == [(0, 5), (0, 14), (17, 21)]
    apart = Segments.of(SAMPLES[:2], shared=False)
    assert apart.places == [(0, 5), (14, 19)]
    assert apart.ends == [0, 14, 22]


@pytest.mark.parametrize(
    ("config", "packs"),
    [
        (LlamaConfig(**SMALL), True),
        (Qwen2Config(**SMALL, num_key_value_heads=2), True),
        (LlamaConfig(**EAGER), False),
        (MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=4), False),
        (Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=4, sliding_window=4), False),
        (NemotronConfig(**SMALL, num_key_value_heads=2, head_dim=4), False),  # its layers pass nothing on
        (GPTJConfig(vocab_size=8, n_embd=8, n_head=2, n_layer=2, rotary_dim=2), False),
        (FalconH1Config(**SMALL, num_key_value_heads=2, mamba_d_ssm=8, mamba_n_heads=2, mamba_d_state=4), False),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_only_full_attention_through_transformers_interface_is_packed(config: PretrainedConfig, packs: bool) -> None:
    model = AutoModelForCausalLM.from_config(config)
    assert can_pack(model) == packs
    batching = Batching(100, pad_token_id=0).for_model(model, torch.device("cpu"))
    assert (batching.packed, batching.shared) == (packs, packs)
    assert not Batching(100, pad_token_id=0).for_model(model, torch.device("cuda")).packed


@pytest.mark.parametrize(
    ("config", "packs"),
    [
        (LlamaConfig(**SMALL), True),
        (MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=4), True),
        (Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=4, sliding_window=4), True),
        (NemotronConfig(**SMALL, num_key_value_heads=2, head_dim=4), False),
        (FalconH1Config(**SMALL, num_key_value_heads=2, mamba_d_ssm=8, mamba_n_heads=2, mamba_d_state=4), False),
        (Lfm2Config(**SMALL, num_key_value_heads=2, layer_types=["conv", "full_attention"]), False),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_flash_attention_packs_no_model_that_carries_more_than_attention(config: PretrainedConfig, packs: bool) -> None:
    """It is told where samples begin; a convolution or a recurrence would run on into the next one."""
    model = AutoModelForCausalLM.from_config(config)
    model.config._attn_implementation = "flash_attention_2"
    batching = Batching(100, pad_token_id=0).for_model(model, torch.device("cuda"))
    assert (batching.packed, batching.shared) == (packs, False)


def flash_on_cpu(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: None, **keywords: Any
) -> tuple[Tensor, None]:
    """What flash attention with variable lengths computes, from the keywords that it takes."""
    ends = keywords.pop("cu_seq_lens_q")
    assert torch.equal(ends, keywords.pop("cu_seq_lens_k")) and ends.dtype == torch.int32
    lengths = ends.diff().tolist()
    assert keywords.pop("max_length_q") == keywords.pop("max_length_k") == max(lengths)
    samples = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    return torch.cat([sdpa_attention_forward(module, *one, None, **keywords)[0] for one in samples], dim=1), None


@pytest.mark.parametrize("config", [LlamaConfig, Ministral3Config])
def test_flash_attention_is_told_where_samples_begin(config: type[PretrainedConfig]) -> None:
    """Ministral 3 keeps the positions from its attention."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**{**SMALL, "vocab_size": 256}, num_key_value_heads=2, head_dim=4))
    scorer = CompletionLogProbs(model, 1.0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5)
        expected = forward(scorer, collate(SAMPLES, pad_token_id=0))[0]
        AttentionInterface.register("flash_on_cpu", flash_on_cpu)
        AttentionMaskInterface.register("flash_on_cpu", flash_attention_mask)
        model.config._attn_implementation = "flash_on_cpu"  # its setter would look for a library
        batching = Batching(100, pad_token_id=0).for_model(model, torch.device("cuda"))
        found = forward(scorer, batching.collate(SAMPLES, torch.device("cpu")))[0]
    assert batching.packed
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_mask_of_the_model_s_own_is_refused_in_a_packed_row() -> None:
    model = AutoModelForCausalLM.from_config(DogeConfig(**SMALL, num_key_value_heads=2, intermediate_size=8))
    use_packed_attention(model)
    batch = collate([replace(SAMPLES[1], prompt_ids=[3, 4, 5], completion_ids=[6, 7])], pad_token_id=0, packed=True)
    with pytest.raises(ValueError, match=r"DogeAttention makes an attention mask.*attn_implementation=eager"):
        forward(CompletionLogProbs(model, 1.0), batch)


def test_an_attention_mask_is_refused(tiny_llama: Path) -> None:
    model = load_model(ModelConfig(model_name_or_path=str(tiny_llama)))
    use_packed_attention(model)
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(ValueError, match="packed attention takes no attention mask"):
        model(input_ids=ids, attention_mask=torch.tensor([[0, 1, 1]]))
