"""The folder a run writes to: one folder, one run.

A run that does not resume never writes into a folder with another run's results; it takes the next free
`<output_dir>-2`, `-3`, …, and holds the folder's lock (grpo/report/lock.py).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from torch import cuda

from grpo.launch.processes import PATIENCE
from grpo.learner import checkpoint as checkpoints
from grpo.recipe.config import OnPolicyRecipe
from grpo.recipe.load import RecipeError
from grpo.recipe.registry import STAGES
from grpo.recipe.section import StageRecipe
from grpo.report.lock import is_locked, lock, owner
from grpo.report.records import METRICS_FILE, is_evaluation, read_rows
from grpo.stages.changes import afresh, check_unchanged
from grpo.stages.rejection.candidates import FOLDER as CANDIDATES

RESULTS = ("metrics.jsonl", "samples.jsonl", "results.json", "config.json")  # a folder with one of them is used


@dataclass(frozen=True, slots=True)
class Claim:
    """The folder a run owns, and the checkpoint it stops at if that already has `max_steps`."""

    folder: Path
    finished: Path | None = None


@contextmanager
def claimed(recipe: StageRecipe) -> Iterator[Claim]:
    """Choose, lock and yield the run's folder. All processes enter and agree; the main process chooses.

    recipe: as it will be recorded.

    Raises:
        RecipeError: the folder cannot be written to or is in use, or the recipe cannot continue the run in it.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1:
        _connect(launched, offloads=isinstance(recipe, OnPolicyRecipe) and recipe.trainer.offload_params)
    held: int | None = None
    answer: list[Any] = [None]
    if os.environ.get("RANK", "0") == "0":
        try:
            held, claim = _choose(recipe)
            answer = [claim]
        except RecipeError as error:
            answer = [error]
    if launched > 1:
        broadcast_object_list(answer)
    if isinstance(answer[0], RecipeError):
        raise answer[0]
    try:
        yield answer[0]
    finally:
        if held is not None:
            os.close(held)


@contextmanager
def locked(recipe: StageRecipe) -> Iterator[None]:
    """Hold the lock of the recipe's folder in the main process.

    Raises:
        RecipeError: another process holds it.
    """
    held: int | None = None
    folder = recipe.output_dir
    if os.environ.get("RANK", "0") == "0" and (held := _lock(recipe, folder)) is None:
        raise RecipeError(
            f"{folder_key(recipe)}={folder} is in use by process {owner(folder).get('pid')}. Wait for it, or choose "
            "another folder."
        )
    try:
        yield
    finally:
        if held is not None:
            os.close(held)


def folder_key(recipe: StageRecipe) -> str:
    """The recipe's key for the folder it writes to."""
    return "trainer.output_dir" if hasattr(recipe, "trainer") else "output"


def run_id(folder: Path) -> str:
    """The id of the run that owns the folder; empty: nobody's."""
    return owner(folder).get("run", "")


def _choose(recipe: StageRecipe) -> tuple[int, Claim]:
    wanted, resume = recipe.output_dir, recipe.resume_from_checkpoint
    checkpoint = checkpoints.find_checkpoint(wanted, resume)
    mine = resume is True or (checkpoint is not None and checkpoints.read_mark(checkpoint).run == run_id(wanted))
    if not mine:
        held, folder = _next_free(recipe)
        if folder != wanted:
            key = STAGES[recipe.stage].resume
            resumable = key and checkpoints.list_checkpoints(wanted)
            hint = f" To continue that run instead: {key}=true." if resumable else ""
            print(f"{wanted} belongs to {_describe(wanted)}, so this run writes to {folder}.{hint}", flush=True)
    else:
        held, folder = _lock(recipe, wanted), wanted
        if held is None:
            raise RecipeError(
                f"{folder_key(recipe)}={wanted} is in use by process {owner(wanted).get('pid')}, and only one process "
                f"may write to a run's folder. Wait for it or stop it before resuming, or {afresh(recipe)}."
            )
    try:
        if checkpoint is not None and isinstance(recipe, OnPolicyRecipe):
            return held, _continue(recipe, checkpoint, folder)
        if mine and is_used(folder):
            check_unchanged(recipe, folder / "recipe.yaml", recipe.allow_changes)
        if resume is True and checkpoint is None and STAGES[recipe.stage].resume == "trainer.resume_from_checkpoint":
            print(f"{folder} has no complete checkpoint: the run starts at step 0.", flush=True)
    except BaseException:
        os.close(held)
        raise
    return held, Claim(folder)


