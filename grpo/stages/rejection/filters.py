"""The filters: pure functions of one candidate. To add one, write its section, its function and a line in `PASSES`."""

import re
from collections.abc import Callable
from typing import Any

from grpo.recipe.stages.rejection import (
    CodeBlocksFilter,
    CorrectFilter,
    FilterConfig,
    FinishedFilter,
    ParagraphLengthFilter,
    RepetitionFilter,
    RewardFilter,
)
from grpo.stages.rejection.candidates import REWARD, Candidate
from rewards.style.repetition import repetition_penalty

_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
_FENCE = re.compile(r"^[^\S\n]*(?:```|~~~)", re.MULTILINE)


def passes(chosen: FilterConfig, candidate: Candidate) -> bool:
    """Whether a filter keeps the candidate."""
    return PASSES[type(chosen)](chosen, candidate)


def correct(chosen: CorrectFilter, candidate: Candidate) -> bool:
    value = candidate[REWARD + chosen.reward]
    return value is not None and value > chosen.threshold


def reward(chosen: RewardFilter, candidate: Candidate) -> bool:
    value = candidate[REWARD + chosen.reward]
    return value is None or value >= chosen.min


def finished(_: FinishedFilter, candidate: Candidate) -> bool:
    return candidate["finished"]


def paragraph_length(chosen: ParagraphLengthFilter, candidate: Candidate) -> bool:
    return all(
        (chosen.max_words is None or len(paragraph.split()) <= chosen.max_words)
        and (chosen.max_characters is None or len(paragraph.strip()) <= chosen.max_characters)
        for paragraph in _BLANK_LINE.split(candidate["completion"])
    )


def code_blocks(chosen: CodeBlocksFilter, candidate: Candidate) -> bool:
    concerned = chosen.data_sources is None or str(candidate["data_source"]) in chosen.data_sources
    return not (concerned and _FENCE.search(candidate["completion"]))


def repetition(chosen: RepetitionFilter, candidate: Candidate) -> bool:
    (penalty,) = repetition_penalty([""], [candidate["completion"]], ngram_size=chosen.ngram_size)
    assert penalty is not None
    return -penalty <= chosen.max_share


PASSES: dict[type, Callable[[Any, Candidate], bool]] = {
    CorrectFilter: correct,
    RewardFilter: reward,
    FinishedFilter: finished,
    ParagraphLengthFilter: paragraph_length,
    CodeBlocksFilter: code_blocks,
    RepetitionFilter: repetition,
}
