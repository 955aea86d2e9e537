"""Checks before training: does every row become a prompt?

Each process surveys its share of the rows; every process then draws the same conclusion from the surveys of all.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rollout.data.columns import Reason, UnusableRowError
from rollout.data.prompts import Prompter
from rollout.data.sources import Source
from rollout.data.stream import counts, row_of
from rollout.types import Problem

MAX_ROWS = 10_000  # of a larger dataset, a fixed random sample of this size
MAX_ENDLESS = 1000  # the first problems of a generated task or a stream
_BATCH = 256


@dataclass(frozen=True, slots=True)
class PromptSurvey:
    """What became of some rows; it can be pickled.

    PromptSurvey(num_rows=1000, dropped=Counter({"too long": 3}), malformed={17: "rows.jsonl/train/17: …"})
    """

    num_rows: int = 0
    dropped: Counter[Reason] = field(default_factory=Counter)
    malformed: dict[int, str] = field(default_factory=dict)  # row -> message


def survey_prompts(
    source: Source, prompter: Prompter, *, process_index: int = 0, num_processes: int = 1
) -> PromptSurvey:
    """Render and tokenize this process's share of the source's rows, or of a sample of them."""
    indices = _sample(source.size)[process_index::num_processes]
    survey = PromptSurvey(num_rows=len(indices))
    for start in range(0, len(indices), _BATCH):
        batch = indices[start : start + _BATCH]
        rows = [row_of(source, index) for index in batch]
        encoded = iter(prompter.encode_batch([row for row in rows if isinstance(row, Problem)]))
        for index, row in zip(batch, rows, strict=True):
            result = next(encoded) if isinstance(row, Problem) else row
            if isinstance(result, UnusableRowError):
                survey.dropped[result.reason] += 1
                if result.reason == "malformed":
                    survey.malformed[index] = str(result)
    return survey


def conclude(section: str, surveys: Sequence[PromptSurvey], *, size: int | None, max_prompt_length: int) -> str | None:
    """A warning about rows that will be skipped; None if every row becomes a prompt.

    Args:
        section: the recipe's section with these rows, "data" or "evaluation.data"; for messages.
        surveys: one per process.
        size: rows of the source; None: endless.

    Raises:
        ValueError: a row is malformed or cannot be rendered, or no row is usable.
    """
    num_rows = sum(survey.num_rows for survey in surveys)
    dropped: Counter[Reason] = sum((survey.dropped for survey in surveys), Counter())
    malformed = {index: message for survey in surveys for index, message in survey.malformed.items()}
    rows = f"{num_rows} rows" if num_rows == size else f"{num_rows} sampled rows"
    if malformed:
        first = malformed[min(malformed)]
        raise ValueError(f"{section}: {len(malformed)} of {rows} cannot become a prompt. The first: {first}")
    if dropped.total() == num_rows:
        raise ValueError(
            f"{section}.max_prompt_length={max_prompt_length}: none of {rows} is usable ({counts(dropped)}). Raise it, "
            "use a shorter template, or name another column as the prompt."
        )
    if not dropped:
        return None
    share = dropped.total() / num_rows
    return f"{section}: {dropped.total()} of {rows} will be skipped ({share:.1%}): {counts(dropped)}."


def _sample(size: int | None) -> Sequence[int]:
    if size is None:
        return range(MAX_ENDLESS)
    return range(size) if size <= MAX_ROWS else sorted(random.Random("prompts").sample(range(size), MAX_ROWS))
