"""From a source's columns to a Problem: `prompt` is the question, everything else reaches the rewards by name."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from rollout.support.names import nearest
from rollout.types import Message, Problem

Columns = Mapping[str, str | list[str]]  # our name -> the source's name, or several to try in order
Reason = Literal["empty", "malformed", "too long"]

# ShareGPT's names of the roles, and the names that copies of such datasets use.
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_CONVERSATION = "conversations"  # ShareGPT's column


class UnusableRowError(ValueError):
    """A row that cannot become a prompt. The message names the row; `reason` is what such rows are counted by."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


def column_names(tree: Mapping[str, Any]) -> list[str]:
    """Names in a row or in a dataset's features; what is nested has a dotted name, "reward_model.ground_truth"."""
    return list(_names(tree, ""))


def _names(tree: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in tree.items():
        yield prefix + name
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{name}.")


def resolve_columns(source: str, present: Sequence[str], columns: Columns) -> dict[str, str]:
    """Our name -> the source's name, with alternatives resolved to the first one present.

    Raises:
        ValueError: a named column is missing, or nothing provides `prompt`.
    """
    has = f"It has: {', '.join(present)}."
    resolved = {}
    for ours, theirs in columns.items():
        names = [theirs] if isinstance(theirs, str) else theirs
        available = [name for name in names if name in present]
        if not available:
            wanted = " or ".join(map(repr, names))
            raise ValueError(f"columns={columns}: {source} has no column {wanted}.{nearest(names[0], present)} {has}")
        resolved[ours] = available[0]
    if "prompt" not in columns and "prompt" not in present:
        if _CONVERSATION in present:
            return {"prompt": _CONVERSATION, **resolved}
        raise ValueError(
            f"{source} has no column 'prompt'. {has} Name the one with the question: columns: {{prompt: question}}."
        )
    return resolved


def to_problem(problem_id: str, row: dict[str, Any], columns: Mapping[str, str]) -> Problem:
    """The row as a Problem; columns: our name -> the row's name, other columns keep theirs.

    Messages in ShareGPT's form, {from, value}, become chat messages. If the model's answer ends such a conversation, it
    leaves the prompt and becomes the column `solution`, unless the row has one.

    Raises:
        UnusableRowError: the prompt is null, empty, or neither text nor messages.
    """
    renamed = {name: value for name, value in row.items() if name not in columns.values()}
    renamed |= {ours: _value(row, theirs) for ours, theirs in columns.items()}
    prompt = renamed.pop("prompt")
    is_recorded = columns.get("prompt") == _CONVERSATION
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], Mapping) and "from" in prompt[0]:
        prompt, is_recorded = [_from_share_gpt(problem_id, turn) for turn in prompt], True
    _check_prompt(problem_id, prompt)
    if is_recorded and isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
        renamed.setdefault("solution", prompt[-1]["content"])
        prompt = prompt[:-1]
    return Problem(id=problem_id, prompt=prompt, columns=renamed)


def _value(row: Mapping[str, Any], name: str) -> Any:
    """The value under a name, which may be dotted; None inside a null."""
    if name in row:
        return row[name]
    parent, _, rest = name.partition(".")
    return None if row.get(parent) is None else _value(row[parent], rest)


def _from_share_gpt(problem_id: str, turn: Mapping[str, Any]) -> Message:
    role = turn.get("from")
    if role not in _ROLES:
        raise UnusableRowError(
            "malformed",
            f"{problem_id}: a conversation has a turn from {role!r}; known are {', '.join(_ROLES)}. "
            "Convert the dataset to chat messages with `role` and `content`.",
        )
    return {"role": _ROLES[role], "content": turn.get("value")}  # type: ignore[dict-item]


def _check_prompt(problem_id: str, prompt: Any) -> None:
    if not isinstance(prompt, str | list | None):
        raise UnusableRowError(
            "malformed", f"{problem_id}: the prompt is {str(prompt)[:200]}; it must be a string or a list of messages."
        )
    if isinstance(prompt, list):
        for message in prompt:
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise UnusableRowError(
                    "malformed", f"{problem_id}: {str(message)[:200]} is not a message: it needs `role` and `content`."
                )
        asked = [message.get("content") for message in prompt if message["role"] == "user"]
        empty = not asked or any(_is_blank(content) for content in asked)
    else:
        empty = _is_blank(prompt)
    if empty:
        raise UnusableRowError(
            "empty", f"{problem_id}: the prompt is {repr(prompt)[:200]}; it must contain a question."
        )


def _is_blank(content: Any) -> bool:
    return not content or (isinstance(content, str) and not content.strip())
