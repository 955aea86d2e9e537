"""From a source's columns to a Problem: `prompt` is the question, everything else reaches the rewards by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from rollout.support.names import nearest
from rollout.types import Problem

Columns = Mapping[str, str | list[str]]  # our name -> the source's name, or several to try in order


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
        raise ValueError(
            f"{source} has no column 'prompt'. {has} Name the one with the question: columns: {{prompt: question}}."
        )
    return resolved


def to_problem(problem_id: str, row: dict[str, Any], columns: Mapping[str, str]) -> Problem:
    """The row as a Problem; columns: our name -> the row's name, other columns keep theirs."""
    renamed = {name: value for name, value in row.items() if name not in columns.values()}
    renamed |= {ours: row[theirs] for ours, theirs in columns.items()}
    prompt = renamed.pop("prompt")
    if not isinstance(prompt, str | list) or prompt == []:
        raise ValueError(f"{problem_id}: the prompt is {prompt!r}; it must be a string or a list of messages.")
    return Problem(id=problem_id, prompt=prompt, columns=renamed)
