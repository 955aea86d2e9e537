"""Checkpoint folders: atomic, rotated, and honest about incomplete ones."""

import shutil
from pathlib import Path

import pytest

from grpo.learner.checkpoint import (
    COMPLETE,
    STATE,
    Mark,
    begin,
    checkpoint_path,
    find_checkpoint,
    finish,
    keep_newest,
    list_checkpoints,
    read_mark,
    remove,
    rotate,
    set_aside_after,
    step_of,
)


def write(output_dir: Path, step: int, score: float | None = None) -> Path:
    partial = begin(output_dir, step)
    (partial / "model.txt").write_text("weights")
    return finish(partial, Mark(step=step, run="r", score=score))


def names(output_dir: Path) -> list[str]:
    return [p.name for p in list_checkpoints(output_dir)]


def test_a_checkpoint_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    (begin(tmp_path, 5) / "model.txt").write_text("half")
    assert names(tmp_path) == []
    assert not checkpoint_path(tmp_path, 5).exists()
    write(tmp_path, 10)  # the interrupted save does not get in the way, and its folder is removed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10"]


def test_newest_is_by_step_and_old_ones_go(tmp_path: Path) -> None:
    for step in (5, 100, 20):
        write(tmp_path, step)
    assert find_checkpoint(tmp_path, True) == tmp_path / "checkpoint-100"
    rotate(tmp_path, keep=2)
    assert names(tmp_path) == ["checkpoint-20", "checkpoint-100"]


def test_the_best_checkpoint_survives_rotation(tmp_path: Path) -> None:
    for step, score in ((10, 0.5), (20, 0.75), (30, None), (40, 0.625), (50, 0.25), (60, None)):
        write(tmp_path, step, score)
        rotate(tmp_path, keep=2)
    assert names(tmp_path) == ["checkpoint-20", "checkpoint-50", "checkpoint-60"]
    assert read_mark(tmp_path / "checkpoint-20").score == 0.75
    write(tmp_path, 70, 0.75)  # of two equally good ones, the newer
    rotate(tmp_path, keep=2)
    assert names(tmp_path) == ["checkpoint-60", "checkpoint-70"]


def test_the_last_checkpoint_before_a_failure_survives_rotation(tmp_path: Path) -> None:
    write(tmp_path, 10)
    write(tmp_path, 20)
    keep_newest(tmp_path, "the run failed at step 25")
    for step in (30, 40, 50):
        write(tmp_path, step)
        rotate(tmp_path, keep=1)
    assert names(tmp_path) == ["checkpoint-20", "checkpoint-50"]
    keep_newest(tmp_path, "the run failed at step 55")  # takes the exemption over
    write(tmp_path, 60)
    rotate(tmp_path, keep=1)
    assert names(tmp_path) == ["checkpoint-50", "checkpoint-60"]


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


def test_half_deleted_checkpoint_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    write(tmp_path, 10)
    write(tmp_path, 20)
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove([tmp_path / "checkpoint-20"])
    assert (tmp_path / "checkpoint-20" / "model.txt").exists()
    assert names(tmp_path) == ["checkpoint-10"]


def test_a_step_that_is_saved_again_replaces_a_complete_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a signal came in the last step: the earlier folder goes only when the new one has its name."""
    write(tmp_path, 10)
    seen = []
    delete = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path: (seen.append(names(tmp_path)), delete(path)))
    write(tmp_path, 10, score=0.5)
    assert seen == [["checkpoint-10"]]
    assert read_mark(tmp_path / "checkpoint-10").score == 0.5
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-10"]
    (tmp_path / "checkpoint-10").rename(tmp_path / "checkpoint-10.earlier")  # killed between the renames
    write(tmp_path, 20)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-20"]


def test_step_comes_from_inside_the_folder(tmp_path: Path) -> None:
    copied = tmp_path / "copied-folder"
    shutil.copytree(write(tmp_path, 20), copied)
    assert find_checkpoint(tmp_path, str(copied)) == copied
    assert step_of(copied) == 20


def test_going_back_sets_later_checkpoints_aside(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write(tmp_path, step)
    set_aside_after(tmp_path, 10)
    assert names(tmp_path) == ["checkpoint-10"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint-10",
        "checkpoint-20.superseded",
        "checkpoint-30.superseded",
    ]
    assert find_checkpoint(tmp_path, str(tmp_path / "checkpoint-30.superseded"))


def test_checkpoint_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    (write(tmp_path, 10) / STATE / COMPLETE).write_text("")
    with pytest.raises(ValueError, match=r"earlier version.*model\.model_name_or_path="):
        step_of(tmp_path / "checkpoint-10")


def test_a_run_s_folder_is_told_its_newest_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 9)
    write(tmp_path, 10)
    with pytest.raises(
        ValueError, match=rf"{tmp_path}: is the folder of a run. Name a checkpoint in it, such as \S*-10;"
    ):
        find_checkpoint(tmp_path / "other", str(tmp_path))
