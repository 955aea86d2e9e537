"""One folder, one run: used folders, locks, resuming with the same and with another recipe."""

import json
import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import grpo
from grpo.learner.checkpoint import STATE, read_mark
from grpo.learner.policy import Policy
from grpo.recipe.load import RecipeError, load_recipe
from grpo.report.lock import LOCK_FILE, lock
from grpo.report.records import deterministic
from grpo.stages import run_folder
from grpo.stages.run import run
from grpo.stages.run_folder import is_used


@pytest.fixture
def base(tiny_llama: Path, tmp_path: Path) -> Path:
    """A recipe that takes about a second; the run's folder is `run` beside it."""
    recipe = {
        "model": {"model_name_or_path": str(tiny_llama)},
        "data": {"task": "countdown", "template": "{prompt} :", "max_prompt_length": 40},
        "rollout": {"engine": "hf", "problems_per_step": 2, "num_generations": 2, "max_completion_length": 4},
        "rewards": [{"function": "random"}],
        "trainer": {"output_dir": str(tmp_path / "run"), "num_reward_workers": 1, "learning_rate": 1e-3},
    }
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def train(recipe: Path, max_steps: int, **trainer: Any) -> Path:
    return grpo.train(recipe, trainer={"max_steps": max_steps, **trainer})


def resume(recipe: Path, max_steps: int, **trainer: Any) -> Path:
    return train(recipe, max_steps, **{"resume_from_checkpoint": True, **trainer})


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def rates(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["learning_rate"] for row in rows]


def test_a_run_never_writes_into_another_runs_folder(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(base, 3)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    capsys.readouterr()
    assert train(base, 1) == tmp_path / "run-2" / "checkpoint-1"
    assert capsys.readouterr().out.startswith(
        f"{tmp_path}/run belongs to an earlier run, so this run writes to {tmp_path}/run-2. "
        "To continue that run instead: trainer.resume_from_checkpoint=true.\n"
    )
    assert train(base, 1) == tmp_path / "run-3" / "checkpoint-1"
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    assert first == tmp_path / "run" / "checkpoint-3"
    assert yaml.safe_load((tmp_path / "run-2" / "recipe.yaml").read_text())["trainer"]["output_dir"] == str(
        tmp_path / "run-2"
    )
    assert (steps(tmp_path / "run"), steps(tmp_path / "run-2")) == ([1, 2, 3], [1])
    assert resume(base, 4) == tmp_path / "run" / "checkpoint-4"
    assert steps(tmp_path / "run") == [1, 2, 3, 4]


def test_what_makes_a_folder_used(tmp_path: Path) -> None:
    assert not is_used(tmp_path / "missing")
    (tmp_path / "console.log").write_text("x")
    (tmp_path / "metrics.jsonl").touch()  # a run that failed before its first row leaves these
    (tmp_path / "recipe.yaml").write_text("stage: grpo\n")
    (tmp_path / "environment.json").write_text("{}")
    assert not is_used(tmp_path)
    (tmp_path / "environment.json").unlink()  # not written by a run: somebody's own recipe
    assert is_used(tmp_path)


HOLDER = """
import sys, time
from pathlib import Path
from grpo.report.lock import lock
held = lock(Path(sys.argv[1]))
print(held is not None, flush=True)
time.sleep(600)
"""


def test_a_folder_in_use_is_left_alone_until_its_process_ends(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(base, 1)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(grpo.__file__).parents[1])},
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "True\n"
        with pytest.raises(RecipeError, match=rf"run is in use by process {holder.pid}, and only one process"):
            resume(base, 2)
        assert train(base, 1).parent == tmp_path / "run-2"
        assert f"run belongs to process {holder.pid}, which is writing to it" in capsys.readouterr().out
    finally:
        holder.kill()
        holder.wait()
    assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == holder.pid
    assert resume(base, 2) == tmp_path / "run" / "checkpoint-2"


