"""Checkpoint folders: written atomically, the newest K kept, half-written ones recognised.

A checkpoint is a Hugging Face folder with everything a resume needs beside it, under `trainer_state/`.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATE = "trainer_state"
COMPLETE = "complete"  # written last, inside STATE


def checkpoint_path(output_dir: Path, step: int) -> Path:
    return output_dir / f"checkpoint-{step}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [p for p in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted((p for p in found if (p / STATE / COMPLETE).exists()), key=step_of)


def find_checkpoint(output_dir: Path, resume: bool | str) -> Path | None:
    """The checkpoint that `trainer.resume_from_checkpoint` names; None: start afresh.

    Raises:
        ValueError: the named folder is missing or half written.
    """
    if resume is False:
        return None
    if resume is True:
        found = list_checkpoints(output_dir)
        return found[-1] if found else None
    path = Path(resume)
    if not (path / STATE / COMPLETE).exists():
        others = [p.name for p in list_checkpoints(path.parent)]
        raise ValueError(
            f"trainer.resume_from_checkpoint={resume}: not a complete checkpoint (no {STATE}/{COMPLETE} in it; a run "
            f"killed while saving leaves such a folder). Complete ones beside it: {', '.join(others) or 'none'}."
        )
    return path


@contextmanager
def writing(output_dir: Path, step: int, *, is_main_process: bool) -> Iterator[Path]:
    """A folder to write into; it gets its final name when the block ends without an error.

    All processes enter; the caller waits for them inside the block, after the last write.
    """
    final = checkpoint_path(output_dir, step)
    partial = final.with_name(final.name + ".partial")
    if is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / STATE).mkdir(parents=True)
    yield partial
    if is_main_process:
        (partial / STATE / COMPLETE).touch()
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)


def rotate(output_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for old in list_checkpoints(output_dir)[:-keep]:
        shutil.rmtree(old)
