"""The form that R1-Zero's template asks for."""

import re
from collections.abc import Sequence
from typing import Any

from rewards.text import Text, completion_text

_TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
_ANY_TAG = re.compile("(</?think>|</?answer>)")


def format(
    prompts: Sequence[Text], completions: Sequence[Text], *, think_prefilled: bool = False, **kwargs: Any
) -> list[float | None]:
    """1.0 if a completion is `<think>…</think> <answer>…</answer>`, else 0.0.

    Each tag exactly once, in this order, and nothing but white space before, between and after the two blocks
    (R1-Zero's format reward, 2501.12948 section 2.2.2). What stands inside them is not looked at.

    think_prefilled: the template ends in `<think>`, so that completions start after it.
    """
    opening = "<think>" if think_prefilled else ""
    return [float(_is_well_formed(opening + completion_text(completion))) for completion in completions]


def _is_well_formed(text: str) -> bool:
    parts = _ANY_TAG.split(text)  # text, tag, text, tag, …, text
    return parts[1::2] == _TAGS and not any(parts[i].strip() for i in (0, 4, 8))
