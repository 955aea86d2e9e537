"""Multi-token prediction of depth 1, as in DeepSeek-V3 (2412.19437, section 2.2).

    h'_i = M [RMSNorm(Emb(t_{i+1})); RMSNorm(h_i)]        (eq. 21; halves in the order of the published weights)
    p(t_{i+2}) = head(RMSNorm(layer(h'_1 … h'_i)))        (eq. 22-23)

h are the trunk's last hidden states, after its norm; embedding and head are the trunk's. The module is the layer after
the trunk's last, `model.layers.{num_hidden_layers}`, as in the published files. The trunk's forward never runs it.

Left out: further depths, and models that are not a `deepseek_v3`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DeepseekV3Config, PretrainedConfig, PreTrainedModel
from transformers import DeepseekV3ForCausalLM as Trunk
from transformers.masking_utils import create_causal_mask
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3RMSNorm

from grpo.model.forward.head import CHUNK_ELEMENTS, computing_dtype, head_logits, token_logprobs
from grpo.model.forward.packed import Segments, segments_for

SHARED = ("embed_tokens.weight", "shared_head.head.weight")  # the trunk's own, repeated in published files


class MTPLayer(DeepseekV3DecoderLayer):
    """The module, under the published names."""

    def __init__(self, config: DeepseekV3Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        size, eps = config.hidden_size, config.rms_norm_eps
        self.enorm, self.hnorm = DeepseekV3RMSNorm(size, eps=eps), DeepseekV3RMSNorm(size, eps=eps)
        self.eh_proj = nn.Linear(2 * size, size, bias=False)
        self.shared_head = nn.ModuleDict({"norm": DeepseekV3RMSNorm(size, eps=eps)})

    def forward(self, embeddings: Tensor, hidden: Tensor, **keywords: Any) -> Tensor:  # type: ignore[override]
        """[B, L, H] the states that the head reads t_{i+2} from, of Emb(t_{i+1}) and h_i, both [B, L, H]."""
        joined = self.eh_proj(torch.cat([self.enorm(embeddings), self.hnorm(hidden)], dim=-1))
        return self.shared_head["norm"](super().forward(joined, **keywords))


class DeepseekV3ForCausalLM(Trunk):
    """transformers' class of this name with the module behind its layers; reads and writes V3's layout."""

    _keys_to_ignore_on_load_unexpected = [rf"layers\.\d+\.{name}" for name in SHARED]

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__(config)
        config.num_mtp_layers = 1
        self.model._keys_to_ignore_on_load_unexpected = set()
        self.model.layers.append(MTPLayer(config, config.num_hidden_layers))
        self.post_init()

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # transformers looks for the experts' class in the source of this module

    def save_pretrained(self, save_directory: Any, state_dict: dict[str, Any] | None = None, **keywords: Any) -> None:  # type: ignore[override]
        state = dict(self.state_dict() if state_dict is None else state_dict)
        for name, module in zip(SHARED, (self.model.embed_tokens, self.lm_head), strict=True):
            state[f"model.layers.{self.config.num_hidden_layers}.{name}"] = module.weight.detach().clone()
        super().save_pretrained(save_directory, state_dict=state, **keywords)


def check_mtp(config: PretrainedConfig, name: str) -> None:
    """Raise ValueError where a model of this configuration cannot have the module."""
    if config.model_type != "deepseek_v3":
        raise ValueError(
            f"model.mtp: {name} is a {config.model_type}, and multi-token prediction is DeepSeek-V3's (deepseek_v3). "
            "Remove model.mtp."
        )
    if (depth := getattr(config, "num_nextn_predict_layers", 0)) > 1:
        raise ValueError(
            f"model.mtp: {name} predicts {depth} further tokens (num_nextn_predict_layers), and only one is supported. "
            "Remove model.mtp, or set num_nextn_predict_layers to 1."
        )


def check_loaded(missing: set[str], config: DeepseekV3Config, name: str | Path, *, may_start: bool) -> None:
    """Raise ValueError unless a folder has the module's weights; or, with `may_start`, none of them.

    missing: the weights that the folder lacks.
    """
    own = f"model.layers.{config.num_hidden_layers}."
    with torch.device("meta"):
        whole = {own + weight for weight in MTPLayer(config, config.num_hidden_layers).state_dict()}
    if not (found := missing & whole) or (may_start and found == whole):
        return
    raise ValueError(
        f"model.mtp: {name} lacks {len(found)} of the {len(whole)} weights of a multi-token prediction ({min(found)}). "
        "Remove model.mtp, or train one with stage sft or pretrain."
    )


def mtp_layer(model: nn.Module) -> MTPLayer | None:
    """The model's module; None if it has none."""
    return next((module for module in model.modules() if isinstance(module, MTPLayer)), None)


def mtp_prefix(model: nn.Module) -> str | None:
    """How the names of the module's weights begin; None if the model has none."""
    return next((f"{name}." for name, module in model.named_modules() if isinstance(module, MTPLayer)), None)


def _base(model: PreTrainedModel) -> Any:
    return model.base_model


