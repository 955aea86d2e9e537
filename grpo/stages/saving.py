"""Saving a run: a save that fails does not end it. What can be checked before is in grpo/learner/savable.py."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate.utils import gather_object

from grpo.launch import signals
from grpo.learner import checkpoint as checkpoints
from grpo.learner.restore import store
from grpo.model.checks import check_finite
from grpo.stages.build import Parts
from grpo.stages.run_folder import run_id


def save(parts: Parts, step: int, score: float | None) -> Path | None:
    """Write a checkpoint from which a run continues exactly, and delete old ones; returns its folder.

    If that fails, try once more in the temporary folder; if that fails too, say so and return None. The checkpoints
    that exist are left alone until a new one is complete.
    """
    check_finite(parts.policy.model)
    recipe, is_main = parts.recipe, parts.accelerator.is_main_process
    output_dir = recipe.output_dir
    mark = checkpoints.Mark(step=step, run=run_id(output_dir), score=score)
    spare = Path(tempfile.gettempdir()) / f"{output_dir.resolve().name}-{mark.run}"
    errors = []
    for place in (output_dir, spare):
        error = _write(parts, place, mark)
        if not error:
            break
        errors.append(f"in {place}: {error}")
    else:
        if is_main:
            _warn(f"step {step} could not be saved {'; nor '.join(errors)}. {_newest(output_dir)}")
        return None
    path = checkpoints.checkpoint_path(place, step)
    if is_main:
        if errors:
            _warn(
                f"step {step} could not be saved {errors[0]}. It was saved in {path} instead; to resume from it, set "
                f"trainer.resume_from_checkpoint={path}. Free disk space."
            )
        checkpoints.rotate(place, recipe.trainer.save_total_limit)
    parts.accelerator.wait_for_everyone()
    return path


@contextmanager
def keeping_newest_on_failure(parts: Parts) -> Iterator[None]:
    """If the block raises, exempt the newest checkpoint from rotation by the runs that continue from it."""
    try:
        yield
    except signals.Stopped:  # an end, not a failure
        raise
    except Exception as error:
        if parts.accelerator.is_main_process:
            checkpoints.keep_newest(
                parts.recipe.output_dir, f"the run failed after it: {type(error).__name__}: {error}"
            )
        raise


def _write(parts: Parts, place: Path, mark: checkpoints.Mark) -> str:
    """Write one checkpoint into `place`; returns what went wrong in any process, or an empty string."""
    processes, partial = parts.accelerator, checkpoints.partial_path(place, mark.step)
    state, reference = partial / checkpoints.STATE, parts.reference

    def describe() -> None:
        parts.tokenizer.save_pretrained(partial)
        shutil.copy(parts.recipe.output_dir / "recipe.yaml", state)

    only_main = processes.is_main_process
    moved = reference is not None and bool(parts.recipe.policy_gradient.ref_model_sync_steps)
    # One attempt for each collective: a process that failed before one would leave the others waiting in it.
    error = (
        _attempt(lambda: checkpoints.begin(place, mark.step), only_main)
        or _attempt(lambda: processes.save_state(str(state)), True)
        or _attempt(lambda: store(parts.policy, state), True)
        or _attempt(lambda: parts.policy.save(partial), True)
        or (_attempt(lambda: reference.save(partial), True) if reference is not None and moved else "")
        or _attempt(describe, only_main)
        or _attempt(lambda: checkpoints.finish(partial, mark), only_main)
    )
    if error and processes.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)  # on a full disk, the retry may need its space
    return error


def _attempt(work: Callable[[], object], mine: bool) -> str:
    """Run `work` in the processes it is for. All processes wait and return the first error, or an empty string.

    Any error counts: a full disk is an OSError, a RuntimeError or a SafetensorError, depending on who writes.
    """
    error = ""
    if mine:
        try:
            work()
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
    return next(filter(None, gather_object([error])), "")


def _newest(output_dir: Path) -> str:
    found = checkpoints.list_checkpoints(output_dir)
    return f"The newest checkpoint is {found[-1]}." if found else "There is no checkpoint yet."


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
