"""Writes docs/reference.md: every key of every recipe, from the recipe classes and the comments beside their fields.

python docs/reference.py
"""

import ast
import inspect
import io
import json
import re
import textwrap
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from grpo.recipe.registry import STAGES
from grpo.recipe.section import Section

PAGE = Path(__file__).with_name("reference.md")
INTRODUCTION = """\
# Every key of a recipe

Generated from the recipe classes by `python docs/reference.py`. [recipes.md](recipes.md) explains how a recipe is read.

Each stage is a table of its top-level keys, and each section one of its own: `learning_rate` of
[TrainerConfig](#trainerconfig) is `trainer.learning_rate` in a recipe of stage `grpo`.
"""
WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    NoneType: "null",
    Any: "any",
}
SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "multiple_of": "multiple of"}


def page() -> str:
    """The text of docs/reference.md."""
    recipes: dict[type[Section], list[str]] = {}
    for stage, entry in STAGES.items():
        recipes.setdefault(entry.recipe_class(), []).append(f"`{stage}`")
    parts = [INTRODUCTION]
    parts += [_table(f"Stage {' and '.join(stages)}", cls) for cls, stages in recipes.items()]
    inner = dict.fromkeys(section for cls in recipes for section in _within(cls))
    parts += [_table(cls.__name__, cls) for cls in inner]
    return "\n".join(parts)


def _within(cls: type[Section]) -> Iterator[type[Section]]:
    """The sections in a recipe or section, and those in them."""
    for field in cls.model_fields.values():
        for section in _sections(field.annotation):
            yield section
            yield from _within(section)


def _sections(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections(argument)]


def _table(title: str, cls: type[Section]) -> str:
    first = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
    rows = [
        f"| `{name}` | {_kind(field.annotation, field.metadata)} | {_default(field)} | {_text(_comment(cls, name))} |"
        for name, field in cls.model_fields.items()
    ]
    keys = ["| key | value | default | |", "| --- | --- | --- | --- |", *rows] if rows else ["No keys."]
    return "\n".join([f"## {title}", "", _text(first), "", *keys, ""])


def _kind(annotation: Any, metadata: list[Any]) -> str:
    """A type in words: `integer > 0 or null`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0], [*arguments[1:], *metadata])
    if origin in (Union, UnionType):
        return " or ".join(_kind(one, []) for one in arguments)
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in arguments)
    if origin is list:
        return f"list of {_kind(arguments[0], [])}"
    if origin is dict:
        return f"mapping: {_kind(arguments[0], [])} → {_kind(arguments[1], [])}"
    if _sections(annotation):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return " ".join([WORDS[annotation], *_bounds(metadata)])


def _bounds(metadata: list[Any]) -> Iterator[str]:
    for item in metadata:
        for rule in item.metadata if isinstance(item, FieldInfo) else [item]:
            yield from (f"{sign} {getattr(rule, name):g}" for name, sign in SIGNS.items() if hasattr(rule, name))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, Section):
        return "its own"
    shown = default if isinstance(default, str) and default else json.dumps(default)
    return f"`{shown}`" if len(shown) < 60 else "a text, in the source"


def _comment(cls: type[Section], name: str) -> str:
    """The comment of the nearest class that declares the field and has one."""
    return next((found for one in cls.__mro__ if (found := _comments(one).get(name))), "")


@cache
def _comments(cls: type) -> dict[str, str]:
    """Field -> the comment lines above it and the comment behind it."""
    if not issubclass(cls, Section):
        return {}
    source = textwrap.dedent(inspect.getsource(cls))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    alone = {line for line, token in comments.items() if token.line.strip().startswith("#")}
    found = {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign):
            lines = [] if node.end_lineno not in comments else [node.end_lineno]
            above = node.lineno - 1
            while above in alone:
                lines.insert(0, above)
                above -= 1
            texts = (comments[line].string.lstrip("# ") for line in lines)
            found[ast.unparse(node.target)] = " ".join(texts)
    return found


def _text(comment: str) -> str:
    """As Markdown: pages are links, Python's None is YAML's null, and no sign has a meaning."""
    escaped = re.sub(r"\bNone\b", "null", comment).replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*")
    return re.sub(r"docs/(\w+\.md)", r"[\1](\1)", escaped)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
