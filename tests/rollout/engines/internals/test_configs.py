"""What vLLM reads of a model's config and does not compute as the trainer does is refused before it starts."""

import pytest
from transformers import DeepseekV2Config, DeepseekV3Config, DeepseekV4Config, DeepseekV32Config, PretrainedConfig

from rollout.engines.vllm_setup import check_routing_keys, check_sparse_attention


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DeepseekV2Config(norm_topk_prob=True), '"norm_topk_prob": false'),
        (DeepseekV32Config(scoring_func="sigmoid"), '"topk_method": "noaux_tc"'),
        (DeepseekV32Config(topk_method="noaux_tc", scoring_func="softmax"), '"scoring_func": "sigmoid"'),
        (DeepseekV4Config(), '"topk_method": "noaux_tc"'),
    ],
)
def test_configs_that_vllm_would_route_differently_by_are_errors(config: PretrainedConfig, message: str):
    with pytest.raises(ValueError, match=f"would silently route differently. Add {message} to it"):
        check_routing_keys("model", config)
    check_routing_keys("model", DeepseekV32Config(topk_method="noaux_tc", scoring_func="sigmoid"))
    check_routing_keys("model", DeepseekV2Config())


@pytest.mark.parametrize(
    ("config", "on_cpu", "reason"),
    [
        (DeepseekV32Config(), True, "vLLM has no sparse attention on CPU"),
        (DeepseekV32Config(kv_lora_rank=32, qk_rope_head_dim=8), False, "for latents of 512 . 64 dimensions only"),
        (DeepseekV4Config(), True, "vLLM on CPU keeps its keys and values in FP8"),
    ],
)
def test_sparse_attention_that_vllm_has_not_is_an_error(config: PretrainedConfig, on_cpu: bool, reason: str):
    with pytest.raises(ValueError, match=rf"model \({config.model_type}\): .*{reason}.* Set rollout.engine=hf"):
        check_sparse_attention("model", config, on_cpu=on_cpu)
    check_sparse_attention("model", DeepseekV3Config(), on_cpu=on_cpu)
    check_sparse_attention("model", DeepseekV32Config(), on_cpu=False)
    check_sparse_attention("model", DeepseekV4Config(), on_cpu=False)
