"""The letter of an option, however it is written.

Not supported: answers in running text ("I think it is B"); templates ask for `<answer>` or a box.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from rewards.runner.load import checked_by
from rewards.text import Text, completion_text, final_answer, reference_text

_MAX_LENGTH = 1000  # characters in an answer
_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|rm|bf|boxed|fbox)\b")
_AROUND = re.compile(r"(?:[\s{}$*_`\"'“”‘’~]|\\(?:[ ,;:!]|q?quad\b))+")
_LEAD = re.compile(r"(?:the )?(?:correct |final |right |best )*(?:answer|option|choice)(?: is)?\s*:?\s*", re.IGNORECASE)
_LABEL = re.compile(r"[(\[]?\s*([A-Za-z]|[0-9]{1,2})\s*[)\].:,]*")
_LABEL_AND_TEXT = re.compile(r"(?:[(\[]\s*([A-Za-z]|[0-9]{1,2})\s*[)\]][.:]?|([A-Za-z]|[0-9]{1,2})\s*[).:])\s*(.*)")
_SECOND_LABEL = re.compile(r"\([A-Za-z]\)|\[[A-Za-z]\]|\b[B-Z]\b|\b[A-Z][).:]|\bA$")


def _check(columns: Mapping[str, Any]) -> str | None:
    if _reference(columns["answer"], *_options(columns.get("choices"))) is not None:
        return None
    if reference_text(columns["answer"]) is None:
        return "no reference answer"
    return f"the answer {str(columns['answer'])[:40]!r} names no option"


@checked_by(_check)
def multiple_choice(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    answer: Sequence[Any],
    choices: Sequence[Any] | None = None,
    *,
    completion_prefix: str = "",
    **kwargs: Any,
) -> list[float | None]:
    r"""1.0 if the final answer names the right option, and no other, else 0.0; None if the reference answer names none.

    The final answer is found as for `accuracy`: the text of `<answer>` or the last box. It may be the label, alone or
    followed by the option's text, in any notation (`B`, `(B)`, `b.`, `**B**`, `\text{B}`, `Option B: Paris`) or, with
    `choices`, one option's text. Two labels, or one option's label with another's text, are wrong.

    answer: the right label ("B"), its index from 0 (1, as in MMLU), or the option's text.
    choices: the options' texts, or ARC's {"text": […], "label": […]}; None: only labels count.
    """
    options = [_options(given) for given in choices or [None] * len(completions)]
    rewards: list[float | None] = []
    for completion, reference, (labels, texts) in zip(completions, answer, options, strict=True):
        expected = _reference(reference, labels, texts)
        given = final_answer(completion_text(completion, completion_prefix))
        if expected is None:
            rewards.append(None)
        else:
            rewards.append(float(given is not None and _label(given, labels, texts) == expected))
    return rewards


def same_choice(one: str, other: str) -> bool:
    """Whether two answers name the same label, like "B" and "(B)", or are the same text."""
    labels = [_label(answer, *_options(None)) for answer in (one, other)]
    return one == other or (labels[0] is not None and labels[0] == labels[1])


def _options(choices: Any) -> tuple[list[str], list[str]]:
    """The options' labels and texts; none, so that no answer names one, if `choices` has neither of its forms."""
    if choices is None:
        return list(ascii_uppercase), []
    if isinstance(choices, Mapping):
        labels, texts = choices.get("label"), choices.get("text")
    else:
        labels, texts = ascii_uppercase, choices
    if labels is None or texts is None or isinstance(texts, str) or not hasattr(texts, "__len__"):
        return [], []
    if any(reference_text(text) is None for text in texts):
        return [], []
    return [str(label).upper() for label in labels][: len(texts)], [_plain(str(text)) for text in texts]


def _reference(answer: Any, labels: Sequence[str], texts: Sequence[str]) -> str | None:
    """The label the reference answer names, by label, text or index, or None."""
    if isinstance(answer, bool):
        return None
    text = reference_text(answer)
    if text is None or isinstance(answer, str):
        return None if text is None else _label(text, labels, texts)
    index = int(text) if text.isdecimal() else len(labels)  # a number
    return labels[index] if index < len(labels) else None


def _label(answer: str, labels: Sequence[str], texts: Sequence[str]) -> str | None:
    """The label an answer names, or None."""
    if len(answer) > _MAX_LENGTH:
        return None
    plain = _plain(answer)
    named = [label for label, text in zip(labels, texts, strict=False) if text and text == plain]
    if len(named) == 1:
        return named[0]
    bare = _LEAD.sub("", plain, count=1) if _LEAD.match(plain) else plain
    if match := _LABEL.fullmatch(bare):
        label = match.group(1).upper()
        return label if label in labels else None
    match = _LABEL_AND_TEXT.fullmatch(bare)
    if match is None:
        return None
    label, text = (match.group(1) or match.group(2)).upper(), match.group(3)
    if label not in labels or (texts and text != texts[labels.index(label)]):
        return None
    return label if texts or not _SECOND_LABEL.search(text) else None


def _plain(text: str) -> str:
    """The text without LaTeX and Markdown markup, extra spacing and a final full stop."""
    undressed = _AROUND.sub(" ", _COMMAND.sub(" ", unicodedata.normalize("NFKC", text)))
    return undressed.strip().removesuffix(".").strip()
