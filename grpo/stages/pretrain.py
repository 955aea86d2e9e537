"""Stage `pretrain`: next-token prediction from nothing, or from a folder, on generated or stored documents.

    documents -> tokens -> batches of like length under a token budget -> loss -> balance bias -> AdamW -> folder

Sharded over processes by document; each process holds the whole model. Left out: resuming (a stage of minutes is run
again), packing several documents into a row, tensor or expert parallelism, multi-token prediction.
"""

import importlib.util
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from grpo.learner.moe import Routes, load_metrics, moe_layers, record_routes, sequence_balance_loss, update_balance_bias
from grpo.recipe.config import Fraction, Section

Row = tuple[list[int], int]  # token ids, and how many of them lead in: predicted by nobody
_SORTED_BATCHES = 16  # batches cut at once from rows sorted by length: more means less padding and less mixing


class PretrainModel(Section):
    """The model: a folder to continue from, or the keys of a configuration to start from nothing."""

    model_name_or_path: str | None = None
    config: dict[str, Any] = {}  # with model_type; vocabulary and special tokens come from the tokenizer
    tokenizer: str | None = None  # folder, Hub name or file.py:function; None: model_name_or_path's
    experts_implementation: str = "grouped_mm"  # MoE only

    @model_validator(mode="after")
    def _one_source(self) -> "PretrainModel":
        if (self.model_name_or_path is None) == (not self.config):
            raise ValueError("give exactly one of model_name_or_path (to continue) and config (to start from nothing)")
        if self.config and not ("model_type" in self.config and self.tokenizer):
            raise ValueError("a model from nothing needs config.model_type and a tokenizer")
        return self


class PretrainData(Section):
    """Documents: {"text"}, or {"prompt", "completion"} where the prompt shall not be learnt."""

    source: str  # file.py:function(seed, **options) that yields documents, a Hub name, or a .jsonl/.parquet/.txt file
    options: dict[str, Any] = {}
    dataset_split: str = "train"
    columns: dict[str, str] = {}  # ours -> theirs, e.g. {text: content}
    train_on_prompt: bool = False
    max_length: PositiveInt = 256  # tokens; longer documents are cut


class PretrainTrainer(Section):
    """AdamW with warm-up, a plateau and a decay to zero (decay_fraction 1: from the start)."""

    output_dir: str = "runs/pretrain"
    max_steps: PositiveInt = 1000
    max_tokens_per_batch: PositiveInt = 4096  # per process, padding included
    learning_rate: PositiveFloat = 1e-3
    warmup_steps: NonNegativeInt = 100
    decay: Literal["cosine", "linear"] = "linear"
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    weight_decay: NonNegativeFloat = 0.1
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.95
    max_grad_norm: PositiveFloat = 1.0
    balance_bias_update_speed: NonNegativeFloat = 0.001  # gamma; V3: 0.001
    sequence_balance_coefficient: NonNegativeFloat = 1e-4  # alpha; V3: 1e-4
    seed: NonNegativeInt = 42
    logging_steps: PositiveInt = 50
    save_steps: NonNegativeInt = 0  # also write output_dir/checkpoint-<step> every so many steps; 0: the end alone


class PretrainRecipe(Section):
    """A whole recipe of stage `pretrain`. `base_dir` is what relative `file.py:function` sources are found from."""

    stage: Literal["pretrain"]
    model: PretrainModel
    data: PretrainData
    trainer: PretrainTrainer = PretrainTrainer()
    base_dir: str = "."

    @property
    def output_dir(self) -> Path:
        return Path(self.trainer.output_dir)


def run_pretrain(recipe: PretrainRecipe) -> Path:
    """Train, and write a folder that AutoModelForCausalLM and vLLM open, with metrics.jsonl beside the weights."""
    settings, output = recipe.trainer, Path(recipe.trainer.output_dir)
    accelerator = Accelerator()
    set_seed(settings.seed)
    tokenizer, model = _load(recipe.model, Path(recipe.base_dir))
    optimizer = _optimizer(model, settings)
    rank, world = accelerator.process_index, accelerator.num_processes
    rows = _rows(recipe.data, tokenizer, settings.seed, Path(recipe.base_dir), rank, world)
    pad: Any = tokenizer.pad_token_id or 0
    batches = _batches(rows, settings.max_tokens_per_batch, pad, settings.seed)
    model, optimizer = accelerator.prepare(model, optimizer)
    model.train()

    output.mkdir(parents=True, exist_ok=True)
    log = _Log(accelerator, output / "metrics.jsonl", settings)
    with record_routes(model) as routes:
        for step in range(settings.max_steps):
            batch = {k: v.to(accelerator.device) for k, v in next(batches).items()}
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


