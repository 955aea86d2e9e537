"""What a recipe's `stage` runs.

A stage turns a checked recipe into a Hugging Face folder, which the next stage can start from. To add one, write a
module with a recipe class and a function, and add a line to grpo/recipe/registry.py.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import cuda

from grpo.launch import signals
from grpo.launch.processes import keep_freed_memory
from grpo.recipe.config import OnPolicyRecipe
from grpo.recipe.load import RecipeError
from grpo.recipe.record import check_world, with_functions, write_resolved
from grpo.recipe.registry import STAGES
from grpo.recipe.section import StageRecipe
from grpo.stages.mesh import launched_with_fsdp2
from grpo.stages.parts import refusals
from grpo.stages.run_folder import claimed, folder_key

DONE_FILE = "done.json"  # written when a stage has finished: {"result": the folder with what it made}


def run(recipe: StageRecipe, reward_functions: Sequence[Callable[..., Any]] | None = None) -> Path:
    """Run a recipe's stage in this process; returns the folder it wrote. The resolved recipe goes to `output_dir`.

    The run writes to `<output_dir>-2`, `-3`, … if its `output_dir` belongs to another run.

    Raises:
        ValueError: reward functions were given to a stage that has no rewards.
        grpo.recipe.load.RecipeError: the problems cannot be shared among this many processes, or the recipe cannot
            resume the run in its folder.
    """
    functions = list(reward_functions or ())
    if functions and not isinstance(recipe, OnPolicyRecipe):
        raise ValueError(f"stage {recipe.stage!r} has no rewards, and reward_functions were given. Leave them out.")
    check_world(recipe, int(os.environ.get("WORLD_SIZE", "1")))
    if launched_with_fsdp2():
        if not isinstance(recipe, OnPolicyRecipe):
            raise RecipeError(
                f"accelerate was configured for FSDP, and stage {recipe.stage!r} does not shard its model. Launch "
                "without `--use_fsdp`; in a pipeline, set trainer.sharding=fsdp2 in the stages grpo and opd."
            )
        # Else transformers reads a model's weights in the main process only, and leaves the others' random.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    if not cuda.is_available():
        keep_freed_memory()
    stage = STAGES[recipe.stage].function()
    if recipe.stage in ("eval", "pipeline"):  # they resume by rules of their own
        return stage(recipe)
    with _only_run(), claimed(_recorded(recipe, functions)) as claim:
        if claim.finished:
            return _done(claim.folder, claim.finished)
        _say_how_to_continue(recipe, claim.folder)
        recipe = recipe.in_folder(claim.folder)
        if os.environ.get("RANK", "0") == "0":
            with refusals():
                write_resolved(_recorded(recipe, functions), claim.folder)
        result = stage(recipe, functions) if isinstance(recipe, OnPolicyRecipe) else stage(recipe)
        if os.environ.get("RANK", "0") == "0":
            print(f"{STAGES[recipe.stage].makes.removeprefix('a ')}: {result}", flush=True)
        return _done(claim.folder, result)


def _say_how_to_continue(recipe: StageRecipe, folder: Path) -> None:
    """Tell the signals' handler which settings continue the run in its folder. A pipeline finds them itself."""
    key, given = STAGES[recipe.stage].resume, recipe.resume_from_checkpoint
    if not key or signals.WITHIN_PIPELINE in os.environ:
        return
    moved = [f"{folder_key(recipe)}={folder}"] if folder != recipe.output_dir else []
    resumed = [] if given is True else [f"{key}=true"]
    # Until a checkpoint is saved, a run that trains starts where it did; samples are there at once.
    signals.goes_on_with(moved + resumed if key == "resume" else [], moved + resumed)


def _recorded(recipe: StageRecipe, functions: Sequence[Callable[..., Any]]) -> StageRecipe:
    return with_functions(recipe, functions) if isinstance(recipe, OnPolicyRecipe) else recipe


def _done(folder: Path, result: Path) -> Path:
    if os.environ.get("RANK", "0") == "0":
        (folder / DONE_FILE).write_text(json.dumps({"result": str(result)}) + "\n", encoding="utf-8")
    PartialState().wait_for_everyone()  # all processes of a pipeline read the file next
    return result


_running = False


@contextmanager
def _only_run() -> Iterator[None]:
    """Refuse a run within a run: importing a reward from a script that trains would start the script's run."""
    global _running
    if _running:
        raise RecipeError(
            "grpo.train was called while a run is starting: a reward's file calls it when imported. "
            'Put that call under `if __name__ == "__main__":`.'
        )
    _running = True
    try:
        yield
    finally:
        _running = False