def _continue(recipe: OnPolicyRecipe, checkpoint: Path, folder: Path) -> Claim:
    """Check that the recipe can continue from the checkpoint."""
    recorded = checkpoint / checkpoints.STATE / "recipe.yaml"
    check_unchanged(recipe, recorded, recipe.trainer.allow_changes)
    step, per_rollout = checkpoints.step_of(checkpoint), recipe.policy_gradient.steps_per_generation
    if step % per_rollout:
        raise RecipeError(
            f"algorithm.steps_per_generation={per_rollout}: {checkpoint} is at step {step}, in the middle of a rollout "
            f"of {per_rollout} steps. Resume from a multiple of {per_rollout}, or restore steps_per_generation."
        )
    if step >= recipe.trainer.max_steps and _is_evaluated(recipe, checkpoint, step):
        print(
            f"{checkpoint} is already at step {step}, and trainer.max_steps={recipe.trainer.max_steps}: nothing to "
            "train. Raise trainer.max_steps to continue.",
            flush=True,
        )
        return Claim(folder, finished=checkpoint)
    before = len(list((checkpoint / checkpoints.STATE).glob("random_states_*.pkl")))
    if (now := int(os.environ.get("WORLD_SIZE", "1"))) != before:
        print(
            f"resuming in {now} processes what {before} saved: the batches stay the same, and their gradients up to "
            "rounding.",
            flush=True,
        )
    for path in checkpoints.set_aside_after(folder, step):
        print(f"resuming at step {step}: the later {path.with_suffix('').name} was renamed to {path.name}.", flush=True)
    return Claim(folder)


def _is_evaluated(recipe: OnPolicyRecipe, checkpoint: Path, step: int) -> bool:
    """Whether the run's last evaluation was done: a signal in the last step comes before it."""
    rows = list(read_rows(checkpoint.parent / METRICS_FILE))
    wanted = recipe.evaluation.num_problems or recipe.evaluation.tasks
    return not rows or not wanted or any(is_evaluation(row) and row["step"] == step for row in rows)


def _connect(launched: int, *, offloads: bool) -> None:
    """Start the process group, on CPU if `accelerate launch --cpu` says so, as Accelerator would; it takes this one.

    offloads: weights and gradients are in host memory, so that processes with GPUs need gloo beside NCCL.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    both = {"backend": "cuda:nccl,cpu:gloo"} if offloads and cuda.is_available() and not on_cpu else {}
    found = PartialState(cpu=on_cpu, timeout=PATIENCE, **both).num_processes
    if found != launched:
        raise RecipeError(
            f"{launched} processes were launched, but accelerate would run each of them on its own (it found no GPU "
            f"for them). Launch with `accelerate launch --cpu --num_processes {launched}`."
        )


# -- folders


def is_used(folder: Path) -> bool:
    """Whether a folder has what a run or an evaluation produced, or somebody's own recipe.yaml."""
    if not folder.exists():
        return False
    results = any((folder / name).is_file() and (folder / name).stat().st_size for name in RESULTS)
    recipe = (folder / "recipe.yaml").exists() and not (folder / "environment.json").exists()
    sampled = any((folder / CANDIDATES).glob("*.parquet"))
    return results or recipe or sampled or bool(checkpoints.list_checkpoints(folder))


def _next_free(recipe: StageRecipe) -> tuple[int, Path]:
    wanted = recipe.output_dir
    base = wanted if wanted.name not in ("", "..") else wanted.resolve()
    for number in count(1):
        folder = wanted if number == 1 else base.with_name(f"{base.name}-{number}")
        if not is_used(folder) and (held := _lock(recipe, folder, new=True)) is not None:
            if not is_used(folder):  # asked again under the lock
                return held, folder
            os.close(held)
    raise AssertionError


def _lock(recipe: StageRecipe, folder: Path, *, new: bool = False) -> int | None:
    """`lock`, for a folder that the recipe names."""
    try:
        return lock(folder, new=new)
    except OSError as error:
        raise RecipeError(
            f"{folder_key(recipe)}={folder} cannot be written to ({error.strerror}). Choose another folder."
        ) from None


def _describe(folder: Path) -> str:
    """`an earlier run`, or `process 123, which is writing to it`."""
    return f"process {owner(folder)['pid']}, which is writing to it" if is_locked(folder) else "an earlier run"
