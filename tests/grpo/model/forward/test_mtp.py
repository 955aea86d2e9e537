"""Multi-token prediction: the module against an oracle and transformers' own, the published layout, acceptance."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import silu
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.core_model_loading import revert_weight_conversion

from grpo.model.forward.mtp import acceptance, draft_states, drafts_of_labels, mtp_layer
from grpo.model.load import load_model, new_model
from grpo.model.moe import moe_layers, record_routes
from grpo.model.weights import checkpoint_weights, save_model
from grpo.recipe.config import ModelConfig
from grpo.recipe.stages.sft import SFTModel
from tests.conftest import byte_tokenizer, sharpen, tiny_llama_config, tiny_v3_config

LAYER = "model.layers.3."  # behind the tiny model's three


def with_mtp(config: DeepseekV3Config) -> PreTrainedModel:
    return new_model(SFTModel(config={"model_type": "deepseek_v3"}, tokenizer="none", mtp={"coefficient": 0.3}), config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a multi-token prediction, and its tokenizer."""
    path = tmp_path_factory.mktemp("mtp")
    model = with_mtp(tiny_v3_config())
    sharpen(model, seed=0)
    save_model(model, path, is_writer=True)
    byte_tokenizer().save_pretrained(path)
    return path


def load(path: Path, **keywords: Any) -> PreTrainedModel:
    return load_model(ModelConfig(model_name_or_path=str(path)), mtp="stored", **keywords)


# -- the module


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def rotated(x: Tensor, width: int) -> Tensor:
    """[heads, L, width] rotated by position, neighbouring pairs as complex numbers, as in DeepSeek's own code."""
    frequency = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequency
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(turned).flatten(-2)


def oracle(w: dict[str, Tensor], hidden: Tensor, ids: Tensor) -> Tensor:
    """[L - 2, V] the logits of tokens 2 … L - 1 of one row, in float64, by the paper's formulas and a file's names."""
    heads, nope, rope, v_dim = 4, 24, 8, 16
    embedded = w["embed_tokens.weight"][ids[1:-1]]
    x = torch.cat([rms(embedded, w["enorm.weight"]), rms(hidden[:-2], w["hnorm.weight"])], -1) @ w["eh_proj.weight"].T
    # multi-head latent attention (2412.19437, eq. 1-11)
    y = rms(x, w["input_layernorm.weight"])
    a = {name.removeprefix("self_attn.").removesuffix(".weight"): t for name, t in w.items() if "self_attn" in name}
    q = rms(y @ a["q_a_proj"].T, a["q_a_layernorm"]) @ a["q_b_proj"].T
    q = q.unflatten(-1, (heads, nope + rope)).transpose(0, 1)
    latent, k_rope = (y @ a["kv_a_proj_with_mqa"].T).split([32, rope], -1)
    kv = (rms(latent, a["kv_a_layernorm"]) @ a["kv_b_proj"].T).unflatten(-1, (heads, nope + v_dim)).transpose(0, 1)
    scores = q[..., :nope] @ kv[..., :nope].mT + rotated(q[..., nope:], rope) @ rotated(k_rope[None], rope).mT
    causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    attention = (scores * (nope + rope) ** -0.5).masked_fill(~causal, -torch.inf).softmax(-1)
    x = x + (attention @ kv[..., nope:]).transpose(0, 1).flatten(1) @ a["o_proj"].T
    # mixture of experts (eq. 12-16), one token at a time
    y = rms(x, w["post_attention_layernorm.weight"])

    def expert(name: str, token: Tensor) -> Tensor:
        gate, up, down = (w[f"mlp.{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        return (silu(token @ gate.T) * (token @ up.T)) @ down.T

    outputs = []
    for token in y:
        s = torch.sigmoid(token @ w["mlp.gate.weight"].T)
        biased = (s + w["mlp.gate.e_score_correction_bias"]).detach().view(2, 4)
        group = int(biased.topk(2).values.sum(-1).argmax())
        chosen = [4 * group + int(i) for i in biased[group].topk(2).indices]
        total = sum(s[i] for i in chosen)
        routed = sum(2.5 * s[i] / total * expert(f"experts.{i}", token) for i in chosen)
        outputs.append(routed + expert("shared_experts", token))
    return rms(x + torch.stack(outputs), w["shared_head.norm.weight"]) @ w["shared_head.head.weight"].T


def test_loss_and_gradients_equal_a_float64_oracle(folder: Path) -> None:
    """Of two rows of 9 and 7 tokens, prompts not learnt; weights are read by their published names."""
    model = load(folder)
    ids = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(1))
    attention_mask = torch.ones_like(ids)
    ids[1, 7:], attention_mask[1, 7:] = 258, 0
    labels = ids.masked_fill(attention_mask == 0, -100)
    labels[0, :4] = labels[1, :1] = -100
    hidden = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    drafts = drafts_of_labels(model, ids, hidden, labels, attention_mask)
    loss = drafts.loss()
    loss.backward()
    assert len(drafts.targets) == 5 + 5

    stored = {n.removeprefix(LAYER): t for n, t in load_file(folder / "model.safetensors").items() if LAYER in n}
    weights = {name: tensor.double().requires_grad_() for name, tensor in stored.items()}
    exact = hidden.detach().double().requires_grad_()
    expected = torch.zeros((), dtype=torch.float64)
    for row, length in ((0, 9), (1, 7)):
        logprobs = oracle(weights, exact[row, :length], ids[row, :length]).log_softmax(-1)
        for position in range(max(2, 4 if row == 0 else 1), length):
            expected = expected - logprobs[position - 2, ids[row, position]]
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(hidden.grad.double(), exact.grad, rtol=1e-3, atol=1e-5)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    ours = dict(revert_weight_conversion(model, gradients))
    ours |= {LAYER + "embed_tokens.weight": ours.pop("model.embed_tokens.weight")}
    ours |= {LAYER + "shared_head.head.weight": ours.pop("lm_head.weight")}
    theirs = {LAYER + name: w.grad for name, w in weights.items() if "bias" not in name}
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        target = torch.zeros_like(gradient) if theirs[name] is None else theirs[name].float()  # an expert not taken
        assert torch.allclose(gradient, target, rtol=1e-3, atol=1e-5), name


def transparent(half: str) -> PreTrainedModel:
    """Vocabulary 8, one-hot embeddings: the module hands on the embedding or the hidden state, and the head's first
    choice after token v is v + 1.
    """
    config = tiny_v3_config()
    config.update({"vocab_size": 8, "hidden_size": 8, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None})
    model: Any = with_mtp(config)
    layer = mtp_layer(model)
    assert layer is not None
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(8))
        model.lm_head.weight.copy_(10 * torch.eye(8).roll(1, dims=0))
        for name, parameter in layer.named_parameters():
            if "down_proj" in name or "o_proj" in name:
                parameter.zero_()
        nothing, all_of_it = torch.zeros(8, 8), torch.eye(8)
        layer.eh_proj.weight.copy_(
            torch.cat([all_of_it, nothing] if half == "embedding" else [nothing, all_of_it], dim=1)
        )
    return model


