"""Stage `pretrain`: next-token prediction from scratch, or from a checkpoint, on generated or stored documents.

    documents -> batches of tokens -> loss -> balance bias -> AdamW -> folder

Each process holds the whole model and reads its share of the documents. Left out: resuming (the stage takes minutes),
tensor or expert parallelism, multi-token prediction.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from grpo.learner.optim import adamw
from grpo.learner.savable import check_saving
from grpo.model.moe import Routes, load_metrics, moe_layers, record_routes, sequence_balance_loss, update_balance_bias
from grpo.recipe.stages.pretrain import PretrainModel, PretrainRecipe, PretrainTrainer
from grpo.stages.supervised.documents import batches, rows
from rollout.engines.base import load_tokenizer
from rollout.support.loading import load_object


def run_pretrain(recipe: PretrainRecipe) -> Path:
    """Train, and write a folder that AutoModelForCausalLM and vLLM open, with metrics.jsonl beside the weights."""
    settings, output = recipe.trainer, Path(recipe.trainer.output_dir)
    accelerator = Accelerator()
    set_seed(settings.seed)
    tokenizer, model = _load(recipe.model, Path(recipe.base_dir))
    check_saving(model, tokenizer, output, copies=1)
    optimizer = adamw(model, settings)
    rank, world = accelerator.process_index, accelerator.num_processes
    documents = rows(recipe.data, tokenizer, settings.seed, Path(recipe.base_dir), rank, world)
    pad: Any = tokenizer.pad_token_id or 0
    stream = batches(documents, settings.max_tokens_per_batch, pad, settings.seed)
    model, optimizer = accelerator.prepare(model, optimizer)
    model.train()

    output.mkdir(parents=True, exist_ok=True)
    log = _Log(accelerator, output / "metrics.jsonl", settings)
    with record_routes(model) as routes:
        for step in range(settings.max_steps):
            batch = {k: v.to(accelerator.device) for k, v in next(stream).items()}
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * lr_factor(step, settings)
            metrics = train_step(accelerator, model, optimizer, routes, batch, settings)
            log(step + 1, metrics, optimizer.param_groups[0]["lr"])
            if settings.save_steps and (step + 1) % settings.save_steps == 0:
                _save(accelerator, model, tokenizer, output / f"checkpoint-{step + 1}")
    _save(accelerator, model, tokenizer, output)
    return output


def train_step(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: Any,
    routes: Routes,
    batch: dict[str, Tensor],
    settings: PretrainTrainer,
) -> dict[str, Tensor]:
    """One optimizer step. The loss is the mean over the targets of all processes, however they are spread."""
    mask = batch["attention_mask"]
    targets = batch["labels"][:, 1:]
    # No attention mask: padding stands on the right, where no target can see it, and plain causal attention is faster.
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1]
    learnt = targets != -100
    nll = cross_entropy(logits[learnt].float(), targets[learnt], reduction="sum")
    count: Any = accelerator.reduce(learnt.sum(), "sum")
    loss = nll * accelerator.num_processes / count  # gradients are averaged over processes
    if routes.indices and settings.sequence_balance_coefficient:
        alpha = settings.sequence_balance_coefficient
        for scores, indices in zip(routes.scores, routes.indices, strict=True):
            scores, indices = scores.view(*mask.shape, -1), indices.view(*mask.shape, -1)
            loss = loss + sequence_balance_loss(scores, indices, mask, alpha)
    accelerator.backward(loss)
    total: Any = accelerator.reduce(nll.detach(), "sum")
    metrics: dict[str, Any] = {"loss": total / count, "tokens": accelerator.reduce(mask.sum(), "sum")}
    if routes.indices:
        counts: Any = accelerator.reduce(routes.counts(mask), "sum")
        metrics["counts"] = counts
        update_balance_bias(accelerator.unwrap_model(model), counts, settings.balance_bias_update_speed)
    metrics["grad_norm"] = accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return metrics


def _save(accelerator: Accelerator, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    accelerator.wait_for_everyone()


def lr_factor(step: int, settings: PretrainTrainer) -> float:
    """Share of the peak learning rate: linear warm-up, plateau, then cosine or linear decay to zero."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    decay_steps = max(1.0, settings.decay_fraction * (settings.max_steps - settings.warmup_steps))
    left = min(1.0, (settings.max_steps - step) / decay_steps)
    return left if settings.decay == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)


def _load(section: PretrainModel, base_dir: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    source = section.tokenizer or section.model_name_or_path
    assert source
    if ".py:" in source:
        tokenizer = load_object(source, kind="model.tokenizer", base_dir=base_dir)()
    else:
        tokenizer = load_tokenizer(source, revision=None, trust_remote_code=False)
    if section.model_name_or_path:
        model = AutoModelForCausalLM.from_pretrained(section.model_name_or_path, dtype=torch.float32)
    else:
        ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
        config = AutoConfig.for_model(**{"vocab_size": len(tokenizer), **ids, **section.config})
        if config.vocab_size < len(tokenizer):
            raise ValueError(
                f"config.vocab_size={config.vocab_size}: the tokenizer has {len(tokenizer)} entries. Raise it."
            )
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if moe_layers(model):
        model.set_experts_implementation(section.experts_implementation)
    return tokenizer, model


class _Log:
    """Lines of progress and metrics.jsonl: means since the last line."""

    def __init__(self, accelerator: Accelerator, path: Path, settings: PretrainTrainer) -> None:
        self.accelerator, self.path, self.settings = accelerator, path, settings
        self.start = self.last = time.perf_counter()
        self.window: list[dict[str, Tensor]] = []
        self.tokens = 0
        if accelerator.is_main_process:
            path.write_text("")

    def __call__(self, step: int, metrics: dict[str, Tensor], learning_rate: float) -> None:
        self.window.append(metrics)
        if step % self.settings.logging_steps and step != self.settings.max_steps:
            return
        now, tokens = time.perf_counter(), int(sum(m["tokens"] for m in self.window))
        self.tokens += tokens
        line = {"step": step, "num_tokens": self.tokens, "learning_rate": learning_rate}
        line |= {k: float(sum(m[k] for m in self.window)) / len(self.window) for k in ("loss", "grad_norm")}
        if "counts" in metrics:
            line |= load_metrics(torch.stack([m["counts"] for m in self.window]).sum(0))
        line |= {"tokens_per_second": tokens / (now - self.last), "minutes": (now - self.start) / 60}
        self.window, self.last = [], now
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(
                "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()), flush=True
            )
