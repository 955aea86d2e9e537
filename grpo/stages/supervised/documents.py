"""Documents as batches of tokens: what pretraining reads.

    documents -> rows of token ids -> batches of similar length under a token budget

Sharded over processes by document. Left out: packing several documents into a row.
"""

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo.recipe.stages.pretrain import PretrainData
from rollout.support.loading import load_object

TokenRow = tuple[list[int], int]  # token ids, and how many leading ones are not predicted
_SORTED_BATCHES = 16  # batches cut at once from rows sorted by length: more means less padding and less mixing


def rows(
    section: PretrainData, tokenizer: PreTrainedTokenizerBase, seed: int, base_dir: Path, rank: int, world: int
) -> Iterator[TokenRow]:
    """This process's share of the documents as token ids: every world-th, from the rank-th on."""
    if ".py:" in section.source:
        documents = load_object(section.source, kind="data.source", base_dir=base_dir)(seed, **section.options)
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


def batches(rows: Iterator[TokenRow], budget: int, pad: int, seed: int) -> Iterator[dict[str, Tensor]]:
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


def _chunks(rows: Iterator[TokenRow], tokens: int) -> Iterator[list[TokenRow]]:
    """Runs of rows of so many tokens together."""
    chunk, size = [], 0
    for row in rows:
        chunk.append(row)
        size += len(row[0])
        if size >= tokens:
            yield chunk
            chunk, size = [], 0


def _collate(batch: list[TokenRow], pad: int) -> dict[str, Tensor]:
    """[B, T] each, padded on the right; labels are -100 where nothing is learnt."""
    width = max(len(ids) for ids, _ in batch)
    return {
        "input_ids": torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in batch]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch]),
        "labels": torch.tensor([[-100] * lead + ids[lead:] + [-100] * (width - len(ids)) for ids, lead in batch]),
    }
