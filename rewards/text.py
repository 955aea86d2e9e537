r"""Find the answer in a completion. The functions accept any string and take time linear in its length."""

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

from rollout.types import Message

Text = str | list[Message]
AnswerIn = Literal["auto", "answer_tag", "box", "free_text"]

MAX_ANSWER = 1000  # characters; real answers are far shorter
_MAX_ADJACENT = 20  # boxes joined into one list

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_BARE = re.compile(r"[^\s${}\\]{1,100}")  # \boxed 42
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
# What may separate boxes that together form one answer.
_BETWEEN = re.compile(r"(?:\s|[$,;&.]|\\[()\[\],;\\ ]|\\q?quad|\\text\s*\{\s*(?:and|or)\s*\}|and|or)*")
_PHRASE = re.compile(r"(?:final answer|answer)(?:\*\*)?\s*(?:is|are|=|:)(?:\*\*)?\s*:?", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|\.\s|\.$|</|<\|")
_MATHEMATICS = re.compile(r"\$\$?((?:[^$\\]|\\.){1,1000})\$|\\\((.{1,1000}?)\\\)|\\\[(.{1,1000}?)\\\]", re.DOTALL)
_FINAL = re.compile(r"final answer(?: is|:)", re.IGNORECASE)
_PLAIN_WORD = re.compile(r"(?<![\\a-zA-Z{])[a-zA-Z]{2,}(?![a-zA-Z}])")
_MAX_BARE = 100  # characters in a text that consists of an answer only
_OPENING = re.compile(r'^(?:\\"|[\s*:"])+')
_SEVERAL = re.compile(r"\$[^$]+\$(?:\s*(?:,|and|or)+\s*\$[^$]+\$)+")  # $12$ and $13$
_INTRODUCED = re.compile(r"[a-zA-Z]{3,}:?\s*(?:\$|\\\(|\\\[)")  # Answer: \[ 9 \]
_NUMBER = re.compile(r"-?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?(?:\s?\\?%)?|-?\.[0-9]+")


def completion_text(completion: Text, prefix: str = "") -> str:
    """A completion's text, from either of TRL's formats: a string, or [{"role": "assistant", "content": "…"}].

    prefix: text of the prompt that already belongs to the answer, such as "<think>".
    """
    return prefix + (completion if isinstance(completion, str) else completion[-1]["content"])


def after_thinking(completion: str) -> str | None:
    """The text after the last `</think>`; None if a `<think>` is left open: a truncated thought is no answer."""
    rest = completion[completion.rfind("</think>") + len("</think>") :] if "</think>" in completion else completion
    return None if "<think>" in rest else rest


def answer_text(completion: str) -> str | None:
    """The stripped text of the last `<answer>…</answer>` after thinking.

    None if there is none or the last `<answer>` is never closed; an earlier one does not replace it.
    """
    rest = after_thinking(completion)
    if rest is None or "<answer>" not in rest:
        return None
    answer, closed, _ = rest[rest.rfind("<answer>") + len("<answer>") :].partition("</answer>")
    return answer.strip() if closed else None


def final_answer(completion: str, answer_in: AnswerIn = "auto") -> str | None:
    r"""A completion's final answer, or None.

    answer_in: where to look, always after the last `</think>`:
        "auto"        the last `<answer>` if there is one, else the last box
        "answer_tag"  the last `<answer>`
        "box"         the last `\boxed{}` or `\fbox{}`
        "free_text"   as "auto"; else after GSM8K's `####` or "the answer is"; else the last number. Only for models
                      that were not asked for a format, because any number counts.
    A box inside `<answer>` takes precedence. Boxes separated only by "and" or a comma form one list.
    """
    rest = after_thinking(completion)
    if rest is None:
        return None
    if answer_in == "box":
        return last_box(rest)
    if answer_in == "answer_tag" or "<answer>" in rest:
        answer = answer_text(rest)
        return last_box(answer) if answer is not None and _BOX.search(answer) else answer or None
    box = max(rest.rfind(r"\boxed"), rest.rfind(r"\fbox"))
    if answer_in == "auto" or (box >= 0 and not _FINAL.search(rest, box)):
        return last_box(rest)
    return _from_prose(rest)


def last_box(text: str) -> str | None:
    r"""The content of the last `\boxed{}` or `\fbox{}`, joined with adjacent ones; None if it is empty or unclosed."""
    box = _box_before(text, len(text))
    if box is None or box[1] is None or not box[1].strip():
        return None
    start, content = box[0], box[1]
    contents = [content.strip()]
    while len(contents) < _MAX_ADJACENT and (before := _box_before(text, start)) and before[1] is not None:
        if len(text[before[2] : start]) > 60 or not _BETWEEN.fullmatch(text[before[2] : start]):
            break
        start = before[0]
        contents.insert(0, before[1].strip())
    distinct = list(dict.fromkeys(contents))
    return distinct[0] if len(distinct) == 1 else ", ".join(distinct)


def reference_text(value: Any) -> str | None:
    """A dataset's reference answer as text: "3" for 3, 3.0 and "3 "; None for null, NaN and empty text.

    A whole number is written without a decimal point, because columns of integers with gaps become floats. A list of
    answers, as in OlympiadBench, is one answer, "1, 2".
    """
    if hasattr(value, "tolist"):  # a NumPy scalar or array
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        parts = [reference_text(part) for part in value]
        return ", ".join(part for part in parts if part is not None) if parts and None not in parts else None
    return None if value is None else str(value).strip() or None


def reference_answer(solution: str) -> str:
    r"""The answer in a reference solution: its last `\boxed{}`, the text after "final answer is" or `####`, or all."""
    if box := last_box(solution):
        return box
    if _FINAL.search(solution):
        return _from_prose(solution) or ""
    return solution.rpartition("####")[2].strip()


def _box_before(text: str, end: int) -> tuple[int, str | None, int] | None:
    """(start, content, end) of the last outermost box that starts before `end`; content is None if it is unclosed."""
    start = max(text.rfind(r"\boxed", 0, end), text.rfind(r"\fbox", 0, end))
    if start < 0:
        return None
    box = _box_at(text, start)
    for _ in range(3):  # a nested box belongs to the outer one
        outer = max(text.rfind(r"\boxed", 0, start), text.rfind(r"\fbox", 0, start))
        if outer < 0:
            break
        around = _box_at(text, outer)
        if around[1] is None or around[2] <= start:
            break
        start, box = outer, around
    return box


def _box_at(text: str, start: int) -> tuple[int, str | None, int]:
    match = _BOX.match(text, start)
    if match is None:  # another command, \boxedtext
        return start, None, start
    if not text.startswith("{", match.end()):
        bare = _BARE.match(text, match.end())
        return start, bare.group() if bare else None, bare.end() if bare else match.end()
    depth, inside = 0, text[match.end() : match.end() + MAX_ANSWER + 2]
    for brace in _BRACES.finditer(inside):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)  # an escaped \{ is text
        if depth == 0:
            return start, inside[1 : brace.start()], match.end() + brace.end()
    return start, None, len(text)


