"""The policy: its weights, log-probs and optimizer. accelerate lives here.

Runs on one process or data-parallel on many (DDP). Sharded training (FSDP, DeepSpeed) is refused, not pretended.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, get_scheduler

from grpo.algorithm.loss import LossOutput
from grpo.learner.batch import MicroBatch, Sample, collate, pack
from grpo.learner.head import token_logprobs
from grpo.learner.moe import moe_layers, record_routes, update_balance_bias
from grpo.learner.weights import checkpoint_weights
from grpo.recipe.config import GRPORecipe, ModelConfig, TrainerConfig
from grpo.report.metrics import ExpertLoad, Mean, Metric, Sum, merge

REFERENCE = "reference"
LossFunction = Callable[[Tensor, MicroBatch], LossOutput]


def load_model(config: ModelConfig, path: str | Path | None = None) -> PreTrainedModel:
    """A causal language model with float log-probs that `token_logprobs` can compute."""
    model = AutoModelForCausalLM.from_pretrained(
        path or config.model_name_or_path,
        revision=None if path else config.revision,
        dtype=getattr(torch, config.dtype),
        attn_implementation=config.attn_implementation,
        trust_remote_code=config.trust_remote_code,
    )
    if moe_layers(model):
        model.set_experts_implementation(config.experts_implementation)
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(model.config, name, None) not in (None, 1.0):
            raise ValueError(
                f"{config.model_name_or_path} sets {name}={getattr(model.config, name)}: the policy computes log-probs "
                "from a plain linear head. Choose a model without it."
            )
    return model


class CompletionLogProbs(nn.Module):
    """A causal language model seen as a function from token rows to log-probs of the sampled tokens.

    One module with one forward, so that DDP sees the whole computation.
    """

    def __init__(self, model: PreTrainedModel, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, input_ids: Tensor, position_ids: Tensor, logit_positions: Tensor, targets: Tensor) -> tuple:
        """logprobs [T] with gradient and entropy [T]; see `MicroBatch` for the shapes."""
        hidden = self.model.base_model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False
        ).last_hidden_state.flatten(0, 1)
        head: Any = self.model.get_output_embeddings()
        return token_logprobs(hidden[logit_positions], head.weight, targets, self.temperature)


class Policy:
    """Model, reference and optimizer of a run."""

    def __init__(
        self, recipe: GRPORecipe, accelerator: Accelerator, *, pad_token_id: int, checkpoint: Path | None = None
    ) -> None:
        if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError(
                f"accelerate was configured for {accelerator.distributed_type.value}: only one process or "
                "data-parallel processes are supported. Launch with `--multi_gpu` or without sharding."
            )
        self.accelerator = accelerator
        self.config = recipe.trainer
        self.pad_token_id = pad_token_id
        self.model = load_model(recipe.model, checkpoint)
        self.packed = (self.model.config._attn_implementation or "").startswith("flash")
        if recipe.trainer.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        scorer = CompletionLogProbs(self.model, recipe.rollout.temperature)
        optimizer = _adamw(self.model, recipe.trainer)
        self.scorer: nn.Module
        self.scorer, self.optimizer = accelerator.prepare(scorer.train(), optimizer)
        self.scheduler = get_scheduler(
            recipe.trainer.lr_scheduler_type, optimizer, recipe.trainer.warmup_steps, recipe.trainer.max_steps
        )
        self.is_moe = bool(moe_layers(self.model))
        self.balance_bias_update_speed = recipe.model.balance_bias_update_speed
        self.reference: CompletionLogProbs | None = None
        if recipe.algorithm.beta > 0:
            kept = checkpoint / REFERENCE if checkpoint else None
            reference = load_model(recipe.model, kept if kept and kept.exists() else None)
            scorer = CompletionLogProbs(reference, recipe.rollout.temperature)
            self.reference = scorer.to(accelerator.device).requires_grad_(False).eval()
        self.reference_moves = recipe.algorithm.ref_model_sync_steps > 0
        accelerator.register_for_checkpointing(self.scheduler)
        # The weights are in the checkpoint as a Hugging Face folder; accelerate keeps the rest.
        accelerator.register_save_state_pre_hook(lambda _models, weights, _folder: weights.clear())
        accelerator.register_load_state_pre_hook(lambda models, _folder: models.clear())

    # -- log-probs

    @torch.no_grad()
    def logprobs(self, samples: Sequence[Sample], *, reference: bool = False) -> list[np.ndarray]:
        """Log-probs [tokens] of each sample's completion under the policy, or the reference."""
        scorer = self.reference if reference else self.accelerator.unwrap_model(self.scorer)
        assert scorer is not None
        results: list[np.ndarray] = [np.empty(0)] * len(samples)
        with self.accelerator.autocast():
            for indices in self._pack(samples):
                part = [samples[i] for i in indices]
                flat = self._forward(scorer, self._collate(part))[0].float().cpu().numpy()
                pieces = np.split(flat, np.cumsum([len(s.completion_ids) for s in part])[:-1])
                for i, piece in zip(indices, pieces, strict=True):
                    results[i] = piece
        return results

    # -- learning

    def update(self, samples: Sequence[Sample], loss_function: LossFunction) -> dict[str, Metric]:
        """One optimizer step on the samples of one mini-batch. The loss is a sum over all processes' tokens."""
        self.optimizer.zero_grad()
        batches = [[samples[i] for i in indices] for indices in self._pack(samples)]
        # Processes step together: those with fewer micro-batches join in with empty ones.
        count = max(1, *gather_object([len(batches)]))
        batches += [[]] * (count - len(batches))
        metrics: list[dict[str, Metric]] = []
        for index, part in enumerate(batches):
            with nullcontext() if index == count - 1 else self.accelerator.no_sync(self.scorer):
                metrics.append(self._accumulate(self._collate(part), loss_function))
        merged = merge(metrics)
        if self.balance_bias_update_speed:
            update_balance_bias(self.model, self._global_load(merged["moe/load"]), self.balance_bias_update_speed)
        norm: Any = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        merged |= {"grad_norm": Mean(float(norm)), "learning_rate": Mean(float(self.scheduler.get_last_lr()[0]))}
        self.optimizer.step()
        self.scheduler.step()
        return merged

    def _accumulate(self, batch: MicroBatch, loss_function: LossFunction) -> dict[str, Metric]:
        """Forward and backward of one micro-batch."""
        # Open until after the backward: gradient checkpointing runs the layers again and must find the same hooks.
        with record_routes(self.model) if self.is_moe else nullcontext() as routes:
            logprobs, entropy = self._forward(self.scorer, batch)
            output = loss_function(logprobs, batch)
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

    # -- weights

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All weights under their checkpoint names, for the engine."""
        return checkpoint_weights(self.model)

    def save(self, folder: Path) -> None:
        """Write the model, and a reference that has moved, as Hugging Face folders. Main process only."""
        self.model.save_pretrained(folder)
        if self.reference is not None and self.reference_moves:
            self.reference.model.save_pretrained(folder / REFERENCE)

    def refresh_reference(self) -> None:
        """Make the reference the newest policy."""
        assert self.reference is not None
        self.reference.model.load_state_dict(self.model.state_dict())

    # -- helpers

    def _pack(self, samples: Sequence[Sample]) -> list[list[int]]:
        return pack(samples, max_tokens=self.config.max_tokens_per_micro_batch, packed=self.packed)

    def _collate(self, samples: Sequence[Sample]) -> MicroBatch:
        return collate(samples, pad_token_id=self.pad_token_id, packed=self.packed).to(self.accelerator.device)

    @staticmethod
    def _forward(scorer: nn.Module, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        return scorer(batch.input_ids, batch.position_ids, batch.logit_positions, batch.targets)


def _adamw(model: PreTrainedModel, config: TrainerConfig) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only, as usual."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )
