"""Rewards for a completion's length in tokens.

They never read the text; whether a completion is correct is decided by another reward.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.runner.load import checked_by
from rewards.style.correctness import check_correctness, correctness_of
from rewards.text import Text


def _check_soft(columns: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    _check_cache(options["max_completion_len"], options["soft_punish_cache"])


@checked_by(_check_soft)
def soft_overlong_punishment(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    completion_ids: Sequence[Sequence[int]],
    *,
    max_completion_len: int,
    soft_punish_cache: int,
    **kwargs: Any,
) -> list[float | None]:
    """DAPO's soft overlong punishment (2503.14476, equation 13), -1.0 to 0.0:

         0                             |y| <= L - C
        (L - C - |y|) / C      L - C < |y| <= L
        -1                         L < |y|

    The names are TRL's. If the rollout truncates at L, truncated completions get -1.

    max_completion_len: L (DAPO: 20480).
    soft_punish_cache: C, the last tokens before L, over which the punishment grows (DAPO: 4096); 0: none.
    """
    _check_cache(max_completion_len, soft_punish_cache)

    def punishment(length: int) -> float:
        if length <= max_completion_len - soft_punish_cache:
            return 0.0
        if length > max_completion_len:
            return -1.0
        return (max_completion_len - soft_punish_cache - length) / soft_punish_cache

    return [punishment(len(ids)) for ids in completion_ids]


def _check_cache(max_completion_len: int, soft_punish_cache: int) -> None:
    if not 0 <= soft_punish_cache <= max_completion_len:
        raise ValueError(
            f"soft_punish_cache={soft_punish_cache} with max_completion_len={max_completion_len}: the punished "
            "part must lie within the allowed length. Choose 0 <= soft_punish_cache <= max_completion_len."
        )


def _check_cosine(columns: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    _check_max_len(options["max_len"])
    return check_correctness(options.get("correctness", "accuracy"), columns)


@checked_by(_check_cosine)
def cosine_scaled(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    completion_ids: Sequence[Sequence[int]],
    *,
    max_len: int,
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
    exceed_penalty: float | None = None,
    correctness: str = "accuracy",
    all_columns: Mapping[str, Sequence[Any]] | None = None,
    completion_prefix: str = "",
    **kwargs: Any,
) -> list[float | None]:
    """Correctness scaled by length (2502.03373, appendix C.1): short correct answers earn most, short wrong ones least.

        r(|y|) = v_L + (v_0 - v_L) (1 + cos(pi |y| / max_len)) / 2

    goes from v_0 at length 0 to v_L at max_len and beyond: max_value_correct to min_value_correct for a correct
    completion, min_value_wrong to max_value_wrong for a wrong one. None if `correctness` returns None. Names and
    defaults are TRL's; the paper uses 2 to 1 for correct completions and -10 to 0 for wrong ones.

    exceed_penalty: the value of any completion with max_len tokens or more (the paper's r_e: -10); None: v_L, as in
        TRL.
    correctness: the reward that decides whether a completion is correct (above 0.5): a name or `module:function`. Its
        columns are needed, too.
    """
    _check_max_len(max_len)
    correct = correctness_of(
        correctness, prompts, completions, completion_ids, all_columns, completion_prefix, passed=kwargs
    )
    rewards: list[float | None] = []
    for value, ids in zip(correct, completion_ids, strict=True):
        if value is None:
            rewards.append(None)
        elif exceed_penalty is not None and len(ids) >= max_len:
            rewards.append(exceed_penalty)
        else:
            short, long = (max_value_correct, min_value_correct) if value > 0.5 else (min_value_wrong, max_value_wrong)
            progress = min(len(ids) / max_len, 1.0)
            rewards.append(long + (short - long) * (1 + math.cos(math.pi * progress)) / 2)
    return rewards


def _check_max_len(max_len: int) -> None:
    if max_len < 1:
        raise ValueError(f"reward 'cosine_scaled' has max_len={max_len}, a number of tokens. Choose max_len >= 1.")


def _check_relative(columns: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    return check_correctness(options.get("correctness", "accuracy"), columns)


@checked_by(_check_relative)
def relative_length(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    completion_ids: Sequence[Sequence[int]],
    *,
    correctness: str = "accuracy",
    all_columns: Mapping[str, Sequence[Any]] | None = None,
    completion_prefix: str = "",
    **kwargs: Any,
) -> list[float | None]:
    """Kimi k1.5's length reward, relative to the group (2501.12599, section 2.3.3), -0.5 to 0.5:

        lambda = 0.5 - (|y| - min) / (max - min)          min, max: shortest and longest length in the group
        r = lambda for a correct completion, min(0, lambda) for a wrong one; 0 for all if min = max

    Among correct completions shorter ones earn more, and long wrong ones are punished. None if `correctness` returns
    None. Kimi adds it to the correctness reward with a weight, after a warm-up without it.

    All completions of a call form one group, which is how the trainer calls it.

    correctness: the reward that decides whether a completion is correct (above 0.5): a name or `module:function`. Its
        columns are needed, too.
    """
    correct = correctness_of(
        correctness, prompts, completions, completion_ids, all_columns, completion_prefix, passed=kwargs
    )
    lengths = [len(ids) for ids in completion_ids]
    shortest, longest = min(lengths), max(lengths)
    rewards: list[float | None] = []
    for value, length in zip(correct, lengths, strict=True):
        factor = 0.5 - (length - shortest) / (longest - shortest) if longest > shortest else 0.0
        rewards.append(None if value is None else factor if value > 0.5 else min(0.0, factor))
    return rewards
