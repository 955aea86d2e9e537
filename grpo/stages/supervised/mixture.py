"""What SFT reads: prompts and completions of several sources as tokens, mixed in exact proportions, in a fixed order.

    sources -> rows of tokens, too long ones left out -> row numbers of one epoch -> order of training

Everything follows from the seed. Left out: packing several rows into one.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from grpo.recipe.stages.sft import SFTData, SFTSource
from rollout.data.columns import UnusableRowError, column_names, resolve_columns, to_problem
from rollout.data.dataset import display_name, open_dataset
from rollout.data.prompts import Prompter
from rollout.support.loading import load_object
from rollout.types import Prompt

_TOKENS = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32")), "length": Value("int32")})
_WINDOW = 16  # batches cut at once from rows sorted by length: more means less padding and less mixing


def load_mixture(
    data: SFTData, tokenizer: PreTrainedTokenizerBase, *, seed: int, base_dir: Path
) -> tuple[Dataset, list[str]]:
    """One epoch's rows {"input_ids", "labels", "length"}, labels -100 in the prompt; and a line on each source.

    Raises:
        ValueError: a source is missing, empty, lacks a column, or has no row within max_length.
    """
    prompter = Prompter(
        tokenizer,
        template=data.template,
        system_prompt=data.system_prompt,
        chat_template_kwargs=data.chat_template_kwargs,
        max_prompt_length=data.max_length,
    )
    parts, left_out = [], []
    for source in data.sources:
        encoder = _Encoder(source, prompter, data.max_length)
        rows = _rows(source, seed, base_dir, data.max_rows)
        parts.append(encoder.encode(rows))
        left_out.append(encoder.describe_left_out())
    sizes = [len(part) for part in parts]
    weights = [source.weight for source in data.sources if source.weight is not None]
    chosen = mix(sizes, weights, max_rows=data.max_rows, seed=seed)
    used = Counter(_source_of(index, sizes) for index in chosen)
    lines = [
        f"data: {used[i]:,} rows per epoch from {_name(source)}, which has {sizes[i]:,} usable{left_out[i]}"
        for i, source in enumerate(data.sources)
    ]
    return concatenate_datasets(parts).select(chosen), lines


class _Encoder:
    """One source's rows as tokens, and why some of them are none."""

    def __init__(self, source: SFTSource, prompter: Prompter, max_length: int) -> None:
        self.source, self.prompter, self.max_length = source, prompter, max_length
        self.reasons: Counter[str] = Counter()
        self.example = ""
        self.lengths: list[int] = []  # of rows left out for their length

    def encode(self, rows: Dataset) -> Dataset:
        name, present = _name(self.source), column_names(rows.features)
        self.columns = resolve_columns(f"dataset {name!r}", present, self.source.columns)
        if "completion" not in self.columns and "completion" not in present:
            raise ValueError(
                f"dataset {name!r} has no column 'completion'. It has: {', '.join(present)}. Name the one with the "
                "text to learn: columns: {completion: answer}."
            )
        # Not from the cache: its key does not see changes in this code.
        encoded = rows.map(
            self._batch,
            batched=True,
            with_indices=True,
            remove_columns=rows.column_names,
            features=_TOKENS,
            load_from_cache_file=False,
        )
        if not len(encoded):
            lengths = f"; they have {min(self.lengths):,} to {max(self.lengths):,} tokens" if self.lengths else ""
            raise ValueError(
                f"dataset {name!r}: none of its {len(rows):,} rows can be used{self.describe_left_out()}{lengths}. "
                f"Raise data.max_length={self.max_length}, up to the model's context, or correct the rows."
            )
        return encoded

    def describe_left_out(self) -> str:
        """` (3 left out: 2 too long, 1 empty; x.jsonl/train/4: …)`, or nothing."""
        if not self.reasons:
            return ""
        counts = ", ".join(f"{count:,} {reason}" for reason, count in self.reasons.most_common())
        return f" ({self.reasons.total():,} left out: {counts}; {self.example.rstrip('.')})"

    def _batch(self, batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        problems, texts = [], []
        for index, *values in zip(indices, *batch.values(), strict=True):
            row = dict(zip(batch, values, strict=True))
            try:
                problem = to_problem(f"{_name(self.source)}/{index}", row, self.columns)
                texts.append(_completion(problem.id, problem.columns["completion"]))
                problems.append(problem)
            except UnusableRowError as error:
                self._leave_out(error)
        kept: dict[str, list[Any]] = {"input_ids": [], "labels": [], "length": []}
        if not problems:
            return kept
        eos = self.prompter.tokenizer.eos_token_id
        # Prompt and completion are tokenized apart, as they are in a rollout, so that the tokens are the same there.
        completions: Any = self.prompter.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for prompt, ids in zip(self.prompter.encode_batch(problems), completions, strict=True):
            completion = ids if ids[-1] == eos else [*ids, eos]
            if not isinstance(prompt, Prompt):
                self._leave_out(prompt)
            elif (length := len(prompt.token_ids) + len(completion)) > self.max_length:
                self.lengths.append(length)
                text = f"{prompt.problem.id}: {length:,} tokens, over max_length={self.max_length}"
                self._leave_out(UnusableRowError("too long", text))
            else:
                kept["input_ids"].append([*prompt.token_ids, *completion])
                kept["labels"].append([-100] * len(prompt.token_ids) + completion)
                kept["length"].append(length)
        return kept

    def _leave_out(self, error: UnusableRowError) -> None:
        self.example = self.example or str(error)
        self.reasons[error.reason] += 1


def _rows(source: SFTSource, seed: int, base_dir: Path, max_rows: int | None) -> Dataset:
    name = source.dataset_name
    if source.is_function:
        documents = load_object(name, kind="data.sources", base_dir=base_dir)(seed, **source.options)
        rows = Dataset.from_list(list(islice(documents, max_rows)))
    else:
        config, split = source.dataset_config, source.dataset_split
        rows = open_dataset(name, config=config, split=split, revision=None, files=(), streaming=False)
    if not len(rows):
        raise ValueError(f"dataset {name!r} has no rows. Name another one, or another dataset_split.")
    return rows


def _name(source: SFTSource) -> str:
    if source.is_function:
        path, _, function = source.dataset_name.rpartition(":")
        return f"{Path(path).name}:{function}"
    return f"{display_name(source.dataset_name)}/{source.dataset_split}"


def _completion(problem_id: str, text: Any) -> str:
    if text and isinstance(text, str):
        return text
    reason = "malformed" if text else "empty"
    raise UnusableRowError(reason, f"{problem_id}: the completion is {text!r:.80}; it must be a text")


def mix(sizes: Sequence[int], weights: Sequence[float], *, max_rows: int | None, seed: int) -> list[int]:
    """Numbers of the rows of one epoch, in the concatenation of sources with these sizes.

    Without weights every row comes once, or max_rows of them drawn at random. With weights the sources' shares are
    exact up to rounding, and a source that is too small for its share repeats its rows equally often, give or take one.
    """
    rng = random.Random(seed)
    if not weights:
        rows = list(range(sum(sizes)))
        rng.shuffle(rows)
        return rows[:max_rows]
    exact = [Fraction(str(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    total = max_rows or int(min(size / share for size, share in zip(sizes, shares, strict=True)))
    counts = [int(total * share) for share in shares]
    by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] - total * shares[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    chosen, start = [], 0
    for size, count in zip(sizes, counts, strict=True):
        chosen += [start + row for row in islice(_permutations(size, rng), count)]
        start += size
    return chosen


def training_order(lengths: Sequence[int], batch: int, seed: int) -> Iterator[int]:
    """Row numbers without end, `batch` of them per optimizer step, rows of like length together.

    Every epoch has each row once: windows that are sorted by length end with the epoch's last batch, which is filled up
    from the next epoch. The order does not depend on where training stops.
    """
    rng = random.Random(seed)
    rows, size, done = _permutations(len(lengths), rng), len(lengths), 0
    while True:
        epoch = done * batch // size + 1
        end = -(-epoch * size // batch)  # batches until this epoch is complete
        count = min(_WINDOW, end - done)
        window = sorted(islice(rows, count * batch), key=lambda row: lengths[row])
        batches = [window[i : i + batch] for i in range(0, len(window), batch)]
        rng.shuffle(batches)
        for rows_of_step in batches:
            yield from rows_of_step
        done += count


def _permutations(size: int, rng: random.Random) -> Iterator[int]:
    """0 … size - 1 in random order, again and again."""
    rows = list(range(size))
    while True:
        rng.shuffle(rows)
        yield from rows


def _source_of(index: int, sizes: Sequence[int]) -> int:
    for source, size in enumerate(sizes):
        if index < size:
            return source
        index -= size
    raise AssertionError
