"""TRL's SFTTrainer with this toolkit's AdamW and, for mixtures of experts, V3's two balancing rules and loads."""

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from trl.trainer.sft_trainer import SFTTrainer

from grpo.learner.optim import adamw
from grpo.model.moe import Routes, sequence_balance_loss, update_balance_bias
from grpo.recipe.stages.sft import SFTTrainerConfig


class BalancedTrainer(SFTTrainer):
    """The caller records `routes` around training and calls `balance` before each optimizer step.

    batches: rows of every micro-batch, as `training_batches` returns them.
    """

    def __init__(self, settings: SFTTrainerConfig, batches: list[list[int]], **keywords: Any) -> None:
        self.settings = settings
        self.batches = batches
        self.routes = Routes()
        self.loads: Tensor | None = None  # [layers, E], of this process since the last optimizer step
        super().__init__(**keywords)

    def get_train_dataloader(self) -> DataLoader:
        """The given batches; each process reads every world-th."""
        assert isinstance(self.train_dataset, Dataset)
        rows = self.train_dataset.select_columns(["input_ids", "labels"])
        loader = DataLoader(rows, batch_sampler=self.batches, collate_fn=self.data_collator)  # type: ignore[arg-type]
        return self.accelerator.prepare_data_loader(loader)

    def create_optimizer(self, _model: Any = None) -> torch.optim.Optimizer:
        """AdamW of every stage."""
        assert self.model is not None
        self.optimizer = adamw(self.model, self.settings)
        return self.optimizer

    def _load_from_checkpoint(self, *_args: Any, **_keywords: Any) -> None:
        """Nothing: the caller loads a checkpoint's weights. transformers' trainer misses fused experts."""

    def create_model_card(self, *_args: Any, **_keywords: Any) -> None:
        """Nothing: it would replace the README of the folder."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a micro-batch: SFTTrainer's, plus the sequence-wise balance loss."""
        mask = inputs["attention_mask"]
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not self.routes.indices:
            return loss
        counts = self.routes.counts(mask)
        self.loads = counts if self.loads is None else self.loads + counts
        if alpha := self.settings.sequence_balance_coefficient:
            rows = torch.arange(len(mask), device=mask.device)[:, None].expand(mask.shape)
            sequences = rows.where(mask.bool(), -1).flatten()
            for scores, indices in zip(self.routes.scores, self.routes.indices, strict=True):
                balance = sequence_balance_loss(scores, indices, sequences, alpha).mean()
                loss = loss + balance / self.args.gradient_accumulation_steps
        return loss

    def balance(self) -> Tensor | None:
        """Move the balance bias by the loads of all processes since the last optimizer step; returns them."""
        if self.loads is None:
            return None
        loads: Any = self.accelerator.reduce(self.loads, "sum")
        self.loads = None
        if gamma := self.settings.balance_bias_update_speed:
            update_balance_bias(self.accelerator.unwrap_model(self.model), loads, gamma)
        return loads