def _from_prose(text: str) -> str | None:
    """The answer in free text: what follows the last phrase that announces one."""
    if "####" in text:
        return text.rpartition("####")[2].strip().split("\n")[0][:MAX_ANSWER] or None
    announced = list(_PHRASE.finditer(text))
    if announced and (answer := _sentence(_OPENING.sub("", text[announced[-1].end() :][:MAX_ANSWER]))):
        return answer
    is_bare = len(text) <= _MAX_BARE and len(_PLAIN_WORD.findall(text)) < 3
    return (text.strip() or None) if is_bare and not _INTRODUCED.search(text) else _last_value(text)


def _sentence(phrase: str) -> str | None:
    """The value in "$18$.", "18 apples." and "The volume of $V$ is 120."."""
    end = _SENTENCE_END.search(phrase)
    sentence = (phrase[: end.start()] if end else phrase).strip(' *"\\')
    if _SEVERAL.fullmatch(sentence):
        return sentence.replace("$", " ")
    if mathematics := _MATHEMATICS.match(phrase):
        return _formula(mathematics)
    phrase = sentence
    if " is " not in phrase and len(_PLAIN_WORD.findall(phrase)) < 4:
        return phrase or None
    return _last_value(phrase.rpartition(" is ")[2]) or phrase


def _last_value(text: str) -> str | None:
    """The last formula or number."""
    formulas, numbers = list(_MATHEMATICS.finditer(text)), list(_NUMBER.finditer(text))
    if formulas and (not numbers or formulas[-1].end() >= numbers[-1].end()):
        return _formula(formulas[-1])
    return numbers[-1].group().rstrip(",") if numbers else None


def _formula(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group).strip()
