"""A teacher: a frozen model that says what it thinks of the student's tokens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import PreTrainedModel

from grpo.learner.batch import Sample
from grpo.learner.scoring import Batching, completion_hidden, completion_logprobs, compute_dtype
from grpo.model.forward.teacher import Target, TeacherHead
from grpo.model.load import CompletionLogProbs
from grpo.model.sharding import shard, whole


class Teacher:
    """A frozen model.

    Args:
        temperature: of its distribution; the student's is the one that completions are sampled at.
        stays: False: it is in host memory and comes to the device only while it reads, because others do so too.
        mesh: the processes it is sharded over, a layer on the device at a time; None: it is whole in each.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        accelerator: Accelerator,
        *,
        temperature: float,
        batching: Batching,
        stays: bool = True,
        mesh: DeviceMesh | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.batching = batching.for_model(model, accelerator.device)
        self.home = accelerator.device if stays else torch.device("cpu")
        self.is_sharded = mesh is not None
        scorer = CompletionLogProbs(model, temperature).requires_grad_(False).eval()
        head: Any = model.get_output_embeddings()
        if mesh is None:
            self.scorer = scorer.to(self.home)
            weight, bias = head.weight, head.bias
        else:
            self.scorer = shard(scorer, model, mesh, compute_dtype(accelerator), offload=not stays)
            register_fsdp_forward_method(self.scorer, "hidden")
            weight = whole(head.weight.detach()).to(self.home)
            bias = None if head.bias is None else whole(head.bias.detach()).to(self.home)
        self.head = TeacherHead(weight, bias, self.scorer.temperature)

    def logprobs(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Log-probs [n] of each sample's completion."""
        with self._on_device():
            return completion_logprobs(self.scorer, samples, self.batching, self.accelerator)

    def targets(self, samples: Sequence[Sample], beta: float) -> list[Target]:
        """What the student's distribution is compared with at each sample's tokens, by the divergence `beta` names."""
        with self._on_device():
            hidden = completion_hidden(self.scorer, samples, self.batching, self.accelerator)
        return [Target(states, self.head, beta) for states in hidden]

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        if self.is_sharded:
            yield
            return
        self.scorer.to(self.accelerator.device)
        try:
            yield
        finally:
            self.scorer.to(self.home)
