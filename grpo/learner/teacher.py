"""A teacher: a frozen model that says what it thinks of the student's tokens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from grpo.learner.batch import Sample
from grpo.learner.scoring import Batching, completion_hidden, completion_logprobs
from grpo.model.load import CompletionLogProbs
from grpo.model.teacher import Target, TeacherHead


class Teacher:
    """A frozen model.

    Args:
        temperature: of its distribution; the student's is the one that completions are sampled at.
        stays: False: it is in host memory and comes to the device only while it reads, because others do so too.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        accelerator: Accelerator,
        *,
        temperature: float,
        batching: Batching,
        stays: bool = True,
    ) -> None:
        self.accelerator = accelerator
        self.batching = batching.for_model(model, accelerator.device)
        self.home = accelerator.device if stays else torch.device("cpu")
        self.scorer = CompletionLogProbs(model, temperature).to(self.home).requires_grad_(False).eval()
        head: Any = model.get_output_embeddings()
        self.head = TeacherHead(head.weight, head.bias, self.scorer.temperature)

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
        self.scorer.to(self.accelerator.device)
        try:
            yield
        finally:
            self.scorer.to(self.home)
