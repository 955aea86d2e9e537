"""The reference model: a frozen policy that the KL term compares with. Exists only when there is such a term."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from grpo.learner.batch import Sample
from grpo.learner.scoring import Batching, completion_logprobs
from grpo.model.load import CompletionLogProbs
from grpo.model.sharding import shard
from grpo.model.weights import save_model

FOLDER = "reference"  # inside a checkpoint, where the reference has moved


class Reference:
    """Log-probs under a frozen model, which is sharded over the processes of `mesh` if there is one."""

    def __init__(
        self,
        model: PreTrainedModel,
        accelerator: Accelerator,
        *,
        temperature: float,
        batching: Batching,
        mesh: DeviceMesh | None = None,
    ) -> None:
        self.model = model
        self.accelerator = accelerator
        self.batching = batching
        scorer = CompletionLogProbs(model, temperature).requires_grad_(False).eval()
        self.scorer = scorer.to(accelerator.device) if mesh is None else shard(scorer, model, mesh)

    def logprobs(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Log-probs [n] of each sample's completion."""
        return completion_logprobs(self.scorer, samples, self.batching, self.accelerator)

    def refresh(self, policy: PreTrainedModel) -> None:
        """Take over the weights of the policy, which is sharded as the reference is."""
        self.model.load_state_dict(policy.state_dict())

    def save(self, checkpoint: Path) -> None:
        """Write a Hugging Face folder into the checkpoint. All processes call it, the main one writes."""
        save_model(self.model, checkpoint / FOLDER, is_writer=self.accelerator.is_main_process)
