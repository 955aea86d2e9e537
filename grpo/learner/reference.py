"""The reference model: a frozen policy that the KL term compares with. Exists only when there is such a term."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from grpo.learner.batch import Sample
from grpo.learner.policy import Policy
from grpo.learner.scoring import Batching, completion_logprobs, compute_dtype
from grpo.model.adapters import base_only, holding, trained_weights
from grpo.model.load import CompletionLogProbs
from grpo.model.sharding import shard
from grpo.model.weights import save_model

FOLDER = "reference"  # inside a checkpoint, where the reference has moved


class Reference:
    """Log-probs under a frozen model, which is sharded over the processes of `mesh` if there is one.

    offload: its parts are in host memory.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        accelerator: Accelerator,
        *,
        temperature: float,
        batching: Batching,
        mesh: DeviceMesh | None = None,
        offload: bool = False,
    ) -> None:
        self.model = model
        self.accelerator = accelerator
        self.batching = batching.for_model(model, accelerator.device)
        scorer = CompletionLogProbs(model, temperature).requires_grad_(False).eval()
        if mesh is None:
            self.scorer = scorer.to(accelerator.device)
        else:
            self.scorer = shard(scorer, model, mesh, compute_dtype(accelerator), offload=offload)

    def set_temperature(self, temperature: float) -> None:
        """Compute log-probs at another temperature from now on."""
        self.scorer.set_temperature(temperature)

    def logprobs(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Log-probs [n] of each sample's completion."""
        return completion_logprobs(self.scorer, samples, self.batching, self.accelerator)

    def refresh(self, policy: PreTrainedModel) -> None:
        """Take over the weights of the policy, which is sharded as the reference is."""
        own = self.model.state_dict().keys()  # without a multi-token prediction
        self.model.load_state_dict({name: tensor for name, tensor in policy.state_dict().items() if name in own})

    def save(self, checkpoint: Path) -> None:
        """Write a Hugging Face folder into the checkpoint. All processes call it, the main one writes."""
        save_model(self.model, checkpoint / FOLDER, is_writer=self.accelerator.is_main_process)


class AdapterReference:
    """Log-probs under the policy's base, or under adapters it had before: no second model in memory.

    adapters: what the last refresh took over, or None while the reference is the base.
    """

    def __init__(self, policy: Policy, adapters: dict[str, Tensor] | None = None) -> None:
        self.policy = policy
        self.adapters = adapters

    def logprobs(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Log-probs [n] of each sample's completion."""
        model = self.policy.model
        model.eval()
        with base_only(model) if self.adapters is None else holding(model, self.adapters):
            found = self.policy.logprobs(samples, replay=False)
        model.train()
        return found

    def refresh(self, policy: PreTrainedModel) -> None:
        """Take over the policy's adapters."""
        self.adapters = trained_weights(policy)

    def save(self, checkpoint: Path) -> None:
        """Write its adapters into the checkpoint unless it still is the base. All call it, the main process writes."""
        if self.adapters is not None:
            with holding(self.policy.model, self.adapters):
                self.policy.save(checkpoint / FOLDER)
