"""Routes, loads and balancing of V3-style mixtures of experts."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DeepseekV4Config,
    MixtralConfig,
    PretrainedConfig,
    Qwen3MoeConfig,
)
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4TopKRouter

from grpo.model.moe import (
    Routes,
    cast_grouped_products,
    load_metrics,
    moe_layers,
    record_routes,
    router_scores,
    sequence_balance_loss,
    update_balance_bias,
)


@pytest.fixture
def model() -> DeepseekV3ForCausalLM:
    torch.manual_seed(0)
    config = DeepseekV3Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        moe_intermediate_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=8,
        q_lora_rank=None,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        num_nextn_predict_layers=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = DeepseekV3ForCausalLM(config)
    for block in moe_layers(model).values():
        torch.nn.init.normal_(block.gate.weight)
    return model


def oracle_routes(block, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """V3's gate, spelled out: (scores, experts taken) for hidden states [N, H]."""
    scores = 1 / (1 + np.exp(-hidden @ block.gate.weight.detach().numpy().T))
    biased = scores + block.gate.e_score_correction_bias.numpy()
    taken = []
    for row in biased:
        groups = row.reshape(2, 4)
        best = np.argmax(np.sort(groups, axis=1)[:, -2:].sum(1))
        taken.append(best * 4 + np.argsort(groups[best])[-2:])
    return scores, np.sort(np.array(taken), axis=1)


def test_routes_are_those_of_the_gate(model):
    inputs = []
    block = list(moe_layers(model).values())[1]
    handle = block.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    with record_routes(model) as routes:
        model(input_ids=torch.randint(0, 32, (2, 5)))
    handle.remove()
    scores, taken = oracle_routes(block, inputs[0].flatten(0, 1).numpy())
    assert len(routes.indices) == 2
    np.testing.assert_allclose(routes.scores[1].detach().numpy(), scores, rtol=1e-5)
    np.testing.assert_array_equal(routes.indices[1].sort(-1).values.numpy(), taken)