def _head(model: PreTrainedModel) -> Any:
    return model.get_output_embeddings()


def draft_states(
    model: PreTrainedModel,
    input_ids: Tensor,
    hidden: Tensor,
    *,
    position_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    segments: Segments | None = None,
    detach: bool = False,
) -> Tensor:
    """[B, L, H] the states from which the head reads, at i, the token at i + 2. The last two of a row mean nothing.

    input_ids: [B, L], padded on the right; hidden: [B, L, H] the trunk's last hidden states; position_ids, segments
    and attention_mask: the trunk's. detach: only the module gets a gradient, neither the trunk nor its embedding.
    """
    layer, base = mtp_layer(model), _base(model)
    assert layer is not None
    # The last column has no next token. What stands there is seen by no other position.
    embeddings = base.embed_tokens(input_ids.roll(-1, dims=1))
    if detach:
        embeddings, hidden = embeddings.detach(), hidden.detach()
    if position_ids is None:
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    mask = create_causal_mask(
        config=model.config,
        inputs_embeds=embeddings,
        attention_mask=attention_mask,
        past_key_values=None,
        position_ids=position_ids,
    )
    return layer(
        embeddings,
        hidden,
        attention_mask=mask,
        position_ids=position_ids,
        position_embeddings=base.rotary_emb(embeddings, position_ids),
        **segments_for(model, segments, input_ids.device),
    )


@dataclass(frozen=True, slots=True)
class Drafts:
    """What the module says of T tokens, and what the trunk does."""

    states: Tensor  # [T, H] from which the head reads the module's prediction, with gradient
    hidden: Tensor  # [T, H] from which it reads the trunk's own
    targets: Tensor  # [T] the tokens
    weight: Tensor  # [V, H] the head's
    temperature: float = 1.0

    def loss(self) -> Tensor:
        """-log q summed over the tokens (2412.19437, eq. 24 without its 1/T)."""
        return -token_logprobs(self.states, self.weight, self.targets, self.temperature)[0].sum()

    def acceptance(self) -> tuple[Tensor, Tensor]:
        """How many of the drafts speculative decoding would keep, greedy and sampled; both []."""
        greedy, sampled = acceptance(self.hidden, self.states, self.weight, self.temperature)
        return greedy.sum(), sampled.sum()


def drafts_of_labels(
    model: PreTrainedModel, input_ids: Tensor, hidden: Tensor, labels: Tensor, attention_mask: Tensor | None = None
) -> Drafts:
    """Drafts of the labels, each from the token two before it.

    labels: [B, L] the token itself, or -100 where it is not learnt; those of the first two columns have no draft.
    """
    states = draft_states(model, input_ids, hidden, attention_mask=attention_mask)
    learnt = labels[:, 2:] != -100
    own = hidden.detach()[:, 1:-1][learnt]
    return Drafts(states[:, :-2][learnt], own, labels[:, 2:][learnt], _head(model).weight)


def drafts_of_completions(
    model: PreTrainedModel,
    input_ids: Tensor,
    position_ids: Tensor,
    hidden: Tensor,
    logit_positions: Tensor,
    targets: Tensor,
    temperature: float,
    segments: Segments | None = None,
) -> Drafts:
    """Drafts of the sampled tokens whose predecessor was sampled too; only the module gets a gradient.

    hidden: [B, L, H] the trunk's last hidden states; the others as in `MicroBatch`, whose samples share no prompt.
    """
    states = draft_states(model, input_ids, hidden, position_ids=position_ids, segments=segments, detach=True)
    second = 1 + (logit_positions[1:] == logit_positions[:-1] + 1).nonzero()[:, 0]  # [T'] indices into [T]
    at, head = logit_positions[second], _head(model)
    own = hidden.detach().flatten(0, 1)[at]
    return Drafts(states.flatten(0, 1)[at - 1], own, targets[second], head.weight.detach(), temperature)


@torch.no_grad()
def acceptance(hidden: Tensor, drafts: Tensor, weight: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Whether speculative decoding keeps the draft of each of T tokens, both [T]: greedy 0 or 1, sampled a probability.

    Greedy decoding keeps the draft if it is the model's own first choice; sampling keeps it with probability
    sum_v min(p_v, q_v) (2211.17192, theorem 3.5), p being the model's distribution and q the draft's.

    hidden, drafts: [T, H] what the head reads the same token from; weight: [V, H] the head's.
    """
    greedy, sampled = [], []
    chunk = max(1, CHUNK_ELEMENTS.get(hidden.device.type, 2**27) // (2 * weight.shape[0]))  # two logits at once
    weight = weight.to(computing_dtype(hidden))
    for ours, theirs in zip(hidden.split(chunk), drafts.split(chunk), strict=True):
        p, q = (head_logits(one, weight, None, temperature).softmax(-1) for one in (ours, theirs))
        greedy.append((p.argmax(-1) == q.argmax(-1)).float())
        sampled.append(torch.minimum(p, q).sum(-1))
    return torch.cat(greedy), torch.cat(sampled)