COUNTDOWN: dict[str, Any] = {"data": {"task": "countdown"}, "rewards": [{"function": "countdown"}]}
STAGES: dict[str, dict[str, Any]] = {
    "grpo": {**COUNTDOWN, "trainer": {"resume_from_checkpoint": True}},
    "rejection": COUNTDOWN,
    "pipeline": {"base": "v3", "stages": {"one": {"from": "base", **COUNTDOWN}}},
}


@pytest.mark.parametrize(
    ("stage", "key", "remedy"),
    [
        ("grpo", "trainer.output_dir", "or start a new run without trainer.resume_from_checkpoint."),
        ("rejection", "output", "or start a new run with resume=false."),
        ("pipeline", "output", "Wait for it, or choose another folder."),
    ],
)
def test_errors_about_the_folder_name_keys_that_the_stage_has(
    stage: str, key: str, remedy: str, tmp_path: Path
) -> None:
    def refusal(folder: Path) -> str:
        model = {} if stage == "pipeline" else {"model": {"model_name_or_path": "v3"}}
        recipe = load_recipe(None, [f"{key}={folder}"], sections={"stage": stage, **model, **STAGES[stage]})
        with pytest.raises(RecipeError) as refused:
            run(recipe)
        return str(refused.value)

    held = lock(tmp_path / "run")
    assert held is not None
    said = refusal(tmp_path / "run")
    os.close(held)
    assert said.startswith(f"{key}={tmp_path}/run is in use by process {os.getpid()}") and said.endswith(remedy)
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file" / "run") == (
        f"{key}={tmp_path}/file/run cannot be written to (Not a directory). Choose another folder."
    )


