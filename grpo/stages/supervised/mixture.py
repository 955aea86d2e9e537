"""What supervised stages read: rows of tokens of several sources, mixed in exact proportions, in a fixed order.

    sources -> rows of tokens -> row numbers of one epoch -> packing, if asked for -> micro-batches

Everything follows from the seed.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase
from trl.data_utils import pack_dataset

from grpo.recipe.stages.sft import SFTData, SFTTrainerConfig
from grpo.stages.supervised.rows import PACKED, Encoder, name_of, read
from rollout.data.prompts import Prompter

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
        encoder = Encoder(source, prompter, data.max_length)
        parts.append(encoder.encode(read(source, seed=seed, base_dir=base_dir, max_rows=data.max_rows)))
        left_out.append(encoder.describe_left_out())
    sizes = [len(part) for part in parts]
    weights = [source.weight for source in data.sources if source.weight is not None]
    chosen = mix(sizes, weights, max_rows=data.max_rows, seed=seed)
    used = Counter(_source_of(index, sizes) for index in chosen)
    lines = [
        f"data: {used[i]:,} rows per epoch from {name_of(source)}, which has {sizes[i]:,} usable{left_out[i]}"
        for i, source in enumerate(data.sources)
    ]
    rows = concatenate_datasets(parts).select(chosen)
    if data.packing:
        rows = pack(rows, data.max_length)
        lines.append(f"data: packed into {len(rows):,} rows of up to {data.max_length:,} tokens")
    return rows, lines


def pack(rows: Dataset, max_length: int) -> Dataset:
    """Several rows in one, by best fit, so that hardly any padding is left. They see one another, as in the pretraining
    of DeepSeek-V3 (2412.19437 section 4.1).
    """
    # Not from a cache, whose key does not see changes in the code that made the rows.
    cache = {"load_from_cache_file": False}
    packed = pack_dataset(rows.remove_columns("length"), max_length, strategy="bfd", map_kwargs=cache)
    lengths = [len(ids) for ids in packed["input_ids"]]
    return packed.add_column("length", lengths).select_columns(list(PACKED)).cast(PACKED)  # type: ignore[call-arg]


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


def batches_by_rows(lengths: Sequence[int], rows_per_step: int, seed: int) -> Iterator[list[int]]:
    """Row numbers without end, `rows_per_step` at a time, rows of like length together.

    Every epoch has each row once: windows that are sorted by length end with the epoch's last batch, which is filled up
    from the next epoch.
    """
    rng = random.Random(seed)
    rows, size, done = _permutations(len(lengths), rng), len(lengths), 0
    while True:
        epoch = done * rows_per_step // size + 1
        end = -(-epoch * size // rows_per_step)  # batches until this epoch is complete
        count = min(_WINDOW, end - done)
        window = sorted(islice(rows, count * rows_per_step), key=lambda row: lengths[row])
        batches = [window[i : i + rows_per_step] for i in range(0, len(window), rows_per_step)]
        rng.shuffle(batches)
        yield from batches
        done += count


def batches_by_tokens(lengths: Sequence[int], max_tokens: int, seed: int) -> Iterator[list[int]]:
    """Row numbers without end, rows of like length together: as many as `max_tokens` allow with padding, or one."""
    rng = random.Random(seed)
    rows = _permutations(len(lengths), rng)
    while True:
        window, tokens = [], 0
        while tokens < _WINDOW * max_tokens:
            window.append(row := next(rows))
            tokens += lengths[row]
        window.sort(key=lambda row: lengths[row])
        batches: list[list[int]] = [[]]
        for row in window:
            if batches[-1] and lengths[row] * (len(batches[-1]) + 1) > max_tokens:
                batches.append([])
            batches[-1].append(row)
        rng.shuffle(batches)
        yield from batches


def training_batches(lengths: Sequence[int], settings: SFTTrainerConfig, num_processes: int) -> list[list[int]]:
    """Row numbers of every micro-batch of the run: of step 0's first one in each process, then its second ones, and so
    on. The order does not depend on where training stops.
    """
    per_step = settings.gradient_accumulation_steps * num_processes
    if settings.max_tokens_per_batch:
        endless = batches_by_tokens(lengths, settings.max_tokens_per_batch, settings.seed)
    else:
        rows = settings.per_device_train_batch_size
        steps = batches_by_rows(lengths, rows * per_step, settings.seed)
        endless = (step[i : i + rows] for step in steps for i in range(0, len(step), rows))
    if settings.max_steps:
        return list(islice(endless, settings.max_steps * per_step))
    batches, left = [], settings.num_train_epochs * len(lengths)
    while left > 0 or len(batches) % per_step:
        batches.append(next(endless))
        left -= len(batches[-1])
    return batches


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
