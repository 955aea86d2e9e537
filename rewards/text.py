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
_PHRASE = re.compile(
    r"(?:final )?answers?(?:\*\*)?(?: to (?:the |this )?[a-z]+(?: [0-9]+)?)?\s*"
    r"(?:(?:is|are|was|would be|will be|must be|should be)(?![a-z])|=|:)(?:\*\*)?\s*:?"
    r"|(?:^|\n)(?:[#*]|[^\S\n])*(?:final )?answer[*:\s]*\n",  # a heading
    re.IGNORECASE,
)
_EMPHASIS = re.compile(r"(?<![A-Za-z0-9)*_])(\*\*|__|\*)(?=\S)([^*_\n]{1,200})(?<=\S)\1(?![A-Za-z0-9(*_])")
_CONTRAST = re.compile(r",\s*(?:and\s+)?not\s+[-$\\0-9.]\S{0,30}$")  # 36, not 35
_DENIED = re.compile(r"\b(is|are|was)n['’]t\b", re.IGNORECASE)
# A reason after the answer, and a conclusion, which may only be left out if it states no other value.
_REASON = re.compile(
    r"(?:\s*[,;:]\s*|\s+)(?:because|since|as|which (?:is|was|equals|matches|agrees|makes sense))\b",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(
    r"(?:\s*[,;:]\s*|\s+)(?:so|thus|therefore|hence|which|meaning|making|giving)\b[^0-9]*$",
    re.IGNORECASE,
)
_TAKES_BACK = re.compile(
    r"\b(?:not|no|never|wrong|incorrect|false|but|or|unless|otherwise|except|if|maybe|perhaps|instead|actually|wait)\b",
    re.IGNORECASE,
)
_OPERATION = re.compile(r"\b(?:squared|cubed|times|plus|minus|divided|hundred|thousand|million|of|more|less)\b")
_BULLETS = re.compile(r"[\s:*]*\n((?:\s*[-*•]\s+[^\n]{1,100}(?:\n|$)){1,20})")
_HEADING = re.compile(r"(?:[:*\s]|(?:the|final|answer|result|solution)s?)*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|\.\s|\.$|</|<\|")
_MATHEMATICS = re.compile(r"\$\$?((?:[^$\\]|\\.){1,1000})\$|\\\((.{1,1000}?)\\\)|\\\[(.{1,1000}?)\\\]", re.DOTALL)
_FINAL = re.compile(r"final answer(?: is|:)", re.IGNORECASE)
_PLAIN_WORD = re.compile(r"(?<![\\a-zA-Z{])[a-zA-Z]{2,}(?![a-zA-Z}])")
_MAX_BARE = 100  # characters in a text that consists of an answer only
_OPENING = re.compile(r'^(?:\\"|[\s*:"])+')
_SEVERAL = re.compile(r"\$[^$]+\$(?:\s*(?:,|and|or)+\s*\$[^$]+\$)+")  # $12$ and $13$
_INTRODUCED = re.compile(r"[a-zA-Z]{3,}:?\s*(?:\$|\\\(|\\\[)")  # Answer: \[ 9 \]
_NUMBER = (
    r"-?(?<![0-9.,])[0-9]{1,3}(?:[ \u00a0\u2009\u202f][0-9]{3})+(?![0-9])(?:\.[0-9]+)?"  # 12 750
    r"|-?[0-9]+(?:,[0-9]+)*(?:\.[0-9]+)?(?:/[0-9]+)?(?:\s?\\?%)?|-?\.[0-9]+"
)
_VALUE = re.compile(rf"{_MATHEMATICS.pattern}|{_NUMBER}|\\(?:[dt]?frac|sqrt|pi|infty|binom)(?![a-z])", re.DOTALL)
# What may stand between the values of one answer: 4 and 7; x = 4 or x = 7.
_AND = re.compile(r"(?:\s*(?:,|;|\band\b|\bor\b))+\s*(?:\b[a-zA-Z]\s*=\s*)?")
_OR_ELSE = re.compile(r"\s*,?\s*(?:or|to|(?:is|are) (?:not|wrong|incorrect|false))\b")
_NOT = re.compile(r"\bnot\s*$")
_RUN = re.compile(r"(?:[^\s${}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})+")  # a formula without delimiters
_COMMAND = re.compile(r"\\[a-zA-Z]")
_MAX_VALUES = 20  # in one answer in prose
_REACH = 200  # characters of a formula on either side of a number


def completion_text(completion: Text, prefix: str = "") -> str:
    """A completion's text, from either of TRL's formats: a string, or [{"role": "assistant", "content": "…"}].

    prefix: text of the prompt that already belongs to the answer, such as "<think>".
    """
    return prefix + (completion if isinstance(completion, str) else completion[-1]["content"])


def asked(prompt: list[Message]) -> list[Message]:
    """A prompt's messages without the answer that the last one may begin: it is the start of the completion."""
    return prompt[:-1] if prompt[-1]["role"] == "assistant" else prompt


def prompt_text(prompt: Text) -> str:
    """What is asked, as text that a model can be shown: a string as it is, messages under their roles."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in asked(prompt))


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
    return (_after_marker(solution) or "") if "####" in solution else solution.strip()


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
        return _after_marker(text)
    text = _DENIED.sub(r"\1 not", _EMPHASIS.sub(r"\2", text))
    announced = list(_PHRASE.finditer(text))
    if announced and (answer := _announced(text[announced[-1].end() :][:MAX_ANSWER])):
        return answer
    if len(text) > _MAX_BARE:
        return _last_value(text)
    bare = _without_remark(text.strip())
    if len(_PLAIN_WORD.findall(bare)) > 2 or _INTRODUCED.search(bare):
        return _last_value(text)
    return (" is " in bare and _last_value(bare.rpartition(" is ")[2])) or bare or None


def _after_marker(text: str) -> str | None:
    """GSM8K's answer: "64" after "#### 64", "####: 64", "#### Answer: 64" and the heading "#### Final Answer"."""
    lines = [line.strip(" \t:*") for line in text.rpartition("####")[2].split("\n")]
    line = next((line for line in lines if not _HEADING.fullmatch(line)), "")[:MAX_ANSWER]
    announced = list(_PHRASE.finditer(line))
    return (_announced(line[announced[-1].end() :]) if announced else line) or None


def _announced(phrase: str) -> str | None:
    """The value after "the answer is": a sentence, or a list with bullets."""
    if bullets := _BULLETS.match(phrase):
        return ", ".join(line.strip(" -*•.") for line in bullets.group(1).split("\n") if line.strip())
    return _sentence(_OPENING.sub("", phrase))


def _sentence(phrase: str) -> str | None:
    """The value in "$18$.", "18 apples.", "18, which is the sum." and "The volume of $V$ is 120."."""
    end = _SENTENCE_END.search(phrase)
    sentence = (phrase[: end.start()] if end else phrase).lstrip(' *"').rstrip(' *"\\')
    if _SEVERAL.fullmatch(sentence):
        return sentence.replace("$", " ")
    if mathematics := _MATHEMATICS.match(phrase):
        values, after = _enumerated(phrase, mathematics)
        return sentence if _OR_ELSE.match(phrase, after) else ", ".join(values)
    sentence = _without_remark(sentence)
    if " is " not in sentence and len(_PLAIN_WORD.findall(sentence)) < 4:
        return sentence or None
    return _last_value(sentence.rpartition(" is ")[2]) or sentence


def _without_remark(sentence: str) -> str:
    """36 for "36, which is the sum", "36 because 30 + 6 = 36" and "36, not 35"; all of "36, which is wrong"."""
    sentence = _CONTRAST.sub("", sentence)
    remark = _REASON.search(sentence) or _CONCLUSION.search(sentence)
    if remark is None:
        return sentence
    value, rest = sentence[: remark.start()].strip(), sentence[remark.start() :]
    begins = re.match(r"[-+$\\(0-9.]|[a-zA-Z](?![a-zA-Z])", value)
    kept = not begins or _TAKES_BACK.search(rest) or _OPERATION.search(value) or len(_PLAIN_WORD.findall(value)) > 3
    return sentence if kept else value


def _enumerated(text: str, first: re.Match[str]) -> tuple[list[str], int]:
    """The values from the first one on that are joined by "and", "or" and commas, and where they end."""
    values, end = [_formula(first)], first.end()
    while len(values) < _MAX_VALUES and (joint := _AND.match(text, end)):
        following = _VALUE.match(text, joint.end())
        if following is None:
            break
        value, _, end = _as_written(text, following)
        values.append(value)
    return values, end


def _last_value(text: str) -> str | None:
    """The last formula or number, with those it is listed with: "4, 7" for "x is 4 or 7"."""
    values: list[str] = []
    start = len(text)
    for match in reversed(list(_VALUE.finditer(text))):
        if match.end() > start:  # a part of the formula taken before
            continue
        if values and (len(values) == _MAX_VALUES or not _AND.fullmatch(text[match.end() : start])):
            break
        if not values and _NOT.search(text[max(0, match.start() - 10) : match.start()]):
            continue  # 36, not 35
        value, begin, _ = _as_written(text, match)
        if values and "=" in value and "=" in values[0] and value.partition("=")[0] != values[0].partition("=")[0]:
            break  # $5x = 30$, $x = 6$
        values.insert(0, value)
        start = begin
    return ", ".join(values) or None


def _as_written(text: str, match: re.Match[str]) -> tuple[str, int, int]:
    r"""A formula or number with its start and end; for the 8 of an undelimited \frac{3}{8}, all of that."""
    if any(match.groups()):
        return _formula(match), match.start(), match.end()
    for run in _RUN.finditer(text, max(0, match.start() - _REACH), match.end() + _REACH):
        word = run.group().rstrip(".,;:!?*\\")
        if run.start() <= match.start() < run.end() and _COMMAND.search(word):
            return word, run.start(), run.start() + len(word)
    return match.group(), match.start(), match.end()


def _formula(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group).strip()
