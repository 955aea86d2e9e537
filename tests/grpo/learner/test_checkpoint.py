"""Checkpoint folders: atomic, rotated, and honest about half-written ones."""

from pathlib import Path

import pytest

from grpo.learner.checkpoint import COMPLETE, STATE, checkpoint_path, find_checkpoint, list_checkpoints, rotate, writing


def write(output_dir: Path, step: int, text: str = "weights") -> None:
    with writing(output_dir, step, is_main_process=True) as folder:
        (folder / "model.txt").write_text(text)


def test_a_checkpoint_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk full"), writing(tmp_path, 5, is_main_process=True) as folder:
        (folder / "model.txt").write_text("half")
        raise OSError("disk full")
    assert list_checkpoints(tmp_path) == []
    assert not checkpoint_path(tmp_path, 5).exists()
    write(tmp_path, 5)  # what the failed attempt left does not stand in the way
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-5"]


def test_newest_is_by_step_and_old_ones_go(tmp_path: Path) -> None:
    for step in (5, 100, 20):
        write(tmp_path, step)
    assert find_checkpoint(tmp_path, True) == tmp_path / "checkpoint-100"
    rotate(tmp_path, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-20", "checkpoint-100"]


def test_resume_without_a_checkpoint_starts_afresh(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path, True) is None
    assert find_checkpoint(tmp_path, False) is None


def test_half_written_checkpoint_is_refused_and_the_whole_ones_are_named(tmp_path: Path) -> None:
    write(tmp_path, 10)
    write(tmp_path, 20)
    (tmp_path / "checkpoint-20" / STATE / COMPLETE).unlink()
    assert find_checkpoint(tmp_path, True) == tmp_path / "checkpoint-10"
    with pytest.raises(ValueError, match=r"checkpoint-20: not a complete checkpoint.*checkpoint-10"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-20"))
