"""Saves that fail, before training and during it, and reward functions that only Python knows."""

import functools
import json
import shutil
import signal
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import yaml

import grpo
from grpo.launch import signals
from grpo.learner.checkpoint import list_checkpoints, read_mark
from grpo.learner.policy import Policy
from grpo.recipe.errors import RunError
from grpo.recipe.load import RecipeError, load_recipe
from grpo.recipe.record import import_path
from grpo.report import report
from grpo.stages.grpo import Trainer
from rollout.engines.hf import HFEngine
from tests.grpo.stages.test_run_folder import base, resume, steps, train

__all__ = ["base"]  # the fixture


def shortest(prompts: list, completions: list[str], **columns: Any) -> list[float]:
    return [-float(len(text)) for text in completions]


# -- before training


def contradictory(model: Path, folder: Path, **generation: Any) -> Path:
    shutil.copytree(model, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | generation))
    return folder


def test_a_contradictory_generation_config_is_normalised_and_warned_about_once(
    base: Path, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = contradictory(tiny_llama, tmp_path / "gen_bad", do_sample=False, temperature=0.6, length_penalty=2.0)
    algorithm = {"beta": 0.1, "ref_model_sync_steps": 1, "loss_type": "grpo"}  # the reference is saved as well
    done = grpo.train(
        base, model={"model_name_or_path": str(model)}, algorithm=algorithm, trainer={"max_steps": 2, "save_steps": 1}
    )
    saved = json.loads((done / "generation_config.json").read_text())
    assert saved["do_sample"] is False and "temperature" not in saved and "length_penalty" not in saved
    warning = f"warning: {model}: its generation_config sets temperature=0.6, length_penalty=2.0, which its decoding"
    assert capsys.readouterr().err.count(warning) == 1


def test_a_model_that_cannot_be_saved_is_refused_before_training(base: Path, tiny_llama: Path, tmp_path: Path) -> None:
    model = contradictory(tiny_llama, tmp_path / "worse", do_sample=False, output_scores=True)
    with pytest.raises(
        RecipeError, match=r"worse cannot be saved to .*run, so its training would be lost: .*output_scores"
    ):
        grpo.train(base, model={"model_name_or_path": str(model)}, trainer={"max_steps": 1})


def test_a_tokenizer_that_could_not_be_loaded_from_a_checkpoint_is_refused_before_training(
    base: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    """transformers saves the class of remote code wrongly unless its name contains "Tokenizer"."""
    model = shutil.copytree(tiny_llama, tmp_path / "remote")
    (model / "tok.py").write_text("from transformers import PreTrainedTokenizerFast as F\nclass Mine(F): pass\n")
    config = json.loads((model / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": [None, "tok.Mine"]}}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match=r"remote: its tokenizer, once saved, cannot be loaded again"):
        trusted = {"model_name_or_path": str(model), "trust_remote_code": True}
        grpo.train(base, model=trusted, trainer={"max_steps": 1})


def test_code_beside_a_tokenizer_that_is_not_trusted_is_not_run(base: Path, tiny_llama: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "untrusted")
    config = json.loads((model / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": [None, "tok.Mine"]}}  # there is no tok.py, nor is it needed
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    done = grpo.train(base, model={"model_name_or_path": str(model)}, trainer={"max_steps": 1})
    assert (done / "tokenizer_config.json").exists()


def test_a_full_disk_is_refused_before_training(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30, 107374))
    with pytest.raises(RecipeError, match=r"run: 0\.0001 GiB are free, but one checkpoint takes 0\.0013 GiB"):
        train(base, 1)


def test_a_folder_that_cannot_be_made_is_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"output_dir=.*file/run cannot be written to \(Not a directory\)"):
        train(base, 1, output_dir=str(tmp_path / "file" / "run"))


# -- during training


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[str]:
    """Saving to a path that contains one of these words fails, as on a full disk."""
    words: set[str] = set()
    original = Policy.save

    def save(policy: Policy, folder: Path) -> None:
        if any(word in str(folder) for word in words):
            raise OSError(28, "No space left on device")
        original(policy, folder)

    monkeypatch.setattr(Policy, "save", save)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return words


def test_a_checkpoint_that_does_not_fit_goes_to_the_temporary_folder(
    base: Path, tmp_path: Path, full: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    full.add("run/checkpoint-2")
    assert train(base, 2, save_steps=1).parent.parent == tmp_path / "temporary"
    (spare,) = (tmp_path / "temporary").glob("run-*/checkpoint-2")
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"warning: step 2 could not be saved in {tmp_path}/run: OSError: [Errno 28] No space left on device. It was "
        f"saved in {spare} instead; to resume from it, set trainer.resume_from_checkpoint={spare}. Free disk space."
    )
    assert [p.name for p in list_checkpoints(tmp_path / "run")] == ["checkpoint-1"]
    full.clear()
    assert train(base, 3, resume_from_checkpoint=str(spare)) == tmp_path / "run" / "checkpoint-3"
    assert steps(tmp_path / "run") == [1, 2, 3]


def test_training_goes_on_after_a_save_that_fails_everywhere(
    base: Path, tmp_path: Path, full: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    full.add("checkpoint-2")
    assert train(base, 3, save_steps=1) == tmp_path / "run" / "checkpoint-3"
    assert "step 2 could not be saved in" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.partial"))


def test_a_last_save_that_fails_everywhere_names_the_newest_checkpoint_and_keeps_it(
    base: Path, tmp_path: Path, full: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    full.add("checkpoint-3")
    with pytest.raises(RuntimeError, match="step 3, the last one, could not be saved"):
        train(base, 3, save_steps=1, save_total_limit=1)
    assert f"The newest checkpoint is {tmp_path}/run/checkpoint-2." in capsys.readouterr().err
    assert "RuntimeError" in read_mark(tmp_path / "run" / "checkpoint-2").kept_because
    full.clear()
    resume(base, 4, save_steps=1, save_total_limit=1)
    assert [p.name for p in list_checkpoints(tmp_path / "run")] == ["checkpoint-2", "checkpoint-4"]


def test_a_signal_is_no_failure_and_leaves_the_exempted_checkpoint_alone(
    base: Path, tmp_path: Path, full: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full.add("checkpoint-3")
    with pytest.raises(RuntimeError):
        train(base, 3, save_steps=1)
    full.clear()
    monkeypatch.setattr(Trainer, "_stop_signal", lambda trainer: signal.SIGTERM if trainer.step == 3 else 0)
    with pytest.raises(signals.Stopped):
        resume(base, 5, save_steps=1)
    kept = [path.name for path in list_checkpoints(tmp_path / "run") if read_mark(path).kept_because]
    assert kept == ["checkpoint-2"]


@pytest.mark.parametrize("there", [True, False])
def test_a_report_that_no_longer_fits_ends_the_run_with_what_it_has_trained(
    there: bool, base: Path, tmp_path: Path, full: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """there: whether a checkpoint still fits beside the report."""

    def append(file: Any, text: str) -> None:
        if json.loads(text).get("step") == 2:
            raise OSError(28, "No space left on device")
        file.write(text.encode())

    closed: list[HFEngine] = []
    monkeypatch.setattr(report, "append", append)
    monkeypatch.setattr(HFEngine, "close", lambda engine: closed.append(engine))
    if not there:
        full.add("run/checkpoint-2")
    with pytest.raises(RunError) as stopped:
        train(base, 3)
    folder = "run" if there else next((tmp_path / "temporary").iterdir())
    spare = tmp_path / folder / "checkpoint-2"
    assert str(stopped.value) == (
        f"stopped at step 2: the report in {tmp_path}/run cannot be written (No space left on device). Free disk "
        f"space. Continue with trainer.resume_from_checkpoint={'true' if there else spare}."
    )
    assert read_mark(spare).step == 2 and len(closed) == 1
    monkeypatch.undo()
    assert train(base, 3, resume_from_checkpoint=True if there else str(spare)) == tmp_path / "run" / "checkpoint-3"
    assert steps(tmp_path / "run") == [1, 3]


# -- reward functions from Python


def test_a_function_from_python_is_recorded_and_runs_on_relaunch(base: Path, tmp_path: Path) -> None:
    grpo.train(base, reward_functions=[shortest], trainer={"max_steps": 1})
    recorded = tmp_path / "run" / "recipe.yaml"
    assert yaml.safe_load(recorded.read_text())["rewards"][1] == {
        "function": "tests.grpo.stages.test_saving:shortest",
        "weight": 1.0,
        "options": {},
        "name": "shortest",
        "requires": None,
        "data_sources": None,
    }
    grpo.train(recorded)
    rows = [json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in ("run", "run-2")]
    assert rows[0]["rewards/shortest/mean"] == rows[1]["rewards/shortest/mean"] < 0
    with pytest.raises(RecipeError, match=r"rewards\.1\.function: was 'tests\.grpo\.stages\.test_saving:shortest'"):
        resume(base, 2)


def test_a_function_that_cannot_be_imported_is_refused_on_relaunch(base: Path, tmp_path: Path) -> None:
    def closure(prompts: list, completions: list[str], **columns: Any) -> list[float]:
        return [0.0 for _ in completions]

    grpo.train(base, reward_functions=[closure], trainer={"max_steps": 1})
    with pytest.raises(RecipeError) as refused:
        load_recipe(tmp_path / "run" / "recipe.yaml")
    assert "rewards.1.function: 'not importable: closure' was passed" in str(refused.value)
    assert "Define 'closure' at the top level of a module and name it here as path/to/file.py:function" in str(
        refused.value
    )


def test_import_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards_here.py").write_text("def mine(completions, **columns): ...\nalias = lambda **c: None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_rewards_here  # pyright: ignore[reportMissingImports]

    assert import_path(my_rewards_here.mine) == f"{tmp_path}/my_rewards_here.py:mine"
    assert import_path(my_rewards_here.alias) == "not importable: <lambda>"
    assert import_path(functools.partial(shortest, [])) == "not importable: partial"
    assert import_path("".join) == "not importable: join"
    typed: dict[str, Any] = {"__name__": "__main__"}
    exec("def typed(completions, **columns): ...", typed)  # as in an interactive session
    assert import_path(typed["typed"]) == "not importable: typed"


def test_a_reward_file_that_trains_when_imported_is_refused(base: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import grpo\ndef mine(completions, **columns): ...\ngrpo.train({str(base)!r})\n")
    recipe = yaml.safe_load(base.read_text())
    recipe["rewards"].append({"function": f"{script}:mine"})
    outer = tmp_path / "outer.yaml"
    outer.write_text(yaml.safe_dump(recipe))
    with pytest.raises(RecipeError, match=r"grpo\.train was called while a run is starting"):
        grpo.train(outer)
