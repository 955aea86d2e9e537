"""What is refused about a model before it trains."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertGenerationConfig,
    DeepseekV4Config,
    FalconConfig,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedConfig,
)

from grpo.model.checks import check_finite, check_model
from grpo.model.load import CompletionLogProbs, disable_dropout
from grpo.model.replay import RoutingReplay
from grpo.recipe.config import ModelConfig
from tests.conftest import tiny_llama_config

SHAPE: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def check(model: Any, **changes: Any) -> None:
    options = {"tokenizer_size": 60, "max_model_len": 64, **changes}
    check_model(model, **options)


def test_a_head_with_a_bias_has_the_models_own_log_probs_and_gradients() -> None:
    torch.manual_seed(0)
    model = PhiForCausalLM(PhiConfig(**SHAPE))
    model.lm_head.bias.data.normal_(0, 1.0)
    check(model)
    ids = torch.randint(0, 60, (1, 7))
    logits = model(input_ids=ids).logits[0, :-1]
    expected = torch.autograd.grad(logits.log_softmax(-1).gather(1, ids[0, 1:, None]).sum(), model.lm_head.bias)[0]
    ours, _ = CompletionLogProbs(model, 1.0)(ids, torch.arange(7)[None], torch.arange(6), ids[0, 1:])
    (got,) = torch.autograd.grad(ours.sum(), model.lm_head.bias)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_multiplier_of_the_logits_is_part_of_the_log_probs() -> None:
    torch.manual_seed(0)
    model = GraniteForCausalLM(GraniteConfig(**SHAPE, num_key_value_heads=2, logits_scaling=4.0))
    model.get_input_embeddings().weight.data.mul_(30)
    check(model)


def test_a_soft_cap_is_refused_whatever_its_name() -> None:
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(
        Gemma2Config(**SHAPE, num_key_value_heads=2, head_dim=16, final_logit_softcapping=2.0, query_pre_attn_scalar=16)
    )
    model.get_input_embeddings().weight.data.mul_(30)
    with pytest.raises(
        ValueError, match=r"\(gemma2\): log-probs .* differ by .* not a linear head's \(as with final_logit_softcapping"
    ):
        check(model)


@pytest.mark.parametrize(
    "config",
    [
        MixtralConfig(**SHAPE, num_key_value_heads=2, num_local_experts=4, router_jitter_noise=0.5),
        FalconConfig(**SHAPE, ffn_hidden_size=64, hidden_dropout=0.1),
    ],
    ids=lambda config: config.model_type,
)
def test_a_forward_that_is_random_in_training_mode_is_refused(config: PreTrainedConfig) -> None:
    """Equal weights would give other log-probs than the engine's. These rates are read from the config."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    disable_dropout(model)
    with pytest.raises(ValueError, match=r"its forward is random in training mode, as with router_jitter_noise"):
        check(model)
    check(model, disable_dropout=False)
    assert not model.training


def test_a_model_whose_tokens_see_later_ones_is_refused() -> None:
    """Its own forward agrees with ours, and padding would change it."""
    for is_decoder in (True, False):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(BertGenerationConfig(**SHAPE, is_decoder=is_decoder))
        disable_dropout(model)
        for parameter in model.parameters():
            parameter.data.mul_(10)
        if is_decoder:
            check(model)
    with pytest.raises(ValueError, match=r"the log-prob of a token changes by .* with those after it, so"):
        check(model)


