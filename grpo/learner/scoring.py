"""Forward passes over samples in micro-batches, with and without gradient. Shared by policy and reference."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel

from grpo.learner.batch import MicroBatch, Sample, collate, pack
from grpo.model.forward.packed import can_pack, only_attends, passes_segments, use_packed_attention
from grpo.model.forward.teacher import TeacherHead
from grpo.model.load import CompletionLogProbs
from grpo.model.sharding import is_sharded

Item = TypeVar("Item")
Around = Callable[[Sequence[int], MicroBatch], AbstractContextManager[object]]  # (which samples, their micro-batch)


@dataclass(frozen=True, slots=True)
class Batching:
    """How samples become micro-batches."""

    max_tokens: int  # of a micro-batch, padding included
    pad_token_id: int
    packed: bool = False  # all samples in one row, for attention with variable lengths
    shared: bool = False  # and a prompt once for the samples that have it

    def for_model(self, model: PreTrainedModel, device: torch.device) -> "Batching":
        """The same budget in the layout that the model's attention takes; on CPU, gives it one for packed rows."""
        if (model.config._attn_implementation or "").startswith("flash"):
            return replace(self, packed=only_attends(model) and passes_segments(model), shared=False)
        on_cpu = device.type == "cpu" and can_pack(model)
        if on_cpu:
            use_packed_attention(model)
        return replace(self, packed=on_cpu, shared=on_cpu)

    def split(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Indices of the samples of each micro-batch; each has one teacher, whose micro-batches follow one another."""
        by_teacher: dict[TeacherHead | None, list[int]] = {}
        for i, sample in enumerate(samples):
            by_teacher.setdefault(sample.target and sample.target.head, []).append(i)
        return [
            [indices[i] for i in part]
            for indices in by_teacher.values()
            for part in pack(
                [samples[i] for i in indices], max_tokens=self.max_tokens, packed=self.packed, shared=self.shared
            )
        ]

    def collate(self, samples: Sequence[Sample], device: torch.device) -> MicroBatch:
        batch = collate(samples, pad_token_id=self.pad_token_id, packed=self.packed, shared=self.shared)
        return batch.to(device)


def compute_dtype(accelerator: Accelerator) -> torch.dtype:
    """What autocast computes in; float32 without it."""
    return torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32


def forward(scorer: nn.Module, batch: MicroBatch) -> tuple[Tensor, ...]:
    """logprobs [T] and entropy [T] of a micro-batch; what follows them is in `CompletionLogProbs.forward`."""
    tokens = (batch.input_ids, batch.position_ids, batch.logit_positions, batch.targets)
    return scorer(*tokens, target=batch.target, segments=batch.segments, kept=batch.kept)


def equally_many(batches: list[list[Item]]) -> list[list[Item]]:
    """The micro-batches, and empty ones until every process has as many: they step, and gather weights, together."""
    return batches + [[]] * (max(1, *gather_object([len(batches)])) - len(batches))


@torch.no_grad()
def completion_logprobs(
    scorer: nn.Module,
    samples: Sequence[Sample],
    batching: Batching,
    accelerator: Accelerator,
    *,
    around: Around = lambda _indices, _batch: nullcontext(),
) -> list[np.ndarray]:
    """Log-probs [n] of each sample's completion, 0 for tokens that the policy did not sample.

    around: what each forward happens inside of.
    """
    results = [np.zeros(len(sample.completion_ids), dtype=np.float32) for sample in samples]
    batches = batching.split(samples)
    with accelerator.autocast():
        for indices in equally_many(batches) if is_sharded(scorer) else batches:
            batch = batching.collate([samples[i] for i in indices], accelerator.device)
            with around(indices, batch):
                flat = forward(scorer, batch)[0].float().cpu().numpy()
            starts = np.cumsum([0, *(samples[i].sampled.sum() for i in indices)])
            for i, start, end in zip(indices, starts[:-1], starts[1:], strict=True):
                results[i][samples[i].sampled] = flat[start:end]
    return results


@torch.no_grad()
def completion_hidden(
    scorer: CompletionLogProbs, samples: Sequence[Sample], batching: Batching, accelerator: Accelerator
) -> list[Tensor]:
    """The last hidden states [sampled tokens, H] of each sample, in host memory: a head turns them into logits."""
    results: list[Tensor] = [torch.empty(0)] * len(samples)
    batches = batching.split(samples)
    with accelerator.autocast():
        for indices in equally_many(batches) if is_sharded(scorer) else batches:
            batch = batching.collate([samples[i] for i in indices], accelerator.device)
            hidden = scorer.hidden(batch.input_ids, batch.position_ids, batch.logit_positions, batch.segments).cpu()
            for i, piece in zip(indices, hidden.split([int(samples[i].sampled.sum()) for i in indices]), strict=True):
                results[i] = piece
    return results
