"""The format reward for R1-Zero's template."""

import re
from collections.abc import Sequence
from typing import Any

from rewards.text import Text, completion_text

_TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
_ANY_TAG = re.compile("(</?think>|</?answer>)")


def format(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    *,
    think_prefilled: bool = False,
    completion_prefix: str = "",
    **kwargs: Any,
) -> list[float | None]:
    """1.0 if a completion is `<think>…</think> <answer>…</answer>`, else 0.0.

    Each tag must occur exactly once, in this order, with only white space before, between and after the two blocks
    (R1-Zero's format reward, 2501.12948 section 2.2.2). The content of the blocks is ignored.

    think_prefilled: completions start after a `<think>` that the prompt ends in. A run knows its own template's
        (completion_prefix); this is for completions without it, such as a file's.
    """
    opening = completion_prefix or ("<think>" if think_prefilled else "")
    return [float(_is_well_formed(completion_text(completion, opening))) for completion in completions]


def _is_well_formed(text: str) -> bool:
    parts = _ANY_TAG.split(text)  # text, tag, text, tag, …, text
    return parts[1::2] == _TAGS and not any(parts[i].strip() for i in (0, 4, 8))
