"""The reference model: a frozen policy that the KL term compares with. Exists only when there is such a term."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from transformers import PreTrainedModel

from grpo.learner.batch import Sample
from grpo.learner.scoring import Batching, completion_logprobs
from grpo.model.load import CompletionLogProbs

FOLDER = "reference"  # inside a checkpoint, where the reference has moved


class Reference:
    """Log-probs under a frozen model."""

    def __init__(
        self, model: PreTrainedModel, accelerator: Accelerator, *, temperature: float, batching: Batching
    ) -> None:
        self.model = model
        self.accelerator = accelerator
        self.batching = batching
        self.scorer = CompletionLogProbs(model, temperature).to(accelerator.device).requires_grad_(False).eval()

    def logprobs(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Log-probs [n] of each sample's completion."""
        return completion_logprobs(self.scorer, samples, self.batching, self.accelerator)

    def refresh(self, policy: PreTrainedModel) -> None:
        """Take over the policy's weights."""
        self.model.load_state_dict(policy.state_dict())

    def save(self, checkpoint: Path) -> None:
        """Write a Hugging Face folder into the checkpoint. Main process only."""
        self.model.save_pretrained(checkpoint / FOLDER)