def load_function(reference: str, base_dir: Path) -> Callable[..., Any]:
    """The function named by `path/to/file.py:function`; relative paths start at base_dir."""
    path, _, name = reference.rpartition(":")
    file = base_dir / path
    if not file.is_file():
        raise ValueError(f"{reference!r}: no file {file}. Write path/to/file.py:function, relative to the recipe.")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        raise ValueError(f"{reference!r}: {file.name} defines no {name!r}")
    return getattr(module, name)


def _load(section: PretrainModel, base_dir: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    source = section.tokenizer or section.model_name_or_path
    assert source
    tokenizer = load_function(source, base_dir)() if ".py:" in source else AutoTokenizer.from_pretrained(source)
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


def _optimizer(model: PreTrainedModel, settings: PretrainTrainer) -> torch.optim.AdamW:
    """Weight decay on matrices alone: norms and the embedding's scale are not over-fitting."""
    matrices = [p for n, p in model.named_parameters() if p.ndim > 1 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim <= 1 or "embed" in n]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=settings.learning_rate, betas=(settings.adam_beta1, settings.adam_beta2), fused=True
    )


def _rows(
    section: PretrainData, tokenizer: PreTrainedTokenizerBase, seed: int, base_dir: Path, rank: int, world: int
) -> Iterator[Row]:
    """This process's share of the documents as token ids: every world-th, from the rank-th on."""
    if ".py:" in section.source:
        documents = load_function(section.source, base_dir)(seed, **section.options)
    else:
        documents = _stored(section, seed)
    names = {ours: section.columns.get(ours, ours) for ours in ("text", "prompt", "completion")}
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    for document in islice(documents, rank, None, world):
        # Prompt and completion are tokenized apart, as they are in a rollout, so that the tokens are the same there.
        prompt = document.get(names["prompt"], "")
        text = document[names["completion"] if prompt else names["text"]]
        lead = bos + tokenizer.encode(prompt, add_special_tokens=False) if prompt else bos
        ids = [*lead, *tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id][: section.max_length]
        yield ids, 1 if section.train_on_prompt else len(lead)


def _stored(section: PretrainData, seed: int) -> Iterator[dict[str, Any]]:
    """The documents of a dataset for ever, in another order each epoch."""
    import datasets  # here, so that generated corpora need no datasets library

    suffix = Path(section.source).suffix.removeprefix(".").replace("jsonl", "json").replace("txt", "text")
    if suffix in ("json", "parquet", "text"):
        data = datasets.load_dataset(suffix, data_files=section.source, split="train")
    else:
        data = datasets.load_dataset(section.source, split=section.dataset_split, **section.options)
    needed = {section.columns.get("text", "text")}, {section.columns.get(c, c) for c in ("prompt", "completion")}
    if not any(names <= set(data.column_names) for names in needed):
        raise ValueError(
            f"data.source={section.source!r} has columns {data.column_names}, but text, or prompt and completion, are "
            "needed. Map them in data.columns."
        )
    epoch = 0
    while True:
        yield from map(dict, data.shuffle(seed=seed + epoch))
        epoch += 1


def _batches(rows: Iterator[Row], budget: int, pad: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Batches of rows of like length; rows times the longest row stays within the budget (a longer row goes alone)."""
    order = random.Random(seed)
    for chunk in _chunks(rows, budget * _SORTED_BATCHES):
        chunk.sort(key=lambda row: len(row[0]))
        cut, batch = [], []
        for row in chunk:
            if batch and len(row[0]) * (len(batch) + 1) > budget:
                cut.append(batch)
                batch = []
            batch.append(row)
        cut.append(batch)
        order.shuffle(cut)
        yield from (_collate(batch, pad) for batch in cut)


def _chunks(rows: Iterator[Row], tokens: int) -> Iterator[list[Row]]:
    """Runs of rows of so many tokens together."""
    chunk, size = [], 0
    for row in rows:
        chunk.append(row)
        size += len(row[0])
        if size >= tokens:
            yield chunk
            chunk, size = [], 0


def _collate(batch: list[Row], pad: int) -> dict[str, Tensor]:
    """[B, T] each, padded on the right; labels are -100 where nothing is learnt."""
    width = max(len(ids) for ids, _ in batch)
    return {
        "input_ids": torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in batch]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch]),
        "labels": torch.tensor([[-100] * lead + ids[lead:] + [-100] * (width - len(ids)) for ids, lead in batch]),
    }


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
