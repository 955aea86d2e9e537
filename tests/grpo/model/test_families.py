"""Checkpoints of the DeepSeek family: what is written has the names, shapes and config keys of the published files.

The published models are built on the meta device, without weights. Names and shapes are those of their
model.safetensors.index.json, written as rules.
"""

import json
import math
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    DeepseekV4Config,
    DeepseekV32Config,
    PretrainedConfig,
)

from grpo.model.load import load_model, new_model, prepared
from grpo.model.weights import checkpoint_weights, save_model
from grpo.recipe.config import ModelConfig
from grpo.recipe.stages.sft import SFTModel
from rollout.engines.vllm_setup import check_routing_keys

YARN = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "original_max_position_embeddings": 4096, "type": "yarn"}

DEEPSEEK_V2_LITE = {
    **{"model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944},
    **{"moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16},
    **{"n_shared_experts": 2, "n_routed_experts": 64, "num_experts_per_tok": 6, "first_k_dense_replace": 1},
    **{"routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1, "topk_method": "greedy", "scoring_func": "softmax"},
    **{"norm_topk_prob": False, "moe_layer_freq": 1, "aux_loss_alpha": 0.001, "seq_aux": True},
    **{"kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128},
    **{"max_position_embeddings": 163840, "rope_theta": 10000, "rms_norm_eps": 1e-6, "tie_word_embeddings": False},
    **{"rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}, "hidden_act": "silu"},
    **{"attention_bias": False, "bos_token_id": 100000, "eos_token_id": 100001, "initializer_range": 0.02},
}
MOONLIGHT = {
    **{"model_type": "deepseek_v3", "vocab_size": 163840, "hidden_size": 2048, "intermediate_size": 11264},
    **{"moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16},
    **{"n_shared_experts": 2, "n_routed_experts": 64, "num_experts_per_tok": 6, "first_k_dense_replace": 1},
    **{"routed_scaling_factor": 2.446, "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc"},
    **{
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "moe_layer_freq": 1,
        "aux_loss_alpha": 0.001,
        "seq_aux": True,
    },
    **{"kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128},
    **{"max_position_embeddings": 8192, "rope_theta": 50000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": False},
    **{"hidden_act": "silu", "attention_bias": False, "bos_token_id": 163584, "eos_token_id": 163585},
}
DEEPSEEK_V3 = {
    **{"model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432},
    **{"moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128},
    **{"n_shared_experts": 1, "n_routed_experts": 256, "num_experts_per_tok": 8, "first_k_dense_replace": 3},
    **{"routed_scaling_factor": 2.5, "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc"},
    **{"scoring_func": "sigmoid", "norm_topk_prob": True, "moe_layer_freq": 1, "num_nextn_predict_layers": 1},
    **{"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128},
    **{"max_position_embeddings": 163840, "rope_theta": 10000, "rms_norm_eps": 1e-6, "tie_word_embeddings": False},
    **{"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}, "hidden_act": "silu", "ep_size": 1},
    **{"attention_bias": False, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.02},
}
DEEPSEEK_V32 = {
    **DEEPSEEK_V3,
    **{"model_type": "deepseek_v32", "index_head_dim": 128, "index_n_heads": 64, "index_topk": 2048},
}

# Names -> shapes. {a..b} stands for every number from a to b.
SMALL_ATTENTION: dict[str, tuple[int, ...]] = {
    "model.layers.{0..26}.self_attn.q_proj.weight": (3072, 2048),
    "model.layers.{0..26}.self_attn.kv_a_proj_with_mqa.weight": (576, 2048),
    "model.layers.{0..26}.self_attn.kv_a_layernorm.weight": (512,),
    "model.layers.{0..26}.self_attn.kv_b_proj.weight": (4096, 512),
    "model.layers.{0..26}.self_attn.o_proj.weight": (2048, 2048),
    "model.layers.{0..26}.input_layernorm.weight": (2048,),
    "model.layers.{0..26}.post_attention_layernorm.weight": (2048,),
    "model.norm.weight": (2048,),
}
SMALL_EXPERTS: dict[str, tuple[int, ...]] = {
    "model.layers.{1..26}.mlp.gate.weight": (64, 2048),
    "model.layers.{1..26}.mlp.experts.{0..63}.gate_proj.weight": (1408, 2048),
    "model.layers.{1..26}.mlp.experts.{0..63}.up_proj.weight": (1408, 2048),
    "model.layers.{1..26}.mlp.experts.{0..63}.down_proj.weight": (2048, 1408),
    "model.layers.{1..26}.mlp.shared_experts.gate_proj.weight": (2816, 2048),
    "model.layers.{1..26}.mlp.shared_experts.up_proj.weight": (2816, 2048),
    "model.layers.{1..26}.mlp.shared_experts.down_proj.weight": (2048, 2816),
}
V2_LITE_INDEX = {
    "model.embed_tokens.weight": (102400, 2048),
    "lm_head.weight": (102400, 2048),
    "model.layers.0.mlp.gate_proj.weight": (10944, 2048),
    "model.layers.0.mlp.up_proj.weight": (10944, 2048),
    "model.layers.0.mlp.down_proj.weight": (2048, 10944),
    **SMALL_ATTENTION,
    **SMALL_EXPERTS,
}
MOONLIGHT_INDEX = {
    "model.embed_tokens.weight": (163840, 2048),
    "lm_head.weight": (163840, 2048),
    "model.layers.0.mlp.gate_proj.weight": (11264, 2048),
    "model.layers.0.mlp.up_proj.weight": (11264, 2048),
    "model.layers.0.mlp.down_proj.weight": (2048, 11264),
    "model.layers.{1..26}.mlp.gate.e_score_correction_bias": (64,),
    **SMALL_ATTENTION,
    **SMALL_EXPERTS,
}
V3_INDEX: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (129280, 7168),
    "lm_head.weight": (129280, 7168),
    "model.norm.weight": (7168,),
    "model.layers.{0..60}.input_layernorm.weight": (7168,),
    "model.layers.{0..60}.post_attention_layernorm.weight": (7168,),
    "model.layers.{0..60}.self_attn.q_a_proj.weight": (1536, 7168),
    "model.layers.{0..60}.self_attn.q_a_layernorm.weight": (1536,),
    "model.layers.{0..60}.self_attn.q_b_proj.weight": (24576, 1536),
    "model.layers.{0..60}.self_attn.kv_a_proj_with_mqa.weight": (576, 7168),
    "model.layers.{0..60}.self_attn.kv_a_layernorm.weight": (512,),
    "model.layers.{0..60}.self_attn.kv_b_proj.weight": (32768, 512),
    "model.layers.{0..60}.self_attn.o_proj.weight": (7168, 16384),
    "model.layers.{0..2}.mlp.gate_proj.weight": (18432, 7168),
    "model.layers.{0..2}.mlp.up_proj.weight": (18432, 7168),
    "model.layers.{0..2}.mlp.down_proj.weight": (7168, 18432),
    "model.layers.{3..60}.mlp.gate.weight": (256, 7168),
    "model.layers.{3..60}.mlp.gate.e_score_correction_bias": (256,),
    "model.layers.{3..60}.mlp.experts.{0..255}.gate_proj.weight": (2048, 7168),
    "model.layers.{3..60}.mlp.experts.{0..255}.up_proj.weight": (2048, 7168),
    "model.layers.{3..60}.mlp.experts.{0..255}.down_proj.weight": (7168, 2048),
    "model.layers.{3..60}.mlp.shared_experts.gate_proj.weight": (2048, 7168),
    "model.layers.{3..60}.mlp.shared_experts.up_proj.weight": (2048, 7168),
    "model.layers.{3..60}.mlp.shared_experts.down_proj.weight": (7168, 2048),
}  # and layer 61, the multi-token prediction, which transformers does not load
V32_INDEX = {
    **V3_INDEX,
    "model.layers.{0..60}.self_attn.indexer.wq_b.weight": (8192, 1536),
    "model.layers.{0..60}.self_attn.indexer.wk.weight": (128, 7168),
    "model.layers.{0..60}.self_attn.indexer.k_norm.weight": (128,),
    "model.layers.{0..60}.self_attn.indexer.k_norm.bias": (128,),
    "model.layers.{0..60}.self_attn.indexer.weights_proj.weight": (64, 7168),
}

# DeepSeek-V4-Flash. Layers compress nothing (0), 4 or 128 tokens; the first three choose experts by the token's id.
V4_RATIOS = [0, 0, *(128 if i % 2 else 4 for i in range(2, 43))]
DEEPSEEK_V4 = {
    **{"model_type": "deepseek_v4", "vocab_size": 129280, "hidden_size": 4096, "moe_intermediate_size": 2048},
    **{"num_hidden_layers": 43, "num_attention_heads": 64, "num_key_value_heads": 1, "head_dim": 512},
    **{"qk_rope_head_dim": 64, "q_lora_rank": 1024, "o_groups": 8, "o_lora_rank": 1024, "sliding_window": 128},
    **{"index_head_dim": 128, "index_n_heads": 64, "index_topk": 512, "compress_ratios": V4_RATIOS},
    **{"n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 6, "num_hash_layers": 3},
    **{"scoring_func": "sqrtsoftplus", "topk_method": "noaux_tc", "norm_topk_prob": True, "swiglu_limit": 10.0},
    **{"routed_scaling_factor": 1.5, "hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6},
    **{"max_position_embeddings": 1048576, "rope_theta": 10000, "compress_rope_theta": 160000},
    **{"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1},
}
V4_INDEX: dict[str, tuple[int, ...]] = {
    "embed.weight": (129280, 4096),
    "head.weight": (129280, 4096),
    "norm.weight": (4096,),
    "hc_head_fn": (4, 16384),
    "hc_head_base": (4,),
    "hc_head_scale": (1,),
    "layers.{0..42}.attn_norm.weight": (4096,),
    "layers.{0..42}.ffn_norm.weight": (4096,),
    **{f"layers.{{0..42}}.hc_{part}_fn": (24, 16384) for part in ("attn", "ffn")},
    **{f"layers.{{0..42}}.hc_{part}_base": (24,) for part in ("attn", "ffn")},
    **{f"layers.{{0..42}}.hc_{part}_scale": (3,) for part in ("attn", "ffn")},
    "layers.{0..42}.attn.attn_sink": (64,),
    "layers.{0..42}.attn.wq_a.weight": (1024, 4096),
    "layers.{0..42}.attn.q_norm.weight": (1024,),
    "layers.{0..42}.attn.wq_b.weight": (32768, 1024),
    "layers.{0..42}.attn.wkv.weight": (512, 4096),
    "layers.{0..42}.attn.kv_norm.weight": (512,),
    "layers.{0..42}.attn.wo_a.weight": (8192, 4096),
    "layers.{0..42}.attn.wo_b.weight": (4096, 8192),
    **{
        f"layers.{i}.attn.compressor.{name}": shape
        for i, ratio in enumerate(V4_RATIOS)
        if ratio
        for width in [1024 if ratio == 4 else 512]  # windows of 4 overlap, and each token is in two
        for name, shape in {
            "ape": (ratio, width),
            "norm.weight": (512,),
            "wgate.weight": (width, 4096),
            "wkv.weight": (width, 4096),
        }.items()
    },
    **{
        f"layers.{i}.attn.indexer.{name}": shape
        for i, ratio in enumerate(V4_RATIOS)
        if ratio == 4
        for name, shape in {
            "compressor.ape": (4, 256),
            "compressor.norm.weight": (128,),
            "compressor.wgate.weight": (256, 4096),
            "compressor.wkv.weight": (256, 4096),
            "weights_proj.weight": (64, 4096),
            "wq_b.weight": (8192, 1024),
        }.items()
    },
    "layers.{0..42}.ffn.gate.weight": (256, 4096),
    "layers.{0..2}.ffn.gate.tid2eid": (129280, 6),
    "layers.{3..42}.ffn.gate.bias": (256,),
    "layers.{0..42}.ffn.experts.{0..255}.w1.weight": (2048, 4096),
    "layers.{0..42}.ffn.experts.{0..255}.w2.weight": (4096, 2048),
    "layers.{0..42}.ffn.experts.{0..255}.w3.weight": (2048, 4096),
    "layers.{0..42}.ffn.shared_experts.w1.weight": (2048, 4096),
    "layers.{0..42}.ffn.shared_experts.w2.weight": (4096, 2048),
    "layers.{0..42}.ffn.shared_experts.w3.weight": (2048, 4096),
}  # and mtp.0, which transformers does not load


def expanded(name: str) -> list[str]:
    """The names that a rule stands for."""
    if (found := re.search(r"\{(\d+)\.\.(\d+)\}", name)) is None:
        return [name]
    numbers = range(int(found[1]), int(found[2]) + 1)
    return [one for i in numbers for one in expanded(name[: found.start()] + str(i) + name[found.end() :])]


@pytest.mark.parametrize(
    ("config", "index", "published"),
    [
        (DEEPSEEK_V2_LITE, V2_LITE_INDEX, 15_706_484_224),
        (MOONLIGHT, MOONLIGHT_INDEX, None),
        (DEEPSEEK_V3, V3_INDEX, 671_026_419_200),
        (DEEPSEEK_V32, V32_INDEX, None),
        (DEEPSEEK_V4, V4_INDEX, None),
    ],
    ids=["DeepSeek-V2-Lite", "Moonlight-16B-A3B", "DeepSeek-V3", "DeepSeek-V3.2", "DeepSeek-V4-Flash"],
)
def test_weights_have_the_names_and_shapes_of_the_published_index(
    config: dict[str, Any], index: dict[str, tuple[int, ...]], published: int | None
) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**deepcopy(config)))  # it changes it
    expected = {name: shape for rule, shape in index.items() for name in expanded(rule)}
    written = {name: tuple(tensor.shape) for name, tensor in checkpoint_weights(model)}
    assert written.keys() ^ expected.keys() == set()
    assert written == expected
    if published is not None:  # the size that is given for the model, without V3's multi-token prediction
        assert sum(math.prod(shape) for shape in written.values()) == published


@pytest.mark.parametrize("config", [DEEPSEEK_V2_LITE, MOONLIGHT, DEEPSEEK_V3, DEEPSEEK_V32])
def test_what_the_published_config_says_is_still_said_after_saving(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    rope = saved["rope_parameters"]  # where transformers 5 puts all about rotary embeddings
    saved["rope_theta"] = rope.pop("rope_theta")
    saved["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_type"}
    assert {key: saved[key] for key in config} == config


def test_v4s_published_config_is_kept_in_the_keys_of_transformers_and_of_vllm(tmp_path: Path) -> None:
    """transformers renames keys that vLLM reads, and does not write them."""
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V4))
    config = AutoConfig.from_pretrained(tmp_path)
    check_routing_keys("model", config)
    with torch.device("meta"):
        model = prepared(AutoModelForCausalLM.from_config(config), ModelConfig(model_name_or_path="none"))
    model.config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert {key: saved[key] for key in DEEPSEEK_V4} == DEEPSEEK_V4
    assert AutoConfig.from_pretrained(tmp_path).layer_types == config.layer_types


LATENT = {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
TINY_V4: dict[str, Any] = {
    **{"vocab_size": 60, "hidden_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 4, "head_dim": 16},
    **{"num_attention_heads": 2, "q_lora_rank": 16, "o_groups": 2, "o_lora_rank": 8, "qk_rope_head_dim": 8},
    **{"compress_ratios": [0, 4, 128, 4], "index_head_dim": 16, "index_n_heads": 2, "index_topk": 512},
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "num_hash_layers": 1, "hc_mult": 2},
    **{"bos_token_id": 1, "eos_token_id": 2},
}
TINY: dict[str, Any] = {
    **{"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16},
    **{"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "first_k_dense_replace": 1},
    **{"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    **{"bos_token_id": 1, "eos_token_id": 2},
}


@pytest.mark.parametrize(
    "config",
    [
        DeepseekV2Config(**TINY, **LATENT, q_lora_rank=None),
        DeepseekV3Config(**TINY, **LATENT, q_lora_rank=None),
        DeepseekV32Config(**TINY, **LATENT, q_lora_rank=16, index_head_dim=16, index_n_heads=2, index_topk=8),
        DeepseekV4Config(**TINY_V4),
    ],
    ids=lambda config: config.model_type,
)
def test_a_saved_model_loads_as_it_was(config: PretrainedConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = new_model(SFTModel(config=config.to_dict(), tokenizer="none"), config)
    save_model(model, tmp_path, is_writer=True)
    names = load_file(tmp_path / "model.safetensors").keys()
    v4 = config.model_type == "deepseek_v4"
    assert ("layers.1.ffn.experts.3.w2.weight" if v4 else "model.layers.1.mlp.experts.3.down_proj.weight") in names
    loaded = load_model(ModelConfig(model_name_or_path=str(tmp_path)))
    before, after = (one.state_dict() for one in (model, loaded))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_multi_token_prediction_that_is_not_loaded_is_not_claimed(tmp_path: Path) -> None:
    """V3's layer 61 is not loaded, trained or saved, so the saved config must not say that it is there."""
    config = DeepseekV3Config(**TINY, **LATENT, q_lora_rank=None, num_nextn_predict_layers=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "published")
    assert json.loads((tmp_path / "published" / "config.json").read_text())["num_nextn_predict_layers"] == 1
    model = load_model(ModelConfig(model_name_or_path=str(tmp_path / "published")))
    save_model(model, tmp_path / "saved", is_writer=True)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["num_nextn_predict_layers"] == 0
