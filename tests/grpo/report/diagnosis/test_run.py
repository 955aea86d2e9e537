"""`grpo diagnose`: text, JSON and exit code of a run and of a pipeline; real tiny runs; one set of rules for all."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo.__main__ import main
from grpo.recipe.config import GRPORecipe
from grpo.recipe.record import write_resolved
from grpo.report.diagnosis.run import diagnose, diagnose_run
from grpo.report.diagnosis.watch import Watch
from grpo.report.records import METRICS_FILE, read_rows
from grpo.stages.grpo import train
from tests.grpo.report.diagnosis.made import HEALTHY, made, recipe

COLLAPSED = [{}] * 5 + [{"entropy": 0.05}] * 2


def exit_code(folder: Path, *options: str) -> Any:
    """Of `grpo diagnose`."""
    with pytest.raises(SystemExit) as ended:
        main(["diagnose", str(folder), *options])
    return ended.value.code


def test_a_healthy_run_says_so_with_what_it_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "mine"
    made(run, [{"reward": 0.25}, {"reward": 0.5}])
    assert exit_code(run) == 0
    out = capsys.readouterr().out
    assert (
        "mine: stage grpo, 2 steps\n    Nothing stands out. Looked at: reward 0.375, groups without signal 25.0%" in out
    )
    assert " ".join(out.split()).endswith(
        "weight change per step 0.001, mismatch 1e-06, busiest expert's overload 0.1, dead experts 0."
    )


def test_an_alarm_is_exit_code_1_with_its_figure_and_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, COLLAPSED)
    assert exit_code(tmp_path) == 1
    out = capsys.readouterr().out
    assert "  alarm  steps 6–7: Entropy has collapsed from 1 to 0.05 nats per token: completions of a problem" in out
    assert "         entropy 0.05; rule: below 10% of the mean of its first 5 values\n" in out
    assert "         try trainer.learning_rate=0.0001\n" in out


def test_json_for_scripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "mine"
    made(run, COLLAPSED)
    capsys.readouterr()
    assert exit_code(run, "--json") == 1
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert (found["name"], found["stage"], found["step"]) == ("mine", "grpo", 7)
    (finding,) = found["findings"]
    assert finding == finding | {
        "kind": "entropy_collapse",
        "level": "alarm",
        "metric": "entropy",
        "value": 0.05,
        "first_step": 6,
        "last_step": 7,
        "changes": {"trainer.learning_rate": 1e-4},
    }
    assert found["looked_at"][0] == {"label": "reward", "metric": "reward", "first": 0.5, "last": 0.5}


def test_notes_alone_are_exit_code_0(tmp_path: Path) -> None:
    made(tmp_path, [{"completions/clipped_ratio": 0.625}] * 10)
    assert exit_code(tmp_path) == 0


def test_a_pipeline_is_diagnosed_stage_by_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = {"stage": "pipeline", "stages": {"b": {}, "data": {}, "a": {}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    with pytest.raises(ValueError, match="no stage has written"):
        diagnose(tmp_path)
    made(tmp_path / "a", COLLAPSED)
    made(tmp_path / "b", [{}])
    assert [(one.name, one.has_alarms) for one in diagnose(tmp_path)] == [("b", False), ("a", True)]
    assert exit_code(tmp_path) == 1


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--jsn"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["diagnose", *arguments])
    assert ended.value.code == 2


def test_a_folder_without_a_run_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(tmp_path) == 2
    assert "contains no metrics.jsonl. Name a run's output_dir, or a pipeline's output." in capsys.readouterr().err


def test_an_error_that_stopped_the_run_is_the_first_finding(tmp_path: Path) -> None:
    made(tmp_path, COLLAPSED)
    (tmp_path / "error.json").write_text('{"step": 7, "error": "MismatchError: step 7: mean …"}\n')
    first, second = diagnose_run(tmp_path).findings
    assert (first.level, first.says) == ("alarm", "The run stopped after step 7: MismatchError: step 7: mean …")
    assert second.kind == "entropy_collapse"
    (tmp_path / "error.json").write_text('{"step": 7, "error": "Stopped: stopped at step 7 (SIGTERM)"}\n')
    assert diagnose_run(tmp_path).findings[0].level == "note"


def test_a_warning_while_training_is_the_finding_of_the_finished_run(tmp_path: Path) -> None:
    (finding,) = made(tmp_path, COLLAPSED).findings
    warned = [(row["step"], row["warnings"]) for row in read_rows(tmp_path / METRICS_FILE) if "warnings" in row]
    assert warned == [(6, [f"{finding.says} {finding.remedy}"])]  # once
    page = (tmp_path / "index.html").read_text()
    assert '<details class="alarm"><summary>Entropy has collapsed from 1 to 0.05 nats per token' in page


def test_notes_are_on_the_page_and_no_warnings(tmp_path: Path) -> None:
    made(tmp_path, [{"completions/clipped_ratio": 0.625}] * 10)
    assert not any("warnings" in row for row in read_rows(tmp_path / METRICS_FILE))
    assert (
        '<details class="note"><summary>62% of the completions are truncated' in (tmp_path / "index.html").read_text()
    )


def test_replayed_rows_restore_the_state(tmp_path: Path) -> None:
    settings, rows = recipe(tmp_path).model_dump(), [{**HEALTHY, "reward_std": 0.0}] * 9
    watch = Watch.of([{**row, "step": step} for step, row in enumerate(rows, start=1)], settings)
    assert [one.kind for one in watch.update({**rows[0], "step": 10})] == ["no_signal"]
    assert watch.update({**rows[0], "step": 11}) == []


def test_other_stages_are_judged_only_by_what_training_has_in_common() -> None:
    rows = [{"step": i, "entropy": 1.0 if i < 5 else 0.01, "learning_rate": 0.0 if i > 7 else 1e-3} for i in range(10)]
    assert [one.kind for one in Watch.of(rows, {"stage": "sft"}).findings()] == ["learning_rate_zero"]


def tiny(model: Path, output: Path, **sections: Any) -> GRPORecipe:
    """Ten steps of a random model on the hf engine."""
    values: dict[str, Any] = {
        "model": {"model_name_or_path": str(model)},
        "data": {"task": "countdown", "template": "{prompt} :", "max_prompt_length": 40},
        "rollout": {"engine": "hf", "problems_per_step": 2, "num_generations": 2, "max_completion_length": 3},
        "rewards": [{"function": "countdown"}, {"function": "format", "weight": 0.1}],
        "trainer": {"output_dir": str(output), "max_steps": 10, "learning_rate": 1e-4},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section if isinstance(section, dict) else section
    recipe = GRPORecipe.model_validate(values)
    write_resolved(recipe, output)
    return recipe


def test_a_real_run_of_a_random_model_that_never_ends_nor_solves(tiny_llama: Path, tmp_path: Path) -> None:
    train(tiny(tiny_llama, tmp_path / "run"))
    diagnosis = diagnose_run(tmp_path / "run")
    assert [(one.kind, one.subject) for one in diagnosis.findings if one.level == "alarm"][:3] == [
        ("no_signal", ""),
        ("zero_reward", "countdown"),
        ("zero_reward", "format"),
    ]
    assert diagnosis.findings[0].says.startswith(
        "No group has had a reward signal for 10 rollouts: every completion scores 0, so all are wrong "
    )


def test_a_real_run_with_a_tiny_learning_rate(tiny_llama: Path, tmp_path: Path) -> None:
    train(
        tiny(
            tiny_llama,
            tmp_path / "run",
            rewards=[{"function": "random"}],
            rollout={"num_generations": 4},
            trainer={"max_steps": 24, "learning_rate": 1e-9},
        )
    )
    kinds = {one.kind: one for one in diagnose_run(tmp_path / "run").findings}
    finding = kinds["learning_rate_too_small"]
    assert finding.value is not None and 0 < finding.value < 1e-5
    assert finding.changes == {"trainer.learning_rate": 1e-7}  # a hundred times as much


def test_a_file_stands_for_its_run_s_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, [{"reward": 0.25}])
    assert exit_code(tmp_path / METRICS_FILE) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path.name}: stage grpo, 1 steps\n")