def test_a_model_without_a_backbone_of_its_own_is_refused() -> None:
    """transformers names Llama 4's after the one that is inside the model of images."""
    config = Llama4TextConfig(
        **SHAPE, num_key_value_heads=2, head_dim=16, num_local_experts=2, intermediate_size_mlp=64
    )
    with pytest.raises(ValueError, match=r"a Llama4ForCausalLM is not made of a `base_model` and a linear head"):
        check(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SHAPE, max_position_embeddings=32, rope_parameters={"rope_type": "dynamic", "factor": 4.0}),
        Phi3Config(
            **{**SHAPE, "pad_token_id": 0},
            max_position_embeddings=128,
            original_max_position_embeddings=32,
            rope_parameters={"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8},
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_positions_that_depend_on_the_longest_sequence_beside_are_refused(config: PreTrainedConfig) -> None:
    model = AutoModelForCausalLM.from_config(config)
    check(model, max_model_len=32)
    with pytest.raises(ValueError, match=r"max_model_len=64: beyond 32 tokens, rope_type=(dynamic|longrope) of"):
        check(model, max_model_len=64)


def test_sizes_that_do_not_fit_are_refused(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"the tokenizer has 264 entries and the embedding 263 rows"):
        check(model, tokenizer_size=264)
    with pytest.raises(ValueError, match=r"max_model_len=513: the model's context is 512 tokens"):
        check(model, max_model_len=513)


def test_experts_that_cannot_be_balanced_are_refused(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"model.balance_bias_update_speed=0.001: .* no router with .* Set it to 0\.$"):
        check(model, balance_bias_update_speed=0.001)
    with pytest.raises(ValueError, match=r"model.sequence_balance_coefficient=0.1: .* \(llama\) has no mixture of exp"):
        check(model, sequence_balance_coefficient=0.1)
    mixtral = MixtralForCausalLM(MixtralConfig(**SHAPE, num_key_value_heads=2, num_local_experts=4))
    with pytest.raises(ValueError, match=r"balance bias .*Set it to 0, and model.sequence_balance_coefficient instead"):
        check(mixtral, balance_bias_update_speed=0.001)
    check(mixtral, sequence_balance_coefficient=0.1)
    single = MixtralForCausalLM(MixtralConfig(**SHAPE, num_key_value_heads=2, num_experts_per_tok=1))
    with pytest.raises(ValueError, match=r"has no scores to balance: with one expert per token"):
        check(single, sequence_balance_coefficient=0.1)


def test_a_model_with_flash_attention_is_checked_on_the_cpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-attn is not installed here, and takes neither the CPU nor float32, in which weights train."""
    names: list[str] = []

    def accepted(_: Any, name: str, **_options: Any) -> str:
        names.append(name)
        return name

    monkeypatch.setattr(MixtralForCausalLM, "_check_and_adjust_attn_implementation", accepted)
    model = MixtralForCausalLM(MixtralConfig(**SHAPE, num_key_value_heads=2, num_local_experts=4))
    model.set_attn_implementation("flash_attention_2")
    names.clear()
    check(model, sequence_balance_coefficient=0.1)
    assert names == ["eager", "flash_attention_2"] * 2
    RoutingReplay(model)
    assert names == ["eager", "flash_attention_2"] * 3
    assert model.config._attn_implementation == "flash_attention_2"


def test_flash_attention_in_float32_is_refused() -> None:
    with pytest.raises(ValueError, match=r"attn_implementation=flash_attention_2 with dtype=float32: .* no float32"):
        ModelConfig(model_name_or_path="m", attn_implementation="flash_attention_2")
    assert ModelConfig(model_name_or_path="m", attn_implementation="flash_attention_2", dtype="bfloat16")


def test_a_weight_that_is_not_finite_is_named() -> None:
    model = LlamaForCausalLM(tiny_llama_config())
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = torch.nan
    with pytest.raises(ValueError, match=r"weight model\.layers\.1\.mlp\.up_proj\.weight has 1 NaN or infinite values"):
        check_finite(model)


def test_parameters_that_text_never_reaches_are_frozen() -> None:
    model = LlamaForCausalLM(tiny_llama_config())
    model.vision_tower = torch.nn.Linear(4, 4)
    check(model)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["vision_tower.weight", "vision_tower.bias"]


@pytest.mark.parametrize(("longest", "trains"), [(512, True), (96, False)])
def test_what_only_long_text_reaches_is_trained_where_texts_are_long(longest: int, trains: bool) -> None:
    """Blocks of 128 tokens are compressed into one; nine tokens never reach the weights that do it."""
    torch.manual_seed(0)
    kinds = ["compressed_sparse_attention", "heavily_compressed_attention"]
    config = DeepseekV4Config(
        **{**SHAPE, "pad_token_id": 0},
        **{"head_dim": 16, "qk_rope_head_dim": 8, "q_lora_rank": 16, "o_groups": 2, "o_lora_rank": 8, "hc_mult": 2},
        **{"index_head_dim": 16, "index_n_heads": 2, "index_topk": 512, "layer_types": kinds},
        **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    )
    model = AutoModelForCausalLM.from_config(config)
    check(model, max_model_len=longest)
    assert model.model.layers[0].self_attn.compressor.kv_proj.weight.requires_grad
    assert model.model.layers[1].self_attn.compressor.kv_proj.weight.requires_grad == trains


def test_two_training_forwards_agree_without_dropout() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2)).train()
    ids = torch.arange(8)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    disable_dropout(model)
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert model.config.resid_pdrop == 0.1  # a checkpoint keeps its configuration