def test_a_position_predicts_the_second_next_token_from_itself_and_the_next() -> None:
    ids = torch.tensor([[3, 1, 4, 5, 6, 2]])
    hidden = torch.eye(8)[[7, 0, 1, 2, 3, 4]][None]
    of_next = transparent("embedding")
    assert of_next.lm_head(draft_states(of_next, ids, hidden)).argmax(-1)[0, :4].tolist() == [2, 5, 6, 7]
    of_itself = transparent("hidden")
    assert of_itself.lm_head(draft_states(of_itself, ids, hidden)).argmax(-1)[0, :4].tolist() == [0, 1, 2, 3]
    # Tokens 4 5 6 count up, so 5 (after 4) and 6 (after 5) are foreseen, and 4 (after 1) and 2 (after 6) are not.
    for label, foreseen in {2: False, 3: True, 4: True, 5: False}.items():
        labels = torch.full_like(ids, -100)
        labels[0, label] = ids[0, label]
        drafts = drafts_of_labels(of_next, ids, hidden, labels)
        assert drafts.targets.tolist() == [ids[0, label]] and (drafts.loss() < 0.01) == foreseen
    first_two = torch.tensor([[3, 1, -100, -100, -100, -100]])  # have nothing two before them
    assert drafts_of_labels(of_next, ids, hidden, first_two).loss() == 0


def test_detached_only_the_module_gets_a_gradient(folder: Path) -> None:
    model = load(folder)
    ids = torch.arange(8)[None]
    draft_states(model, ids, model.base_model(input_ids=ids).last_hidden_state, detach=True).square().sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {LAYER + name for name, _ in mtp_layer(model).named_parameters()}


def test_packed_samples_do_not_see_one_another(folder: Path) -> None:
    model = load(folder)
    ids, hidden = torch.arange(10)[None], torch.randn(1, 10, 64, generator=torch.Generator().manual_seed(0))
    packed = draft_states(model, ids, hidden, position_ids=torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]]))
    alone = draft_states(model, ids[:, 5:], hidden[:, 5:])
    assert torch.allclose(packed[:, 5:8], alone[:, :3], atol=1e-5)


# -- files