def test_resuming_at_or_beyond_the_last_step_returns_the_checkpoint(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = train(base, 2)
    for max_steps in (2, 1):
        assert resume(base, max_steps) == done
        assert f"{done} is already at step 2, and trainer.max_steps={max_steps}: nothing" in capsys.readouterr().out
    assert steps(tmp_path / "run") == [1, 2]


def test_a_copied_checkpoint_continues_its_run_under_any_name(base: Path, tmp_path: Path) -> None:
    train(base, 3, save_steps=1)
    whole = (tmp_path / "run" / "metrics.jsonl").read_text()
    copied = tmp_path / "copied-folder"
    shutil.copytree(tmp_path / "run" / "checkpoint-2", copied)
    assert train(base, 3, resume_from_checkpoint=str(copied)) == tmp_path / "run" / "checkpoint-3"
    assert steps(tmp_path / "run") == [1, 2, 3] and len(whole.splitlines()) == 3
    assert (tmp_path / "run" / "checkpoint-3.superseded").is_dir()
    elsewhere = train(base, 3, resume_from_checkpoint=str(copied), output_dir=str(tmp_path / "other"))
    assert elsewhere == tmp_path / "other" / "checkpoint-3"
    assert steps(tmp_path / "other") == [3]
    # a checkpoint of another run does not mix with the run in the folder
    assert train(base, 4, resume_from_checkpoint=str(elsewhere)).parent == tmp_path / "run-2"


def test_a_step_in_the_middle_of_a_rollout_is_refused(base: Path) -> None:
    train(base, 2)
    recipe = yaml.safe_load(base.read_text()) | {"algorithm": {"steps_per_generation": 3}}
    base.write_text(yaml.safe_dump(recipe))
    with pytest.raises(RecipeError, match=r"algorithm\.steps_per_generation: was 1, now 3"):
        resume(base, 6)
    with pytest.raises(RecipeError, match=r"steps_per_generation=3: .*checkpoint-2 is at step 2, in the middle of a"):
        resume(base, 6, allow_changes=["algorithm.steps_per_generation"])


def test_a_changed_recipe_is_refused_by_key_and_value(base: Path, tmp_path: Path) -> None:
    train(base, 1)
    recipe = yaml.safe_load(base.read_text())
    recipe["trainer"] |= {"seed": 7, "learning_rate": 1e-4}
    recipe["data"]["task"] = "arithmetic"
    recipe["rewards"].append({"function": "format"})
    base.write_text(yaml.safe_dump(recipe))
    with pytest.raises(RecipeError) as refused:
        resume(base, 2, allow_changes=["data"])
    lines = str(refused.value).splitlines()
    assert lines[1:3] == ["  - trainer.learning_rate: was 0.001, now 0.0001", "  - trainer.seed: was 42, now 7"]
    assert lines[3] == "  - rewards.1.function: was not set, now 'format'"
    assert "trainer.allow_changes=[trainer.learning_rate,trainer.seed,rewards.1.function," in lines[-1]
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["trainer"]["seed"] == 42


def test_allowed_changes_take_effect(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = {"lr_scheduler_type": "linear", "save_steps": 2, "weight_decay": 0.0}
    train(base, 4, **shared)
    assert rates(tmp_path / "run") == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    resume(base, 8, **shared)  # a longer schedule: from step 4 of 8
    assert rates(tmp_path / "run")[4:] == pytest.approx([5e-4, 3.75e-4, 2.5e-4, 1.25e-4])
    change = {"learning_rate": 2e-3, "adam_beta1": 0.5, "weight_decay": 0.25, "lr_scheduler_type": "constant"}
    allowed = [f"trainer.{name}" for name in change]
    seen: list[list[dict[str, Any]]] = []
    original = Policy.update

    def update(policy: Policy, *arguments: Any) -> Any:
        seen.append([dict(group) for group in policy.optimizer.param_groups])
        return original(policy, *arguments)

    monkeypatch.setattr(Policy, "update", update)
    done = resume(base, 10, **shared | change, allow_changes=allowed)
    assert rates(tmp_path / "run")[8:] == [2e-3, 2e-3]
    assert [(g["betas"], g["weight_decay"], g["lr"]) for g in seen[0]] == [
        ((0.5, 0.999), 0.25, 2e-3),
        ((0.5, 0.999), 0.0, 2e-3),
    ]
    recorded = yaml.safe_load((done / STATE / "recipe.yaml").read_text())
    assert recorded["trainer"]["learning_rate"] == 2e-3


def test_checkpoints_record_the_held_out_score(base: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load(base.read_text())
    recipe["evaluation"] = {"num_problems": 2, "num_samples": 2, "eval_steps": 2}
    base.write_text(yaml.safe_dump(recipe))
    train(base, 3, save_steps=1, save_total_limit=3)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = {row["step"]: row["eval/pass@1"] for row in rows if "eval/pass@1" in row}
    assert sorted(scores) == [0, 2, 3]
    marks = [read_mark(tmp_path / "run" / f"checkpoint-{step}") for step in (1, 2, 3)]
    assert [mark.score for mark in marks] == [None, scores[2], scores[3]]
    assert {mark.run for mark in marks} == {json.loads((tmp_path / "run" / LOCK_FILE).read_text())["run"]}


@pytest.mark.slow
def test_all_processes_agree_on_the_folder_and_on_errors(base: Path, tmp_path: Path) -> None:
    def launch(*overrides: str) -> subprocess.CompletedProcess[str]:
        options = ["--cpu", "--num_processes", "2", "-m", "grpo", "train", str(base), *overrides]
        command = [sys.executable, "-m", "accelerate.commands.launch", *options]
        environment = {**os.environ, "PYTHONPATH": str(Path(grpo.__file__).parents[1])}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)

    train(base, 1)
    done = launch("trainer.max_steps=1")
    assert done.returncode == 0 and done.stdout.count("so this run writes to") == 1, done.stderr
    assert (steps(tmp_path / "run"), steps(tmp_path / "run-2")) == ([1], [1])
    refused = launch("trainer.max_steps=2", "trainer.seed=7", "trainer.resume_from_checkpoint=true")
    assert refused.returncode != 0
    assert refused.stderr.count("trainer.seed: was 42, now 7") == 1


def test_processes_wait_for_each_other_and_host_memory_has_a_backend_beside_nccl(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL gives up after ten minutes by default, less than a long rollout or a large save."""
    asked: list[dict[str, Any]] = []

    def state(**keywords: Any) -> SimpleNamespace:
        asked.append(keywords)
        return SimpleNamespace(num_processes=2)

    monkeypatch.setattr(run_folder, "PartialState", state)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for offloads in (False, True):
        run_folder._connect(2, offloads=offloads)
    month = timedelta(days=30)
    assert asked == [
        {"cpu": False, "timeout": month},
        {"cpu": False, "timeout": month, "backend": "cuda:nccl,cpu:gloo"},
    ]


def test_pretraining_has_the_same_protection(base: Path, tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "words.jsonl").write_text('{"text": "one two three"}\n' * 4)
    recipe = {
        "stage": "pretrain",
        "model": {"model_name_or_path": str(tiny_llama)},
        "data": {"sources": [{"dataset_name": str(tmp_path / "words.jsonl")}]},
        "trainer": {"output_dir": str(tmp_path / "base"), "max_steps": 1, "max_tokens_per_batch": 64},
    }
    base.write_text(yaml.safe_dump(recipe))
    assert grpo.train(base) == tmp_path / "base"
    weights = (tmp_path / "base" / "model.safetensors").read_bytes()
    assert grpo.train(base, trainer={"learning_rate": 0.5}) == tmp_path / "base-2"
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "base-2" / "recipe.yaml").exists()


def test_resuming_with_other_processes_says_so(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = train(base, 1)
    (first / STATE / "random_states_1.pkl").touch()  # as two processes leave it
    assert resume(base, 2) == tmp_path / "run" / "checkpoint-2"
    assert "resuming in 1 processes what 2 saved: the batches stay the same" in capsys.readouterr().out


def test_a_run_stopped_in_its_last_step_is_evaluated_when_it_is_resumed(base: Path, tmp_path: Path) -> None:
    evaluation = {"num_problems": 2, "eval_steps": 0}
    grpo.train(base, evaluation=evaluation, trainer={"max_steps": 2})
    metrics = tmp_path / "run" / "metrics.jsonl"
    whole = metrics.read_text().splitlines()
    assert "eval/pass@1" in json.loads(whole[-1])
    metrics.write_text("".join(f"{line}\n" for line in whole[:-1]))  # the signal came before the evaluation
    again = {"max_steps": 2, "resume_from_checkpoint": True}
    assert grpo.train(base, evaluation=evaluation, trainer=again) == tmp_path / "run" / "checkpoint-2"
    rows = metrics.read_text().splitlines()
    assert rows[:-1] == whole[:-1]
    assert deterministic(json.loads(rows[-1])) == deterministic(json.loads(whole[-1]))


def test_a_folder_with_results_and_no_recipe_is_no_run_to_continue(base: Path, tiny_llama: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        resume(base, 1, output_dir=str(tiny_llama))
    assert str(refused.value) == (
        f"{tiny_llama} has results but no recipe.yaml, so it is not a run that can be continued. Choose another folder."
    )


def test_a_run_says_that_it_finds_nothing_to_resume_and_where_its_checkpoint_is(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resume(base, 1)
    printed = capsys.readouterr().out
    assert printed.startswith(f"{tmp_path}/run has no complete checkpoint: the run starts at step 0.\n")
    assert printed.endswith(f"model: {tmp_path}/run/checkpoint-1\n")


def test_a_run_that_has_saved_nothing_is_not_told_to_resume(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Any, Any]] = []
    monkeypatch.setattr("grpo.launch.signals.goes_on_with", lambda before, after: told.append((before, after)))
    train(base, 1)
    train(base, 1)
    resumed = "trainer.resume_from_checkpoint=true"
    assert told == [([], [resumed]), ([], [f"trainer.output_dir={tmp_path}/run-2", resumed])]
