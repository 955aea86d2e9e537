"""From a recipe file to a checked recipe.

    file --extends--> merged mapping --overrides--> mapping --pydantic--> the stage's recipe class

Strict: every key and type is checked before anything is loaded, and all errors are reported at once. Merging and
overrides are our own: OmegaConf reads `${` as an interpolation, and LaTeX prompts contain it.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from grpo.recipe.errors import RunError
from grpo.recipe.explain import explain
from grpo.recipe.registry import STAGES
from grpo.recipe.section import Section, StageRecipe
from rollout.support.names import nearest

SectionT = TypeVar("SectionT", bound=Section)


class RecipeError(RunError, ValueError):
    """A recipe that cannot be run; the message lists all its errors."""


def load_recipe(
    path: str | Path | None, overrides: Sequence[str] = (), *, sections: Mapping[str, Any] | None = None
) -> StageRecipe:
    """Read and check a recipe; returns an instance of its stage's recipe class.

    Args:
        path: a YAML file. Its `extends: other.yaml`, relative to the file, is read first; mappings merge, lists and
            the steps of a schedule are replaced. None: all values come from `overrides` and `sections`.
        overrides: `section.key=value` with a YAML value; list items by index, `rewards.0.weight=2`. Applied last.
        sections: nested mappings, merged over the file.

    Strings that start with `./` or `../` are paths relative to the file they appear in; in overrides and sections,
    relative to the working directory.

    Raises:
        RecipeError: lists every error with value, rule and remedy.
    """
    file = None if path is None else Path(path)
    data = _merge({} if file is None else _read(file, seen=()), _resolve_paths(dict(sections or {}), Path.cwd()))
    problems = [problem for text in overrides if (problem := _override(data, text))]
    stage = str(data.get("stage", "grpo"))
    if stage not in STAGES:
        problems.append(f"stage={stage!r}: must be one of {', '.join(STAGES)}.{nearest(stage, STAGES)}")
        raise _error(file, problems)
    cls = STAGES[stage].recipe_class()
    if file is not None and "base_dir" in cls.model_fields:
        data.setdefault("base_dir", str(file.resolve().parent))
    return _checked(cls, data, file, problems)


def stage_of(path: str | Path) -> str:
    """The stage that a recipe file is for. Raises RecipeError if the file cannot be read."""
    return str(_read(Path(path), seen=()).get("stage", "grpo"))


def load_section(path: str | Path, cls: type[SectionT]) -> SectionT:
    """Read and check a file that holds a single section, such as a task. Raises RecipeError as `load_recipe` does."""
    return _checked(cls, _read(Path(path), seen=()), Path(path), [])


def read_yaml(text: str) -> Any:
    """The value of a YAML 1.2 document: `1e-6` is a number, `yes` a string, `<<` merges, duplicate keys are errors.

    Raises:
        ValueError: the text is not valid YAML; the message begins with the line.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        if not (isinstance(error, MarkedYAMLError) and error.problem and error.problem_mark):
            raise ValueError(str(error)) from None
        # ruamel's message on a duplicate key goes on with both values, which are not read yet when they are mappings.
        problem = error.problem.partition(" with value ")[0]
        raise ValueError(f"line {error.problem_mark.line + 1}: {problem}") from None


def _checked(cls: type[SectionT], data: dict[str, Any], file: Path | None, problems: Sequence[str]) -> SectionT:
    try:
        # Through JSON: only there does pydantic's strict mode accept mappings as sections.
        section = cls.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise _error(file, [*problems, *explain(error, cls)]) from None
    if problems:
        raise _error(file, problems)
    return section


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """A file's mapping merged over the one it extends, with relative paths resolved."""
    if not path.is_file():
        here = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = nearest(path.name, here) or (f" {path.parent} has: {', '.join(here)}." if here else "")
        extended_by = f" (extended by {seen[-1]})" if seen else ""
        raise RecipeError(f"{path}{extended_by} does not exist.{hint}")
    if path.resolve() in seen:
        chain = " -> ".join(map(str, [*seen, path.resolve()]))
        raise RecipeError(f"{path} extends itself: {chain}. Remove one of these `extends`.")
    try:
        data = read_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one
        raise RecipeError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe must be a mapping of sections (model, data, …), not {data!r:.60}.")
    data = _resolve_paths(data, path.resolve().parent)
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise RecipeError(
            f"{path}: extends={base!r}: must be the path of one file. To build on several, let each extend the next."
        )
    return _merge(_read(path.parent / base, (*seen, path.resolve())), data)


def _resolve_paths(value: Any, folder: Path) -> Any:
    """A copy with absolute paths and, as in JSON, string keys."""
    if isinstance(value, dict):
        return {str(key): _resolve_paths(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve_paths(item, folder) for item in value]
    if isinstance(value, str) and value.startswith(("./", "../")):
        return os.path.normpath(folder / value)
    return value


def _merge(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        # The steps of a schedule are one value: those of another run's length would not fit between them.
        both = both and not (value and all(str(name).isdecimal() for name in value))
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _override(data: dict[str, Any], text: str) -> str | None:
    """Set one `section.key=value` in place; returns an error message, or None."""
    path, equals, value = text.partition("=")
    if text.startswith("-"):
        return f"{text}: stands after the recipe. Options go before it, overrides (section.key=value) after it."
    if not equals:
        return f"override {text!r}: must have the form section.key=value, such as trainer.max_steps=5."
    try:
        parsed = _resolve_paths(read_yaml(value), Path.cwd())
    except ValueError:
        return f"override {text!r}: the value is not valid YAML. Quote it."
    *parents, last = path.split(".")
    stages = data.get("stages")
    if len(parents) > 1 and parents[0] == "stages" and isinstance(stages, dict) and parents[1] not in stages:
        return f"override {text!r}: there is no stage {parents[1]!r}.{nearest(parents[1], stages)}"
    where: Any = data
    for part in parents:
        if isinstance(where, dict) and where.get(part) is None:
            where[part] = {}
        if not _has(where, part):
            return _no_place(text, part, where)
        where = where[int(part)] if isinstance(where, list) else where[part]
    if not isinstance(where, dict) and not _has(where, last):
        return _no_place(text, last, where)
    where[int(last) if isinstance(where, list) else last] = parsed
    return None


def _has(where: Any, part: str) -> bool:
    if isinstance(where, list):
        return part.isdigit() and int(part) < len(where)
    return isinstance(where, dict)


def _no_place(text: str, part: str, where: Any) -> str:
    if not isinstance(where, list):
        return f"override {text!r}: {where!r} is a single value, without keys. Remove .{part}."
    if not where:
        return f"override {text!r}: the list is empty. Set the whole list."
    items = f"{len(where)} item{'s' * (len(where) > 1)}"
    rule = f"index {part} is out of range for a list of {items}" if part.isdigit() else f"{part!r} is not a list index"
    return f"override {text!r}: {rule}. Use {'0' if len(where) == 1 else f'0 to {len(where) - 1}'}."


def _error(path: Path | None, problems: Sequence[str]) -> RecipeError:
    where = "command line" if path is None else path
    count = f" {len(problems)} errors" if len(problems) > 1 else ""
    return RecipeError("\n".join([f"{where}:{count}", *(f"  - {line}" for line in problems)]))
