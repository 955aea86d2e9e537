"""A small pipeline as a user runs it: stages in their own processes, killed and continued, changed and run again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo.recipe.load import RecipeError
from grpo.report.records import deterministic, read_rows
from grpo.stages.pipeline import run
from grpo.stages.pipeline.graph import Node
from tests.grpo.stages.pipeline.test_graph import RL, SET, pipeline

DATA: dict[str, Any] = {"task": "countdown", "template": "{prompt} :", "max_prompt_length": 32}


def write_pipeline(folder: Path, model: Path) -> Path:
    folder.mkdir()
    stage = {
        "stage": "grpo",
        "data": DATA,
        "rollout": {"engine": "hf", "problems_per_step": 2, "num_generations": 4, "max_completion_length": 12},
        "rewards": [
            {"function": "soft_overlong_punishment", "options": {"max_completion_len": 12, "soft_punish_cache": 8}}
        ],
        "trainer": {"max_steps": 4, "save_steps": 1, "learning_rate": 1e-3},
    }
    recipe = {
        "stage": "pipeline",
        "base": str(model),
        "output": str(folder / "out"),
        "stages": {"one": {"from": "base", **stage}, "two": {"from": "one", **stage}},
        "evaluation": {
            "rollout": {"engine": "hf", "num_samples": 2, "max_completion_length": 12},
            "sets": {"maths": {"data": DATA, "rewards": [{"function": "countdown"}], "num_problems": 2}},
        },
    }
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def start(recipe: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "grpo", "train", str(recipe), *options]
    environment = {**os.environ, "ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "2"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def metrics(recipe: Path, stage: str) -> list[dict[str, Any]]:
    rows = read_rows(recipe.parent / "out" / stage / "metrics.jsonl")
    return [deterministic(row) for row in rows]


@pytest.mark.slow
def test_killed_in_its_second_stage_it_goes_on_there_and_ends_as_an_uninterrupted_one(
    tiny_v3: Path, tmp_path: Path
) -> None:
    whole, killed = (write_pipeline(tmp_path / name, tiny_v3) for name in ("whole", "killed"))
    output = finish(start(whole))
    assert [line for line in output.splitlines() if line.startswith("==")] == [
        "== base (evaluation): stage held_out",
        "== one: stage grpo",
        "== one (evaluation): stage held_out",
        "== two: stage grpo",
        "== two (evaluation): stage held_out",
    ]
    page = (tmp_path / "whole" / "out" / "index.html").read_text()
    assert "3 models evaluated" in page and "maths: pass@1" in page
    for model in ("base", "one", "two"):  # each answers both problems
        assert page.count(f"<div class=completion><b>{model}</b>") == 2

    process = start(killed)
    log = tmp_path / "killed" / "out" / "two" / "metrics.jsonl"
    while not (log.exists() and '"step": 2,' in log.read_text()):
        assert process.poll() is None, "the pipeline ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    output = finish(start(killed))
    assert f"== one: finished, {tmp_path}/killed/out/one/checkpoint-4" in output
    assert "== two: stage grpo, continued" in output
    assert metrics(killed, "two") == metrics(whole, "two")
    results = [
        json.loads((recipe.parent / "out/evaluation/two/results.json").read_text()) for recipe in (whole, killed)
    ]
    assert results[0] == results[1]

    output = finish(start(whole, "stages.two.trainer.max_steps=3", "--stage", "two"))
    assert "   runs again: trainer.max_steps was 4, now 3" in output
    assert f"   the earlier folder is now {tmp_path}/whole/out/two.previous-1" in output
    assert metrics(whole, "two")[-1]["step"] == 3


def test_a_stage_without_its_input_is_refused(tiny_v3: Path, tmp_path: Path) -> None:
    recipe = write_pipeline(tmp_path / "part", tiny_v3)
    output = finish(start(recipe, "--stage", "two"), code=2)
    assert "stages.two: reads from one, which has not finished. Run that first, or leave out --stage" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ({**RL, "rollout": {"problems_per_step": 3}}, r"rollout.problems_per_step=3 with 2 processes: every process"),
        (
            {
                "stage": "reward_model",
                "data": {"dataset_name": "pairs.jsonl"},
                "trainer": {"batch_size": 32, "max_pairs_per_micro_batch": 32},
            },
            r"trainer.batch_size=32 with 2 processes: must be a multiple of 2 x max_pairs_per_micro_batch=32.",
        ),
    ],
    ids=["problems", "pairs"],
)
def test_processes_that_a_later_stage_cannot_use_are_refused_before_the_first_one_runs(
    later: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = pipeline({"one": RL, "two": {**later, "from": "one"}}, output=str(tmp_path / "out"))
    with pytest.raises(RecipeError, match=f"^stages.two: {message}"):
        run.run_pipeline(recipe)
    assert not (tmp_path / "out" / "ledger").exists()


def test_an_evaluation_whose_model_is_not_there_is_left_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rewards of the set read what stage `judge` writes, so all evaluations follow that stage."""
    ran: list[str] = []

    def stage(_recipe: Any, node: Node, *_rest: Any) -> str:
        ran.append(node.name)
        node.folder.mkdir(parents=True)
        (node.folder / "results.json").write_text("{}")
        (node.folder / "samples.jsonl").write_text("")
        return str(node.folder)

    monkeypatch.setattr(run, "_run_stage", stage)
    judged = {**SET, "rewards": [{"function": "reward_model", "options": {"model_name_or_path": "stage:judge"}}]}
    stages, output = {"one": RL, "judge": RL}, str(tmp_path / "out")
    whole = pipeline(stages, output=output, evaluation={"sets": {"maths": judged}})
    run.run_pipeline(whole.model_copy(update={"first": "judge", "last": "judge"}))
    assert ran == ["judge", "base (evaluation)", "judge (evaluation)"]
    assert "== one (evaluation): left for later: one has not finished\n" in capsys.readouterr().out
    assert "2 models evaluated" in (tmp_path / "out" / "index.html").read_text()
