"""A source of supervised data as rows of tokens: a prompt and its completion, or a document.

    source -> rows of text -> rows {"input_ids", "labels", "length"}, labels -100 where nothing is learnt

Rows that cannot be learnt are left out and counted.
"""

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from grpo.recipe.stages.sft import SFTSource
from rollout.data.columns import UnusableRowError, column_names, resolve_columns, to_problem
from rollout.data.dataset import display_name, open_dataset
from rollout.data.prompts import Prompter
from rollout.support.loading import load_object
from rollout.types import Prompt

TOKENS = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32")), "length": Value("int32")})
PACKED = Features({**TOKENS, "seq_lengths": List(Value("int32"))})  # of the samples in a row
THINK = "<think>"
Batch = Mapping[str, list[Any]]  # columns, as `datasets` hands them over


def read(source: SFTSource, *, seed: int, base_dir: Path, max_rows: int | None) -> Dataset:
    """The source's rows of text.

    Raises:
        ValueError: it does not exist or has no rows.
    """
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


def name_of(source: SFTSource) -> str:
    """A short name for the terminal."""
    if source.is_function:
        path, _, function = source.dataset_name.rpartition(":")
        return f"{Path(path).name}:{function}"
    return f"{display_name(source.dataset_name)}/{source.dataset_split}"


class Encoder:
    """One source's rows as tokens, and why some of them are none."""

    def __init__(self, source: SFTSource, prompter: Prompter, max_length: int) -> None:
        self.source, self.prompter, self.max_length = source, prompter, max_length
        self.name = name_of(source)
        self.reasons: Counter[str] = Counter()
        self.example = ""
        self.lengths: list[int] = []  # of rows left out for their length

    def encode(self, rows: Dataset) -> Dataset:
        """The rows that can be learnt; documents longer than max_length become several.

        Raises:
            ValueError: a column is missing, or no row can be learnt.
        """
        present = column_names(rows.features)
        text = self.source.columns.get("text", "text")
        is_document = text in present and not {"completion", self.source.columns.get("completion")} & set(present)
        if is_document:
            self.column = text
        else:
            self.columns = self._columns(present)
        # Not from the cache: its key does not see changes in this code.
        encoded = rows.map(
            self._documents if is_document else self._conversations,
            batched=True,
            with_indices=True,
            remove_columns=rows.column_names,
            features=TOKENS,
            load_from_cache_file=False,
        )
        if not len(encoded):
            lengths, remedy = "", "Correct the rows."
            if self.lengths:
                lengths = f"; those too long have {min(self.lengths):,} to {max(self.lengths):,} tokens"
            if "too long" in self.reasons:
                remedy = f"Raise data.max_length={self.max_length}, up to the model's context, or correct the rows."
            raise ValueError(
                f"dataset {self.name!r}: none of its {len(rows):,} rows can be used{self.describe_left_out()}{lengths}."
                f" {remedy}"
            )
        return encoded

    def describe_left_out(self) -> str:
        """` (3 left out: 2 too long, 1 empty; x.jsonl/train/4: …)`, or nothing."""
        if not self.reasons:
            return ""
        counts = ", ".join(f"{count:,} {reason}" for reason, count in self.reasons.most_common())
        return f" ({self.reasons.total():,} left out: {counts}; {self.example.rstrip('.')})"

    def _columns(self, present: list[str]) -> dict[str, str]:
        """Our name -> the source's, of a source with prompts and completions."""
        columns = resolve_columns(f"dataset {self.name!r}", present, self.source.columns)
        if "completion" not in columns and "completion" not in present:
            raise ValueError(
                f"dataset {self.name!r} has no column 'completion'. It has: {', '.join(present)}. Name the one with "
                "the text to learn: columns: {completion: answer}; or, if it has no prompts, columns: {text: content}."
            )
        return columns

    def _documents(self, batch: Batch, indices: list[int]) -> dict[str, list[Any]]:
        """Whole texts, each between the tokenizer's BOS, if it has one, and EOS."""
        tokenizer, kept = self.prompter.tokenizer, _no_rows()
        texts = []
        for index, text in zip(indices, batch[self.column], strict=True):
            try:
                texts.append(_text(f"{self.name}/{index}", "text", text))
            except UnusableRowError as error:
                self._leave_out(error)
        if not texts:
            return kept
        bos: list[Any] = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        encoded: Any = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for ids in encoded:
            whole = [*bos, *ids, tokenizer.eos_token_id]
            for start in range(0, len(whole), self.max_length):
                piece = whole[start : start + self.max_length]
                _append(kept, piece, unlearnt=len(bos) if start == 0 else 0)
        return kept

    def _conversations(self, batch: Batch, indices: list[int]) -> dict[str, list[Any]]:
        problems, texts, kept = [], [], _no_rows()
        for index, *values in zip(indices, *batch.values(), strict=True):
            row = dict(zip(batch, values, strict=True))
            try:
                problem = to_problem(f"{self.name}/{index}", row, self.columns)
                texts.append(_text(problem.id, "completion", problem.columns["completion"]))
                problems.append(problem)
            except UnusableRowError as error:
                self._leave_out(error)
        if not problems:
            return kept
        eos = self.prompter.tokenizer.eos_token_id
        prompts = self.prompter.encode_batch(problems)
        # The prompt may end with the completion's beginning, such as an open <think>: it is there once.
        prefixes = [prompt.prefix if isinstance(prompt, Prompt) else "" for prompt in prompts]
        texts = [_beyond(prefix, text) for prefix, text in zip(prefixes, texts, strict=True)]
        # Prompt and completion are tokenized apart, as they are in a rollout, so that the tokens are the same there.
        completions: Any = self.prompter.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for prompt, ids in zip(prompts, completions, strict=True):
            completion = ids if ids[-1:] == [eos] else [*ids, eos]
            if not isinstance(prompt, Prompt):
                self._leave_out(prompt)
            elif (length := len(prompt.token_ids) + len(completion)) > self.max_length:
                self.lengths.append(length)
                text = f"{prompt.problem.id}: {length:,} tokens, over max_length={self.max_length}"
                self._leave_out(UnusableRowError("too long", text))
            else:
                _append(kept, [*prompt.token_ids, *completion], unlearnt=len(prompt.token_ids))
        return kept

    def _leave_out(self, error: UnusableRowError) -> None:
        self.example = self.example or str(error)
        self.reasons[error.reason] += 1


def _beyond(prefix: str, text: str) -> str:
    """A completion without the beginning that the prompt has; white space after <think> may differ there."""
    if prefix.strip() == THINK and not text.startswith(prefix) and text.startswith(THINK):
        return text.removeprefix(THINK).lstrip()
    return text.removeprefix(prefix)


def _no_rows() -> dict[str, list[Any]]:
    return {name: [] for name in TOKENS}


def _append(rows: dict[str, list[Any]], ids: list[int], *, unlearnt: int) -> None:
    """unlearnt: how many leading tokens are not predicted."""
    rows["input_ids"].append(ids)
    rows["labels"].append([-100] * unlearnt + ids[unlearnt:])
    rows["length"].append(len(ids))


def _text(row: str, column: str, text: Any) -> str:
    if text and isinstance(text, str):
        return text
    reason = "malformed" if text else "empty"
    raise UnusableRowError(reason, f"{row}: the {column} is {text!r:.80}; it must be a text")
