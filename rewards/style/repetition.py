"""A penalty for repetition."""

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.runner.load import checked_by
from rewards.text import Text, completion_text


def _check(columns: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    _check_options(options.get("ngram_size", 3), options.get("max_penalty", -1.0))


@checked_by(_check)
def repetition_penalty(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    completion_ids: Sequence[Sequence[int]] | None = None,
    *,
    ngram_size: int = 3,
    max_penalty: float = -1.0,
    **kwargs: Any,
) -> list[float | None]:
    """The share of repeated n-grams times max_penalty (2502.03373, appendix C.2), max_penalty to 0.0.

        r = max_penalty * (1 - distinct n-grams / n-grams)          0 for fewer than ngram_size tokens

    The n-grams are of tokens, as in the paper and TRL, or without completion_ids of lower-case words, as in open-r1.

    max_penalty: at most 0.
    """
    _check_options(ngram_size, max_penalty)
    texts: Sequence[Sequence[Any]] = completion_ids or [completion_text(c).lower().split() for c in completions]
    shares = [_repeated(tokens, ngram_size) for tokens in texts]
    return [max_penalty * share if share else 0.0 for share in shares]


def _check_options(ngram_size: int, max_penalty: float) -> None:
    if max_penalty > 0 or ngram_size < 1:
        raise ValueError(
            f"ngram_size={ngram_size}, max_penalty={max_penalty}: an n-gram has at least one token and a penalty must "
            "not be positive. Choose ngram_size >= 1 and max_penalty <= 0."
        )


def _repeated(tokens: Sequence[Any], size: int) -> float:
    total = len(tokens) - size + 1
    if total < 1:
        return 0.0
    return 1 - len(set(zip(*(tokens[i:] for i in range(size)), strict=False))) / total
