"""The policy: its weights, log-probs and optimizer steps.

Runs in one process or data-parallel in many (DDP). Sharded training (FSDP, DeepSpeed) is refused, not pretended.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel, get_scheduler

from grpo.algorithm.loss import LossOutput
from grpo.learner.batch import MicroBatch, Sample
from grpo.learner.optim import adamw
from grpo.learner.scoring import Batching, completion_logprobs, forward
from grpo.model.load import CompletionLogProbs
from grpo.model.moe import moe_layers, record_routes, update_balance_bias
from grpo.model.weights import checkpoint_weights
from grpo.recipe.config import OptimizerConfig
from grpo.recipe.errors import NonFiniteError
from grpo.report.metrics import ExpertLoad, Mean, Metric, Sum, merge

# (logprobs, batch); where the batch has a target also (…, divergence, teacher_logprobs), see CompletionLogProbs.forward
LossFunction = Callable[..., LossOutput]
WEIGHTS_WATCHED = 64  # entries per tensor in metric weight_change


class Policy:
    """A model that learns.

    Args:
        model: as `load_model` returns it; trained in place.
        optimizer: AdamW, its schedule and the gradient norm.
        max_steps: optimizer steps that the schedule spans.
        temperature: at which completions are sampled, and so the one that log-probs are computed at.
        batching: how samples become micro-batches.
        balance_bias_update_speed: gamma of 2408.15664 for the experts' bias; 0 freezes it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        optimizer: OptimizerConfig,
        accelerator: Accelerator,
        *,
        max_steps: int,
        temperature: float,
        batching: Batching,
        balance_bias_update_speed: float = 0.0,
    ) -> None:
        if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError(
                f"accelerate was configured for {accelerator.distributed_type.value}: only one process or "
                "data-parallel processes are supported. Launch with `--multi_gpu` or without sharding."
            )
        self.accelerator = accelerator
        self.model = model
        self.batching = batching
        self.max_grad_norm = optimizer.max_grad_norm
        self.balance_bias_update_speed = balance_bias_update_speed
        self.is_moe = bool(moe_layers(model))
        adam = adamw(model, optimizer)
        self.scorer: nn.Module
        self.scorer, self.optimizer = accelerator.prepare(CompletionLogProbs(model, temperature).train(), adam)
        self.scheduler = get_scheduler(optimizer.lr_scheduler_type, adam, optimizer.warmup_steps, max_steps)
        accelerator.register_for_checkpointing(self.scheduler)
        # The weights are in the checkpoint as a Hugging Face folder; accelerate keeps the rest.
        accelerator.register_save_state_pre_hook(lambda _models, weights, _folder: weights.clear())
        accelerator.register_load_state_pre_hook(lambda models, _folder: models.clear())

    def logprobs(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Log-probs [n] of each sample's completion, without gradient."""
        scorer = self.accelerator.unwrap_model(self.scorer)
        return completion_logprobs(scorer, samples, self.batching, self.accelerator)

    def update(self, samples: Sequence[Sample], loss_function: LossFunction) -> dict[str, Metric]:
        """One optimizer step on the samples of one mini-batch. The loss is a sum over all processes' tokens."""
        self.optimizer.zero_grad()
        batches = [[samples[i] for i in indices] for indices in self.batching.split(samples)]
        # Processes step together: those with fewer micro-batches join in with empty ones.
        count = max(1, *gather_object([len(batches)]))
        batches += [[]] * (count - len(batches))
        metrics: list[dict[str, Metric]] = []
        for index, part in enumerate(batches):
            with nullcontext() if index == count - 1 else self.accelerator.no_sync(self.scorer):
                batch = self.batching.collate(part, self.accelerator.device)
                metrics.append(self._accumulate(batch, loss_function))
            if not math.isfinite(loss := metrics[-1]["loss"].value):  # type: ignore[arg-type]
                raise NonFiniteError(
                    f"micro-batch {index + 1} of {count}: the loss is {loss}. {_suspect(batch)}"
                    f"Its samples: {', '.join(s.problem_id for s in part[:5])}{', …' if len(part) > 5 else ''}."
                )
        merged = merge(metrics)
        if self.balance_bias_update_speed:
            update_balance_bias(self.model, self._global_load(merged["moe/load"]), self.balance_bias_update_speed)
        norm: Any = self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        if not math.isfinite(norm):
            names = [n for n, p in self.model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
            raise NonFiniteError(
                f"the gradient is not finite in {len(names)} parameters ({', '.join(names[:3])}) while the loss of all "
                f"{count} micro-batches is. Its norm is {float(norm)}; the learning rate {self.learning_rate:g}."
            )
        merged |= {"grad_norm": Mean(float(norm)), "learning_rate": Mean(self.learning_rate)}
        before = self._some_weights()
        self.optimizer.step()
        merged["weight_change"] = Mean(float((self._some_weights() - before).norm() / before.norm()))
        self.scheduler.step()
        return merged

    @property
    def learning_rate(self) -> float:
        """Of the next optimizer step."""
        return float(self.scheduler.get_last_lr()[0])

    @torch.no_grad()
    def _some_weights(self) -> Tensor:
        """Evenly spaced entries of every trained tensor, at most WEIGHTS_WATCHED of each."""
        flat = [p.flatten() for p in self.model.parameters() if p.requires_grad]
        return torch.cat([p[:: -(-p.numel() // WEIGHTS_WATCHED)] for p in flat]).float()

    def _accumulate(self, batch: MicroBatch, loss_function: LossFunction) -> dict[str, Metric]:
        """Forward and backward of one micro-batch."""
        # Open until after the backward: gradient checkpointing runs the layers again and must find the same hooks.
        with record_routes(self.model) if self.is_moe else nullcontext() as routes:
            logprobs, entropy, *against_teacher = forward(self.scorer, batch)
            output = loss_function(logprobs, batch, *against_teacher)
            # DDP averages gradients over processes; the loss is normalised over all of them, so the sum is wanted.
            self.accelerator.backward(output.loss * self.accelerator.num_processes)
        metrics: dict[str, Metric] = {
            **output.metrics,
            "loss": Sum(output.loss.item()),
            "entropy": Mean(float(entropy.sum()), entropy.numel()),
        }
        if routes is not None:
            metrics["moe/load"] = ExpertLoad(routes.counts(batch.valid).cpu().numpy())
        return metrics

    def _global_load(self, load: Metric) -> Tensor:
        """Tokens per layer and expert, over all processes: [layers, experts]."""
        assert isinstance(load, ExpertLoad)
        counts = torch.from_numpy(load.counts).to(self.accelerator.device)
        return self.accelerator.reduce(counts, "sum")  # type: ignore[return-value]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All weights under their checkpoint names, for a publisher."""
        return checkpoint_weights(self.model)

    def save(self, folder: Path) -> None:
        """Write the model as a Hugging Face folder. Main process only."""
        self.model.save_pretrained(folder)


def _suspect(batch: MicroBatch) -> str:
    """Which of the loss's inputs is already not finite, as a sentence, or nothing."""
    inputs = {"advantages": batch.advantages, "old log-probs": batch.old_logprobs, "reference": batch.ref_logprobs}
    bad = [name for name, tensor in inputs.items() if tensor is not None and not tensor.isfinite().all()]
    return f"Its {', '.join(bad)} are not finite. " if bad else "Its inputs are finite: the weights have diverged. "
