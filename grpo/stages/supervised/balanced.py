"""TRL's SFTTrainer with this toolkit's AdamW and what DeepSeek-V3 adds to it: for mixtures of experts, two balancing
rules and loads; multi-token prediction.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from trl.trainer.sft_trainer import SFTTrainer

from grpo.learner.optim import adamw
from grpo.model.forward.mtp import drafts_of_labels, mtp_layer
from grpo.model.moe import Routes, moe_layers, record_routes, sequence_balance_loss, update_balance_bias
from grpo.recipe.stages.sft import MTPConfig, SFTTrainerConfig


class BalancedTrainer(SFTTrainer):
    """The caller trains inside `recording`, and calls `balance` before each optimizer step.

    batches: rows of every micro-batch, as `training_batches` returns them. mtp: how the model's multi-token prediction
    is trained with it; None: it has none.
    """

    def __init__(
        self, settings: SFTTrainerConfig, batches: list[list[int]], mtp: MTPConfig | None = None, **keywords: Any
    ) -> None:
        self.settings = settings
        self.batches = batches
        self.mtp = mtp
        self.routes, self.mtp_routes = Routes(), Routes()
        self.loads: Tensor | None = None  # [layers, E], of this process since the last optimizer step
        super().__init__(**keywords)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the experts that tokens take."""
        model = self.accelerator.unwrap_model(self.model)
        layer = mtp_layer(model)
        own = nullcontext(Routes()) if layer is None else record_routes(layer)
        with record_routes(model) as self.routes, own as self.mtp_routes:
            yield

    def get_train_dataloader(self) -> DataLoader:
        """The given batches; each process reads every world-th."""
        assert isinstance(self.train_dataset, Dataset)
        columns = ["input_ids", "labels"]
        if self.mtp is not None and "seq_lengths" in self.train_dataset.column_names:
            columns.append("seq_lengths")
        rows: Any = self.train_dataset.select_columns(columns)
        loader = DataLoader(rows, batch_sampler=self.batches, collate_fn=self._collate)
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
        """The loss of a micro-batch: SFTTrainer's, plus multi-token prediction and the sequence-wise balance loss."""
        mask = inputs["attention_mask"]
        mtp_labels = inputs.pop("mtp_labels", inputs["labels"])
        if self.mtp is None:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        else:
            with self._hidden() as hidden:
                loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            loss = loss + self._mtp_loss(hidden[0], inputs, mtp_labels, num_items_in_batch)
        with_next = torch.nn.functional.pad(mask[:, 1:], (0, 1))
        recorded = [(r, m) for r, m in ((self.routes, mask), (self.mtp_routes, with_next)) if r.indices]
        if not recorded:
            return loss
        counts = torch.cat([routes.counts(where) for routes, where in recorded])
        self.loads = counts if self.loads is None else self.loads + counts
        if alpha := self.settings.sequence_balance_coefficient:
            rows = torch.arange(len(mask), device=mask.device)[:, None].expand(mask.shape)
            for routes, where in recorded:
                sequences = rows.where(where.bool(), -1).flatten()
                for scores, indices in zip(routes.scores, routes.indices, strict=True):
                    balance = sequence_balance_loss(scores, indices.shape[-1], sequences, alpha).mean()
                    loss = loss + balance / self.args.gradient_accumulation_steps
        return loss

    @contextmanager
    def _hidden(self) -> Iterator[list[Tensor]]:
        """The trunk's last hidden states [B, L, H] of the forward inside the block, with gradient."""
        kept: list[Tensor] = []
        base: Any = self.accelerator.unwrap_model(self.model).base_model
        handle = base.register_forward_hook(lambda _module, _args, output: kept.append(output.last_hidden_state))
        try:
            yield kept
        finally:
            handle.remove()

    def _mtp_loss(self, hidden: Tensor, inputs: dict[str, Any], labels: Tensor, num_items_in_batch: Any) -> Tensor:
        """lambda times the module's loss, over the same number of tokens as the trunk's (2412.19437, eq. 24-25)."""
        assert self.mtp is not None
        step, model = self.state.global_step, self.accelerator.unwrap_model(self.model)
        with self.accelerator.autocast():
            drafts = drafts_of_labels(model, inputs["input_ids"], hidden, labels, inputs["attention_mask"])
            loss = drafts.loss()
        measured = {"mtp/loss": loss.detach()}
        if (step + 1) % self.settings.logging_steps == 0:
            with self.accelerator.autocast():
                measured["mtp/greedy_acceptance"], measured["mtp/acceptance"] = drafts.acceptance()
        count = loss.new_tensor(len(drafts.targets))
        sums: Any = self.accelerator.reduce(torch.stack([*measured.values(), count]), "sum")
        for name, total in zip(measured, sums[:-1].tolist(), strict=True):
            self._metrics["train"][name].append(total / max(1.0, sums[-1].item()))
        num_tokens: Any = num_items_in_batch
        if num_tokens is None:
            num_tokens = (inputs["labels"][:, 1:] != -100).sum()
        elif self.args.average_tokens_across_devices:  # then a sum over all processes, whose gradients DDP averages
            loss = loss * self.accelerator.num_processes
        return self.mtp.at(step) * loss / max(1, int(num_tokens))

    def _collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = self.data_collator(list(examples))
        if "seq_lengths" in examples[0]:
            batch["mtp_labels"] = within_samples(batch["labels"], [row["seq_lengths"] for row in examples])
        return batch

    def balance(self) -> Tensor | None:
        """Move the balance bias by the loads of all processes since the last optimizer step; returns them."""
        if self.loads is None:
            return None
        loads: Any = self.accelerator.reduce(self.loads, "sum")
        self.loads = None
        if gamma := self.settings.balance_bias_update_speed:
            model = self.accelerator.unwrap_model(self.model)
            trunk = len(moe_layers(model))
            update_balance_bias(model, loads[:trunk], gamma)
            if (layer := mtp_layer(model)) is not None:
                update_balance_bias(layer, loads[trunk:], gamma)
        return loads


def within_samples(labels: Tensor, seq_lengths: Sequence[Sequence[int]]) -> Tensor:
    """Labels [B, L] of packed rows without the first two tokens of every sample, which others lie two before.

    seq_lengths: of the samples in each row.
    """
    inside = labels.clone()
    for row, lengths in zip(inside, seq_lengths, strict=True):
        end = 0
        for length in lengths:
            row[end : end + 2] = -100
            end += length
    return inside
