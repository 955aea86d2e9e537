"""Replayed routes: only the choice of experts is forced, and everything else is the model's."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3ForCausalLM,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from grpo.model.moe import moe_layers, record_routes
from grpo.model.replay import RouterRule, RoutingReplay
from tests.conftest import sharpen, tiny_llama_config, tiny_v3_config

TOKENS = torch.randint(0, 250, (2, 7), generator=torch.Generator().manual_seed(1))
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 16,
    "num_experts_per_tok": 2,
}
SMALL_V2 = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}


@pytest.fixture(scope="module")
def model() -> DeepseekV3ForCausalLM:
    model = DeepseekV3ForCausalLM(tiny_v3_config())
    sharpen(model, seed=0)
    return model


@pytest.fixture(scope="module")
def replay(model: DeepseekV3ForCausalLM) -> RoutingReplay:
    return RoutingReplay(model)


@pytest.fixture(scope="module")
def others() -> Tensor:
    """[2, 7, 2 layers, 2] two random experts per token, of any groups: seldom those that the router would choose."""
    generator = torch.Generator().manual_seed(2)
    return torch.rand(2, 7, 2, 8, generator=generator).topk(2).indices.to(torch.int16)


def own_routes(model: PreTrainedModel) -> Tensor:
    with record_routes(model) as routes, torch.no_grad():
        model(TOKENS)
    return torch.from_numpy(routes.compact()).to(torch.int16).view(2, 7, 2, 2)


def plain_block(block: Any, hidden: Tensor, chosen: Tensor) -> Tensor:
    """A V3 block with given experts, token by token; hidden [N, H], chosen [N, 2]."""
    rows = []
    for x, experts in zip(hidden, chosen.tolist(), strict=True):
        scores = [1 / (1 + torch.exp(-(block.gate.weight[e] @ x))) for e in experts]
        y = block.shared_experts(x)
        for expert, score in zip(experts, scores, strict=True):
            gate, up = (block.experts.gate_up_proj[expert] @ x).chunk(2)
            y = y + 2.5 * score / sum(scores) * (block.experts.down_proj[expert] @ (gate * gate.sigmoid() * up))
        rows.append(y)
    return torch.stack(rows)


def plain(model: DeepseekV3ForCausalLM, routes: Tensor) -> DeepseekV3ForCausalLM:
    """A float64 copy of the model whose blocks are the plain ones."""
    model = copy.deepcopy(model).double()
    for layer, block in enumerate(moe_layers(model).values()):
        chosen = routes[:, :, layer].reshape(-1, 2)
        block.forward = lambda x, block=block, chosen=chosen: plain_block(block, x.flatten(0, 1), chosen).view_as(x)
    return model


def loss_and_gradients(model: PreTrainedModel) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logprobs = model(TOKENS, use_cache=False).logits.log_softmax(-1)[:, :-1].gather(2, TOKENS[:, 1:, None])
    (logprobs[..., 0] * torch.linspace(-1, 1, 12).view(2, 6)).sum().backward()
    return logprobs.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_close(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(found[0], expected[0].float(), rtol=1e-5, atol=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(found[1][name], gradient.float(), rtol=1e-3, atol=1e-5 * largest, msg=name)


def test_log_probs_and_gradients_are_those_of_a_plain_model_in_float64(
    model: DeepseekV3ForCausalLM, replay: RoutingReplay, others: Tensor
) -> None:
    with replay(others):
        found = loss_and_gradients(model)
    assert_close(found, loss_and_gradients(plain(model, others)))


def test_gradient_checkpointing_replays_in_the_backward_pass_too(model: DeepseekV3ForCausalLM, others: Tensor) -> None:
    checkpointed = copy.deepcopy(model).train()
    replay = RoutingReplay(checkpointed)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    with replay(others):
        found = loss_and_gradients(checkpointed)
    assert_close(found, loss_and_gradients(plain(model, others)))


@torch.no_grad()
def test_a_models_own_routes_change_nothing(model: DeepseekV3ForCausalLM, replay: RoutingReplay) -> None:
    native = model(TOKENS).logits
    with replay(own_routes(model)) as replayed:
        assert torch.equal(model(TOKENS).logits, native)
    assert replayed.num_tokens == 14
    assert [int(changed) for changed in replayed.changed] == [0, 0]
    assert torch.equal(model(TOKENS).logits, native)


@torch.no_grad()
def test_tokens_without_a_route_are_routed_by_the_model(
    model: DeepseekV3ForCausalLM, replay: RoutingReplay, others: Tensor
) -> None:
    native, partial = model(TOKENS).logits, others.clone()
    partial[:, :4] = -1
    with replay(partial) as replayed:
        logits = model(TOKENS).logits
    torch.testing.assert_close(logits[:, :4], native[:, :4], rtol=1e-5, atol=1e-5)
    assert not torch.isclose(logits[:, 4:], native[:, 4:]).all(-1).any()
    assert replayed.num_tokens == 6
    assert 0 < int(replayed.changed[0]) <= 6


@torch.no_grad()
def test_what_counts_loads_counts_the_replayed_experts(
    model: DeepseekV3ForCausalLM, replay: RoutingReplay, others: Tensor
) -> None:
    with record_routes(model) as routes, replay(others):
        model(TOKENS)
    assert torch.equal(torch.stack(routes.indices, 1).view(2, 7, 2, 2), others.long())


V2_CONFIG = DeepseekV2Config(
    **SMALL, **SMALL_V2, n_routed_experts=4, first_k_dense_replace=1, routed_scaling_factor=1.5, topk_method="greedy"
)


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        (tiny_v3_config(), RouterRule(sigmoid=True, normalized=True, scale=2.5)),
        (V2_CONFIG, RouterRule(sigmoid=False, normalized=False, scale=1.5)),
        (
            Qwen3MoeConfig(**SMALL, head_dim=16, num_experts=4, norm_topk_prob=True),
            RouterRule(sigmoid=False, normalized=True, scale=1.0),
        ),
    ],
)
def test_the_rule_of_a_router_is_found_out(config: PreTrainedConfig, rule: RouterRule) -> None:
    model = AutoModelForCausalLM.from_config(config)
    sharpen(model, seed=0)
    assert RoutingReplay(model).rule == rule


def test_a_router_with_another_rule_is_refused(model: DeepseekV3ForCausalLM) -> None:
    other = copy.deepcopy(model)
    for block in moe_layers(other).values():
        block.gate.routed_scaling_factor = 2.0  # and 2.5 in the config
    with pytest.raises(ValueError, match="neither by sigmoid nor by softmax"):
        RoutingReplay(other)


def test_a_dense_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has no mixture of experts .* Set algorithm.routing_replay=none"):
        RoutingReplay(LlamaForCausalLM(tiny_llama_config()))


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ([0, 0], r"problem-7: token 3 went to experts \[0, 0\] in model.layers.2.mlp, which are not 2 different ones"),
        ([1, 8], r"token 3 went to experts \[1, 8\] in model.layers.2.mlp, .* below 8"),
    ],
)
def test_impossible_routes_are_refused(replay: RoutingReplay, experts: list[int], message: str) -> None:
    routes = np.tile(np.array([6, 1], dtype=np.uint8), (4, 2, 1))  # of tokens 1 to 4 of 6
    replay.check(routes, sample="problem-7", num_tokens=6)
    routes[2, 1] = experts
    with pytest.raises(ValueError, match=message):
        replay.check(routes, sample="problem-7", num_tokens=6)


@pytest.mark.parametrize("shape", [(6, 2, 2), (4, 3, 2), (4, 2, 8)])
def test_routes_of_another_model_are_refused(replay: RoutingReplay, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"routes of shape .* at most \[5, 2, 2\]"):
        replay.check(np.zeros(shape, dtype=np.uint8), sample="problem-7", num_tokens=6)
