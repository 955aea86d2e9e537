"""Attention over samples that lie in one row: nothing is padded, and a prompt is there once for all its completions.

On CPU, torch attends over padded rows only. Here each sample's queries, keys and values are cut out of the row, and the
rest of the model computes on the tokens there are. On GPUs flash attention takes packed rows itself, once it is told
where samples begin.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from grpo.model.sharding import computing

NAME = "sdpa_packed"
PROBE = "probe"


class Sample(Protocol):
    """What is needed of grpo.learner.batch.Sample."""

    @property
    def prompt_ids(self) -> Sequence[int]: ...
    @property
    def completion_ids(self) -> Sequence[int]: ...
    def shares_prompt(self, other: Any) -> bool: ...


@dataclass(frozen=True, slots=True)
class Segments:
    """How a packed row is divided: prompts, each followed by its completions.

    Segments(prompts=[3, 2], completions=[[4, 1], [2]]) is p p p c c c c d | q q e e: 12 tokens of three samples, of
    which the first two share a prompt.
    """

    prompts: list[int]
    completions: list[list[int]]

    @classmethod
    def of(cls, samples: Sequence[Sample], *, shared: bool) -> "Segments":
        """shared: neighbours share their prompt where they can."""
        segments = cls([], [])
        for i, sample in enumerate(samples):
            if not (shared and i and sample.shares_prompt(samples[i - 1])):
                segments.prompts.append(len(sample.prompt_ids))
                segments.completions.append([])
            segments.completions[-1].append(len(sample.completion_ids))
        return segments

    @property
    def lengths(self) -> list[int]:
        """Of all pieces, in order."""
        return [n for prompt, own in zip(self.prompts, self.completions, strict=True) for n in (prompt, *own)]

    @property
    def ends(self) -> list[int]:
        """0, and where each sample ends in the row, if none shares its prompt."""
        return [0, *accumulate(prompt + sum(own) for prompt, own in zip(self.prompts, self.completions, strict=True))]

    @property
    def places(self) -> list[tuple[int, int]]:
        """Where each sample's prompt and its completion start in the row."""
        places, end = [], 0
        for prompt, own in zip(self.prompts, self.completions, strict=True):
            starts = list(accumulate([end + prompt, *own]))
            places += [(end, start) for start in starts[:-1]]
            end = starts[-1]
        return places


def can_pack(model: PreTrainedModel) -> bool:
    """Whether the model attends through transformers' interface, to everything before a token and in every layer."""
    config: Any = model.config.get_text_config()
    return (
        config._attn_implementation == "sdpa"
        and model._supports_attention_backend
        and only_attends(model, {"full_attention"})
        and not getattr(config, "sliding_window", None)
        and not getattr(config, "attention_chunk_size", None)
        and passes_segments(model)
    )


def only_attends(model: PreTrainedModel, kinds: Set[str] = frozenset({"full_attention", "sliding_attention"})) -> bool:
    """Whether every layer is attention of these kinds: a state or a convolution would reach into the next sample."""
    layers = getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"]
    return not getattr(model, "_is_stateful", False) and set(layers) <= kinds


@torch.no_grad()
def passes_segments(model: PreTrainedModel) -> bool:
    """Whether what a forward is told of its row reaches the attention of every layer.

    If a layer drops it, as Nemotron's do, its tokens would attend to the samples before theirs, and nothing would fail.
    """
    if not model._supports_attention_backend:
        return False
    reached: list[bool] = []

    def attend(*heads: Any, segments: Segments | None = None, **options: Any) -> tuple[Tensor, None]:
        reached.append(segments is not None)
        return sdpa_attention_forward(*heads, **options)

    AttentionInterface.register(PROBE, attend)
    AttentionMaskInterface.register(PROBE, _causal)
    own = model.config._attn_implementation
    model.config._attn_implementation = PROBE  # not by its setter, which would want to load flash attention again
    row = torch.arange(2, device=model.device)[None]
    with computing(model):
        model.base_model(input_ids=row, position_ids=row, use_cache=False, segments=Segments([1], [[1]]))
    model.config._attn_implementation = own
    return bool(reached) and all(reached)


def use_packed_attention(model: PreTrainedModel) -> None:
    """Let the model take packed rows; see `can_pack`. Other rows go through torch's attention as before."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _causal)
    model.set_attn_implementation(NAME)


def segments_for(model: PreTrainedModel, segments: Segments | None, device: torch.device) -> dict[str, Any]:
    """The keywords for a model's forward, which hands them to its attention.

    Flash attention would find the samples where positions restart, but some models keep positions from it, and it would
    look, and wait for the GPU, in every layer.
    """
    if segments is None:
        return {}
    if model.config._attn_implementation == NAME:
        return {"segments": segments}
    ends = segments.ends
    bounds, longest = torch.tensor(ends, dtype=torch.int32, device=device), max(b - a for a, b in pairwise(ends))
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


Heads = tuple[Tensor, ...]  # query [1, H, n, d], key [1, K, n, d] and value [1, K, n, d'] of n tokens


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Heads of a packed row to [1, L, H, d']; without segments, of any rows, as transformers' sdpa."""
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if attention_mask is not None:  # `_causal` makes none
        raise ValueError(
            f"{type(module).__name__} makes an attention mask of its own, which rows of several samples do not take. "
            "Set model.attn_implementation=eager."
        )
    unpadded = value.shape[-1]
    value = nn.functional.pad(value, (0, query.shape[-1] - unpadded))  # torch fuses attention to one head size only
    # Split and concatenated, not sliced: each slice's gradient would be as long as the row.
    lengths = segments.lengths
    pieces = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    attended = []
    for completions in segments.completions:
        prompt = next(pieces)
        attended.append(sdpa_attention_forward(module, prompt[0], prompt[1], prompt[2], None, **options)[0])
        for _ in completions:
            attended.append(_continue(module, prompt, next(pieces), options))
    return torch.cat(attended, dim=1)[..., :unpadded], None


def _continue(module: nn.Module, prompt: Heads, own: Heads, options: dict[str, Any]) -> Tensor:
    """Attention of a completion's queries to its prompt and to itself: [1, n, H, d']"""
    before, length = prompt[0].shape[2], own[0].shape[2]
    query, key, value = (torch.cat(pair, dim=2) for pair in zip(prompt, own, strict=True))
    if length > before:  # causal attention skips half, which is more than the prompt's queries add
        return sdpa_attention_forward(module, query, key, value, None, **options)[0][:, before:]
    mask = torch.ones(length, before + length, dtype=torch.bool, device=query.device).tril(before)
    return sdpa_attention_forward(module, own[0], key, value, mask[None, None], **options)[0]


def _causal(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> None:
    """No mask: torch's causal attention, or the segments, say it all."""
    if attention_mask is not None and not attention_mask.all():
        raise ValueError("packed attention takes no attention mask: rows are padded on the right, without a mask.")