def test_a_folder_has_the_published_layout_and_loads_as_it_was(folder: Path, tmp_path: Path) -> None:
    own = {name for name in load_file(folder / "model.safetensors") if name.startswith(LAYER)}
    named = {"enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head", "embed_tokens", "self_attn.q_b_proj"}
    assert {f"{LAYER}{name}.weight" for name in named} | {f"{LAYER}mlp.experts.7.down_proj.weight"} <= own
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_nextn_predict_layers"], config["architectures"]) == (1, ["DeepseekV3ForCausalLM"])
    save_model(load(folder), tmp_path, is_writer=True)
    before, after = (load_file(one / "model.safetensors") for one in (folder, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_trunk_is_what_transformers_loads_and_engines_are_sent(folder: Path) -> None:
    model, plain = load(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert type(plain) is DeepseekV3ForCausalLM and len(plain.model.layers) == 3
    ids = torch.arange(20)[None]
    assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    sent, own = (dict(checkpoint_weights(one)) for one in (model, plain))
    assert sent.keys() == own.keys() and all(torch.equal(sent[name], own[name]) for name in own)


def test_the_modules_experts_are_not_the_trunks(folder: Path) -> None:
    model = load(folder)
    assert list(moe_layers(model)) == ["model.layers.1.mlp", "model.layers.2.mlp"]
    layer, ids = mtp_layer(model), torch.arange(20)[None]
    assert layer is not None
    with record_routes(model) as trunk, record_routes(layer) as own:
        draft_states(model, ids, model.base_model(input_ids=ids).last_hidden_state)
    assert trunk.counts().sum(-1).tolist() == [40, 40] and own.counts().sum(-1).tolist() == [40]


def test_what_cannot_have_the_module_is_refused(folder: Path, tiny_v3: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lacks 20 of the 20 weights"):
        load(tiny_v3)
    model = load_model(ModelConfig(model_name_or_path=str(tiny_v3)), mtp="new")
    assert model.config.num_nextn_predict_layers == 1
    assert mtp_layer(model).enorm.weight.eq(1).all()

    LlamaForCausalLM(tiny_llama_config()).save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match=r"is a llama, and multi-token prediction is DeepSeek-V3's"):
        load(tmp_path / "llama")
    with pytest.raises(ValueError, match="predicts 2 further tokens"):
        load(folder, num_nextn_predict_layers=2)
    weights = load_file(folder / "model.safetensors")
    del weights[LAYER + "eh_proj.weight"]
    (tmp_path / "part").mkdir()
    save_file(weights, tmp_path / "part" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "part" / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match=r"lacks 1 of the 20 weights .*eh_proj"):
        load_model(ModelConfig(model_name_or_path=str(tmp_path / "part")), mtp="new")


# -- acceptance


def test_acceptance_is_that_of_speculative_sampling() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
    q = torch.tensor([[0.4, 0.5, 0.1], [0.1, 0.8, 0.1]])
    greedy, sampled = acceptance(p.log(), q.log(), torch.eye(3))
    assert greedy.tolist() == [0, 1]
    assert sampled.tolist() == pytest.approx([0.4 + 0.3 + 0.1, 1.0])
    flatter = acceptance(p.log(), q.log(), torch.eye(3), temperature=2.0)[1]
    roots = [p[0].sqrt() / p[0].sqrt().sum(), q[0].sqrt() / q[0].sqrt().sum()]
    assert flatter[0].item() == pytest.approx(torch.minimum(*roots).sum().item())


def save_half_right(folder: Path) -> None:
    """A model whose next token hangs mostly on the present one, and drafts that know this."""
    model: Any = with_mtp(tiny_v3_config())
    sharpen(model, seed=0)
    layer = mtp_layer(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "down_proj" in name or "o_proj" in name:
                parameter.mul_(0.05)
        layer.eh_proj.weight.copy_(torch.eye(64, 128))
        layer.shared_head["norm"].weight.copy_(model.model.norm.weight)
    save_model(model, folder, is_writer=True)


def test_greedy_acceptance_foretells_the_passes_of_transformers_own_generation(tmp_path: Path) -> None:
    """After each pass of the trunk, generation keeps its token and, if the draft was right, the one after."""
    save_half_right(tmp_path)
    model, plain = load(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    plain._keys_to_ignore_on_load_unexpected = {r"model\.layers\.3\..*"}  # transformers knows layer 61 only
    ids = torch.arange(65, 85)[None]
    passes: list[int] = []
    plain.model.register_forward_hook(lambda *_: passes.append(1))
    settings: Any = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None}
    drafted = plain.generate(ids, use_mtp=True, **settings)
    count = len(passes)
    assert torch.equal(drafted, plain.generate(ids, **settings))
    hidden = model.base_model(input_ids=drafted).last_hidden_state
    states = draft_states(model, drafted, hidden)
    greedy, _ = acceptance(hidden[0, 1:-1], states[0, :-2], model.lm_head.weight)  # of tokens 2 … L - 1
    walked, position = 0, 20
    while position < 44:
        walked += 1
        position += 1 + (position + 1 < 44 and bool(greedy[position + 1 - 2]))
    assert 0.1 < greedy[18:].mean() < 0.9, "drafts that are never or always right would not tell"
    assert count == walked
