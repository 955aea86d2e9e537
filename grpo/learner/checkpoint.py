"""Checkpoint folders: written atomically, rotated without losing what may be needed to go back.

A checkpoint is a Hugging Face folder with everything a resume needs beside it, under `trainer_state/`. The file
`trainer_state/complete` is written last and deleted first: a folder without it is half written or half deleted.
"""

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from grpo.recipe.load import RecipeError

STATE = "trainer_state"
COMPLETE = "complete"  # a Mark as JSON, inside STATE
NAME = re.compile(r"checkpoint-\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Mark(step=30, run="a3f09c1e", score=0.95, kept_because="the run failed after it: …")"""

    step: int  # optimizer steps taken
    run: str = ""  # the run that wrote it, see grpo/stages/run_folder.py
    score: float | None = None  # held-out pass@1; None: not evaluated at this step
    kept_because: str = ""  # rotation spares checkpoints with a reason


def checkpoint_path(output_dir: Path, step: int) -> Path:
    return output_dir / f"checkpoint-{step}"


def read_mark(checkpoint: Path) -> Mark:
    """Raises RecipeError for a checkpoint written before marks had content."""
    text = (checkpoint / STATE / COMPLETE).read_text(encoding="utf-8")
    if not text:
        raise RecipeError(
            f"{checkpoint}/{STATE}/{COMPLETE} is empty: an earlier version wrote this checkpoint, and it cannot be "
            f"resumed. Start from its weights with model.model_name_or_path={checkpoint}."
        )
    return Mark(**json.loads(text))


def step_of(checkpoint: Path) -> int:
    return read_mark(checkpoint).step


def is_complete(checkpoint: Path) -> bool:
    return (checkpoint / STATE / COMPLETE).is_file()


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [p for p in output_dir.glob("checkpoint-*") if NAME.fullmatch(p.name) and is_complete(p)]
    return sorted(found, key=lambda p: int(p.name.partition("-")[2]))


def find_checkpoint(output_dir: Path, resume: bool | str) -> Path | None:
    """The checkpoint that `trainer.resume_from_checkpoint` names, whatever its folder is called; None: start afresh.

    Raises:
        RecipeError: the named folder is missing or incomplete.
    """
    if resume is False:
        return None
    if resume is True:
        found = list_checkpoints(output_dir)
        return found[-1] if found else None
    path = Path(resume)
    if not is_complete(path):
        if inside := list_checkpoints(path):
            raise RecipeError(
                f"trainer.resume_from_checkpoint={resume}: is the folder of a run. Name a checkpoint in it, such as "
                f"{inside[-1]}; or set trainer.output_dir={path} trainer.resume_from_checkpoint=true, which takes the "
                "newest."
            )
        others = [p.name for p in list_checkpoints(path.parent)]
        raise RecipeError(
            f"trainer.resume_from_checkpoint={resume}: not a complete checkpoint ({STATE}/{COMPLETE} is missing, as in "
            f"a folder that was being saved or deleted when its process died). Complete checkpoints beside it: "
            f"{', '.join(others) or 'none'}."
        )
    return path


# -- writing: begin, fill the folder, finish


def partial_path(output_dir: Path, step: int) -> Path:
    return output_dir / f"checkpoint-{step}.partial"


def begin(output_dir: Path, step: int) -> Path:
    """An empty folder to write into, under a temporary name. Deletes what interrupted saves have left.

    One that was interrupted between its two renames has left the earlier copy, which gets its name back.
    """
    for earlier in output_dir.glob("checkpoint-*.earlier"):
        if (final := earlier.with_suffix("")).exists():
            remove([earlier])
        else:
            earlier.rename(final)
    for stale in output_dir.glob("checkpoint-*.partial"):
        shutil.rmtree(stale)
    partial = partial_path(output_dir, step)
    (partial / STATE).mkdir(parents=True)
    return partial


def finish(partial: Path, mark: Mark) -> Path:
    """Mark the folder as complete and give it its final name; one that has the name is deleted only then."""
    write_mark(partial, mark)
    final = partial.with_suffix("")
    earlier = final.with_suffix(".earlier")
    if final.exists():
        remove([earlier])
        final.rename(earlier)
    partial.rename(final)
    remove([earlier])
    return final


def remove(checkpoints: Iterable[Path]) -> None:
    """Delete checkpoints; one whose deletion is interrupted no longer counts as complete."""
    for checkpoint in checkpoints:
        (checkpoint / STATE / COMPLETE).unlink(missing_ok=True)
        if checkpoint.exists():
            shutil.rmtree(checkpoint)


# -- what is kept


def rotate(output_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, the one with the best score and those kept for a reason."""
    found = list_checkpoints(output_dir)
    marks = {path: read_mark(path) for path in found}
    scores = {path: (mark.score, mark.step) for path, mark in marks.items() if mark.score is not None}
    best = max(scores, key=lambda path: scores[path]) if scores else None
    remove(path for path in found[:-keep] if path != best and not marks[path].kept_because)


def keep_newest(output_dir: Path, reason: str) -> None:
    """Exempt the newest checkpoint from rotation, in place of the one exempted before."""
    for path in list_checkpoints(output_dir):
        if read_mark(path).kept_because:
            write_mark(path, replace(read_mark(path), kept_because=""))
    for path in list_checkpoints(output_dir)[-1:]:
        write_mark(path, replace(read_mark(path), kept_because=reason))


def set_aside_after(output_dir: Path, step: int) -> list[Path]:
    """Rename checkpoints of later steps to `checkpoint-<step>.superseded`: the run goes back and trains them anew."""
    later = [path for path in list_checkpoints(output_dir) if step_of(path) > step]
    aside = []
    for path in later:
        target = path.with_suffix(".superseded")
        remove([target])
        aside.append(path.rename(target))
    return aside


def write_mark(checkpoint: Path, mark: Mark) -> None:
    """Mark a folder as a complete checkpoint."""
    (checkpoint / STATE).mkdir(exist_ok=True)
    file = checkpoint / STATE / COMPLETE
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(mark)) + "\n", encoding="utf-8")
    draft.replace(file)