SMALL = {
    **{"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None, "num_experts_per_tok": 2},
}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
DEEPSEEK_V2 = {**SMALL, **LATENT, "moe_intermediate_size": 8, "n_routed_experts": 8, "first_k_dense_replace": 0}


@pytest.mark.parametrize(
    "config",
    [
        MixtralConfig(**SMALL, num_local_experts=4),
        Qwen3MoeConfig(**SMALL, head_dim=8, num_experts=4, moe_intermediate_size=8, norm_topk_prob=False),
        DeepseekV2Config(**DEEPSEEK_V2, topk_method="greedy", n_group=1, topk_group=1),
        DeepseekV2Config(**DEEPSEEK_V2, topk_method="group_limited_greedy", n_group=4, topk_group=2),
    ],
    ids=["Mixtral", "Qwen3-MoE, not normalised", "DeepSeek-V2-Lite", "DeepSeek-V2"],
)
def test_scores_of_a_softmax_router_are_its_softmax(config: PretrainedConfig) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    [block] = moe_layers(model).values()
    nn.init.normal_(block.gate.weight)
    inputs = []
    handle = block.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    with record_routes(model) as routes:
        model(input_ids=torch.randint(0, 32, (2, 5)))
    handle.remove()
    exponentials = np.exp(inputs[0].flatten(0, 1).numpy() @ block.gate.weight.detach().numpy().T)
    expected = exponentials / exponentials.sum(1, keepdims=True)
    np.testing.assert_allclose(routes.scores[0].detach().numpy(), expected, rtol=1e-4)
    assert routes.scores[0].requires_grad


def test_scores_of_deepseek_v4_are_the_root_of_softplus() -> None:
    config = DeepseekV4Config(hidden_size=16, n_routed_experts=8, num_experts_per_tok=2, scoring_func="sqrtsoftplus")
    gate = DeepseekV4TopKRouter(config)
    torch.manual_seed(0)
    nn.init.normal_(gate.weight)
    logits, weights, indices = gate(torch.randn(5, 16))
    expected = np.sqrt(np.log1p(np.exp(logits.detach().numpy())))
    np.testing.assert_allclose(router_scores(logits, indices, weights).detach().numpy(), expected, rtol=1e-5)


def test_a_router_with_other_scores_or_a_single_expert_is_refused() -> None:
    logits = torch.tensor([[3.0, -1.0, 0.5], [0.2, 2.0, -3.0]])
    indices = torch.tensor([[0, 2], [1, 0]])
    with pytest.raises(ValueError, match="by neither of sigmoid, softmax, sqrtsoftplus of their logits"):
        router_scores(logits, indices, logits.abs().gather(1, indices))
    with pytest.raises(ValueError, match="with one expert per token"):
        router_scores(logits, indices[:, :1], torch.ones(2, 1))


def test_recording_stops_with_the_block_and_keeps_the_latest_forward(model):
    tokens = torch.randint(0, 32, (1, 6))
    with record_routes(model) as routes:
        model(input_ids=torch.randint(0, 32, (3, 4)))
        model(input_ids=tokens)
    kept = [i.clone() for i in routes.indices]
    model(input_ids=torch.randint(0, 32, (1, 9)))
    assert [tuple(i.shape) for i in kept] == [(6, 2), (6, 2)]
    assert all(torch.equal(a, b) for a, b in zip(kept, routes.indices, strict=True))


def test_gradient_checkpointing_records_the_same_routes(model):
    tokens = torch.randint(0, 32, (2, 7))
    with record_routes(model) as plain:
        model(input_ids=tokens)
    model.train()
    model.gradient_checkpointing_enable()
    with record_routes(model) as routes:
        model(input_ids=tokens, labels=tokens).loss.backward()
    assert not plain.differ(routes).any()


def test_nothing_of_a_layer_that_gradient_checkpointing_runs_again_is_kept(model):
    """A router's logits with their graph would keep all that its layer computes again, layer after layer."""
    tokens = torch.randint(0, 32, (2, 7))
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    runs: list[torch.Tensor] = []
    gate = next(iter(moe_layers(model).values())).gate
    gate.register_forward_hook(
        lambda _module, _args, output: runs.append(output[0] if type(output) is tuple else output)
    )
    with record_routes(model) as routes:
        loss = model(input_ids=tokens, labels=tokens).loss
        first = [*routes.logits, *routes.indices, *routes.weights]
        loss.backward()
        assert len(runs) == 2
        last = [*routes.logits, *routes.indices, *routes.weights]
    assert all(before is after for before, after in zip(first, last, strict=True))


def test_autocast_casts_the_experts_too():
    cast_grouped_products()
    states, weights = torch.randn(4, 16), torch.randn(2, 16, 8).requires_grad_()
    ends = torch.tensor([3, 4], dtype=torch.int32)
    with torch.autocast("cpu", torch.bfloat16):
        product = nn.functional.grouped_mm(states, weights, offs=ends)
    assert torch.equal(product, nn.functional.grouped_mm(states.bfloat16(), weights.bfloat16(), offs=ends))
    product.square().sum().backward()
    assert weights.grad is not None and weights.grad.dtype == torch.float32
    assert nn.functional.grouped_mm(states, weights, offs=ends).dtype == torch.float32


def test_counts_leave_padding_out():
    routes = Routes(indices=[torch.tensor([[0, 1], [0, 3], [2, 3]])], logits=[torch.zeros(3, 4)])
    assert routes.counts().tolist() == [[2, 1, 1, 2]]
    assert routes.counts(torch.tensor([[1, 1, 0]])).tolist() == [[2, 1, 0, 1]]


def test_routes_differ_whatever_their_order():
    a = Routes(indices=[torch.tensor([[0, 1], [2, 3]])])
    b = Routes(indices=[torch.tensor([[1, 0], [2, 1]])])
    assert a.differ(b).tolist() == [[False, True]]


def test_load_metrics():
    metrics = load_metrics(torch.tensor([[4, 2, 2, 0], [2, 2, 2, 2]]))
    assert metrics == {"moe/load_max_violation": 0.5, "moe/dead_experts": 1.0}


def test_bias_moves_towards_even_loads_and_no_gradient_sees_it(model):
    counts = torch.tensor([[5, 1, 3, 3, 3, 3, 3, 3], [0, 6, 3, 3, 3, 3, 3, 3]])
    update_balance_bias(model, counts, 0.001)
    biases = [block.gate.e_score_correction_bias for block in moe_layers(model).values()]
    torch.testing.assert_close(biases[0], torch.tensor([-0.001, 0.001, 0, 0, 0, 0, 0, 0]))
    torch.testing.assert_close(biases[1], torch.tensor([0.001, -0.001, 0, 0, 0, 0, 0, 0]))
    assert not any(bias.requires_grad for bias in biases)


def test_bias_updates_even_out_the_loads(model):
    tokens = torch.randint(0, 32, (8, 32))
    violations = []
    with record_routes(model) as routes, torch.no_grad():
        for _ in range(60):
            model(input_ids=tokens)
            violations.append(load_metrics(routes.counts())["moe/load_max_violation"])
            update_balance_bias(model, routes.counts(), 0.02)
    assert violations[-1] < 0.5 * violations[0]


def test_sequence_balance_loss_is_equations_17_to_20():
    rng = np.random.default_rng(0)
    batch, length, experts, top_k, alpha = 3, 6, 4, 2, 1e-4
    scores = rng.uniform(0.05, 0.95, (batch, length, experts))
    indices = np.argsort(scores, axis=-1)[..., -top_k:]
    lengths = [6, 4, 1]
    expected = []
    for s, taken, T in zip(scores, indices, lengths, strict=True):
        total = 0.0
        for i in range(experts):
            f = experts / (top_k * T) * sum(i in taken[t] for t in range(T))
            p = sum(s[t, i] / s[t].sum() for t in range(T)) / T
            total += f * p
        expected.append(alpha * total)
    sequences = torch.tensor([[i] * n + [-1] * (length - n) for i, n in enumerate(lengths)]).flatten()
    loss = sequence_balance_loss(torch.tensor(scores).flatten(0, 1), top_k, sequences, alpha)
    assert loss.tolist() == pytest.approx(expected, rel=1e-9)


def test_balance_loss_by_hand() -> None:
    """Two tokens of one sequence, top-1 of 2 experts with scores (0.6, 0.2) and (0.9, 0.6), both to the first.

    f = (2, 0), P = ((0.75 + 0.6) / 2, ...) = (0.675, 0.325), so L = alpha * 1.35.
    """
    scores = torch.tensor([[0.6, 0.2], [0.9, 0.6], [9.0, 1.0]])  # the third is padding
    loss = sequence_balance_loss(scores, 1, torch.tensor([0, 0, -1]), 0.1)
    assert loss.tolist() == pytest.approx([0.135])


def test_balance_loss_counts_the_largest_scores_whatever_the_bias_chose() -> None:
    """Eq. 18 compares scores without the bias, which only steers the choice of experts."""
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.1, 0.3]])
    # f = 3 / 2 * (2, 1, 1) / 2, P = (0.55, 0.2, 0.25)
    loss = sequence_balance_loss(scores, 2, torch.tensor([0, 0]), alpha=1.0)
    assert loss.item() == pytest.approx(1.5 * 0.55 + 0.75 * 0.2 + 0.75 * 0.25)


def test_even_load_costs_alpha():
    scores, sequences = torch.tensor([[0.6, 0.6, 0.2, 0.2], [0.2, 0.2, 0.6, 0.6]]), torch.zeros(2, dtype=torch.int64)
    loss = sequence_balance_loss(scores, 2, sequences, alpha=0.3)
    assert loss.item() == pytest.approx(0.3)


def test_dense_models_have_no_routes():
    with record_routes(torch.nn.Linear(2, 2)) as routes:
        assert routes.indices == []
