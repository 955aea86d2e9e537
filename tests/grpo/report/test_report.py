"""A run's report: exact rows, resumed files, terminal lines that fit, trackers."""

import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate import Accelerator
from rich.console import Console

from grpo.__main__ import main
from grpo.recipe.config import DataConfig, GRPORecipe, PolicyConfig, ReportConfig, RewardConfig, TrainerConfig
from grpo.report.records import cut_after, deterministic, read_rows
from grpo.report.report import Report
from grpo.stages.build import build
from rewards.runner.score import ScoredGroup
from rollout.types import Completion, Group, Problem

EVALUATION = {"eval/pass@1": 0.25, "eval/pass@1_low": 0.2, "eval/pass@1_high": 0.3, "eval/mean_length": 12.34}


def recipe(**report: object) -> GRPORecipe:
    return GRPORecipe(
        model=PolicyConfig(model_name_or_path="base"),
        data=DataConfig(task="countdown"),
        rewards=[RewardConfig(function="accuracy")],
        trainer=TrainerConfig(max_steps=40),
        report=ReportConfig.model_validate(report),
    )


def report(
    folder: Path, *, resume_step: int | None = None, console: Console | None = None, **options: object
) -> Report:
    return Report(
        folder,
        recipe(**options),
        accelerator=Accelerator(cpu=True),
        resume_step=resume_step,
        console=console or Console(file=io.StringIO()),
    )


def group(problem_id: str) -> ScoredGroup:
    completions = [
        Completion(
            token_ids=[5, 9, 2], logprobs=[-0.1] * 3, text="<think>1+1", finish_reason="length", policy_version=1
        ),
        Completion(token_ids=[7], logprobs=[-0.1], text="2", finish_reason="stop", policy_version=0),
    ]
    problem = Problem(id=problem_id, prompt="1+1=?", columns={"target": 2})
    scored = Group(problem=problem, prompt_ids=[1], completions=completions)
    return ScoredGroup(group=scored, rewards=[0.0, 1.5], breakdown={"accuracy": [0.0, 1.0], "judge": [None, 0.5]})


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_step_row_has_exact_floats_and_null_for_non_finite_values(tmp_path: Path) -> None:
    run = report(tmp_path)
    run.log(1, {"reward": 0.1 + 0.2, "grad_norm": float("inf"), "moe/load": [[0.75, 0.25]], "num_tokens": 7})
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 1, "grad_norm": null, "moe/load": [[0.75, 0.25]], "num_tokens": 7, "reward": 0.30000000000000004}\n'
    )
    run.close()


def test_phase_times_go_into_the_next_row_only(tmp_path: Path) -> None:
    run = report(tmp_path)
    for _ in range(2):
        with run.phase("generate"):
            pass
    spent = run.seconds["generate"]
    run.log(1, {"reward": 0.0})
    run.log(2, {"reward": 0.0})
    first, second = rows(tmp_path / "metrics.jsonl")
    assert first["time/generate"] == spent > 0
    assert "time/generate" not in second
    run.close()


def test_evaluation_time_is_in_its_own_row(tmp_path: Path) -> None:
    run = report(tmp_path)
    with run.phase("evaluate"):
        pass
    run.log_evaluation(0, EVALUATION)
    run.log(1, {"reward": 0.0})
    first, second = rows(tmp_path / "metrics.jsonl")
    assert list(first) == ["step", *sorted(EVALUATION), "time/evaluate"]
    assert list(second) == ["step", "reward"]
    run.close()


def test_deterministic_drops_only_timings() -> None:
    timing = {"time/update": 1.25, "step_time": 5.0, "tokens_per_second": 900.0}
    assert deterministic({"step": 3, "reward": 0.5, **timing, "num_tokens": 64}) == {
        "step": 3,
        "reward": 0.5,
        "num_tokens": 64,
    }


def test_sample_row_has_text_rewards_and_advantage(tmp_path: Path) -> None:
    run = report(tmp_path)
    run.log_samples(3, [group("countdown/train/7")], [[-1.0, 1.0]])
    assert rows(tmp_path / "samples.jsonl") == [
        {
            "step": 3,
            "problem_id": "countdown/train/7",
            "prompt": "1+1=?",
            "columns": {"target": 2},
            "completions": [
                {
                    "text": "<think>1+1",
                    "num_tokens": 3,
                    "finish_reason": "length",
                    "reward": 0.0,
                    "rewards": {"accuracy": 0.0, "judge": None},
                    "advantage": -1.0,
                },
                {
                    "text": "2",
                    "num_tokens": 1,
                    "finish_reason": "stop",
                    "reward": 1.5,
                    "rewards": {"accuracy": 1.0, "judge": 0.5},
                    "advantage": 1.0,
                },
            ],
        }
    ]
    run.close()


def test_logged_groups_do_not_depend_on_completion_order(tmp_path: Path) -> None:
    groups, advantages = [group(f"p{i}") for i in range(8)], [[float(i), -float(i)] for i in range(8)]
    written = []
    for name, order in (("a", list(range(8))), ("b", [3, 7, 0, 5, 2, 6, 1, 4])):
        run = report(tmp_path / name, num_logged_groups=3)
        for step in (1, 2):
            run.log_samples(step, [groups[i] for i in order], [advantages[i] for i in order])
        run.close()
        written.append((tmp_path / name / "samples.jsonl").read_text())
    assert written[0] == written[1]
    chosen = [(row["step"], row["problem_id"]) for row in rows(tmp_path / "a" / "samples.jsonl")]
    assert [step for step, _ in chosen] == [1, 1, 1, 2, 2, 2]
    assert {name for step, name in chosen if step == 1} != {name for step, name in chosen if step == 2}


def test_resuming_drops_rows_after_the_checkpoint(tmp_path: Path) -> None:
    kept = '{"step": 0, "eval/pass@1": 0.1}\n{"step": 1, "reward": 0.30000000000000004}\n{"step": 2, "reward": 1e-07}\n'
    (tmp_path / "metrics.jsonl").write_text(kept + '{"step": 3, "reward": 0.5}\n{"step": 4, "rew')
    run = report(tmp_path / "samples")
    for step in (2, 3):
        run.log_samples(step, [group("p")], [[0.0, 0.0]])
    run.close()
    both = (tmp_path / "samples" / "samples.jsonl").read_text()
    (tmp_path / "samples.jsonl").write_text(both)
    run = report(tmp_path, resume_step=2)
    assert (tmp_path / "metrics.jsonl").read_text() == kept
    assert (tmp_path / "samples.jsonl").read_text() == both.splitlines(keepends=True)[0]
    run.log(3, {"reward": 0.25})
    assert rows(tmp_path / "metrics.jsonl")[-1] == {"step": 3, "reward": 0.25}
    run.close()
    assert not list(tmp_path.glob("*.cut"))


def test_a_damaged_line_is_named_with_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "reward": 0.5}\n\x00\x00\xff\n{"step": 3}\n{"st')
    message = f"{path}, line 2 is not JSON (.*). Restore the file, or delete the line."
    for read in (lambda: list(read_rows(path)), lambda: cut_after(path, 3), lambda: report(tmp_path, resume_step=3)):
        with pytest.raises(ValueError, match=message):
            read()
    for command in ("report", "diagnose"):
        with pytest.raises(SystemExit):
            main([command, str(tmp_path)])
        assert re.fullmatch(message + "\n", capsys.readouterr().err)
    path.write_bytes(path.read_bytes().replace(b"\x00\x00\xff\n", b""))
    assert [row["step"] for row in read_rows(path)] == [1, 3]


METRICS = {
    "reward": 0.5,
    "completions/mean_length": 1024.25,
    "completions/clipped_ratio": 0.125,
    "frac_reward_zero_std": 1.0,
    "entropy": 0.75,
    "kl": 0.001,
    "grad_norm": 123.5,
    "sampling/sampling_logp_difference/mean": 1.5e-6,
    "step_time": 100.0,
}


def test_plain_output_is_aligned_uncoloured_and_at_most_120_columns(tmp_path: Path) -> None:
    out = io.StringIO()
    run = report(tmp_path, console=Console(file=out))
    for step in range(1, 28):
        run.seconds.update({"generate": 50.0, "update": 49.0})
        run.log(step, METRICS)
    run.terminal.stop() if run.terminal else None
    lines = out.getvalue().splitlines()
    assert len(lines) == 29 and lines[0] == lines[26]  # the header repeats
    titles = " ".join(lines[0].split())
    assert titles == "step reward length clipped no signal entropy kl grad norm mismatch generate s/step left"
    figures = " ".join(lines[1].split()[:-1])  # the last column, time left, depends on the clock
    assert figures == "1/40 0.500 1024.2 12.5% 100.0% 0.750 1.00e-03 123.500 1.5e-06 50.0 100.0"
    assert {len(line) for line in lines} == {len(lines[0])} and len(lines[0]) <= 120
    assert "\x1b" not in out.getvalue()
    run.close()


def test_terminal_output_is_coloured_and_fits(tmp_path: Path) -> None:
    out = io.StringIO()
    run = report(tmp_path, console=Console(file=out, force_terminal=True, width=60, color_system="standard"))
    run.log(1, METRICS)
    run.close()
    assert "\x1b[1;32m" in out.getvalue()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    header = next(line for line in text.splitlines() if "reward" in line)
    assert len(header) <= 60 and "length" in header and "s/step" in header and "left" in header


def test_logging_steps_thins_the_terminal_but_not_the_file(tmp_path: Path) -> None:
    out = io.StringIO()
    run = report(tmp_path, console=Console(file=out), logging_steps=2)
    for step in (1, 2, 3, 4):
        run.log(step, {"reward": 0.0})
    assert [line.split()[0] for line in out.getvalue().splitlines()] == ["step", "2/40", "4/40"]
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    run.close()


def test_rows_of_several_steps_are_shown_and_timed_per_step(tmp_path: Path) -> None:
    out = io.StringIO()
    run = report(tmp_path, console=Console(file=out), logging_steps=10)
    for step in (8, 16, 24):
        run.mark = time.perf_counter() - 80
        run.log(step, {"reward": 0.0})
    shown = [line.split() for line in out.getvalue().splitlines()]
    assert [(line[0], line[-1]) for line in shown] == [("step", "left"), ("16/40", "4:00"), ("24/40", "2:40")]
    run.close()


def test_summary_compares_base_and_trained_after_a_resume(tmp_path: Path) -> None:
    run = report(tmp_path)
    run.log_evaluation(0, EVALUATION)
    run.close()
    out = io.StringIO()
    run = report(tmp_path, resume_step=1, console=Console(file=out))
    run.log_evaluation(40, {**EVALUATION, "eval/pass@1": 0.875, "eval/pass@1_low": 0.85, "eval/pass@1_high": 0.9})
    run.summary()
    table = [line.split() for line in out.getvalue().splitlines()]
    assert ["held", "out", "base", "trained"] in table
    assert ["pass@1", "0.250", "[0.200,", "0.300]", "0.875", "[0.850,", "0.900]"] in table
    assert ["mean_length", "12.3", "12.3"] in table
    run.close()


def test_tensorboard_receives_the_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = report(tmp_path, report_to=["tensorboard"], project="mine")
    run.log(1, {"reward": 0.25, "moe/load": [[0.5, 0.5]]})
    run.log(2, {"reward": 0.5})
    run.log_evaluation(2, EVALUATION)
    run.close()
    events = EventAccumulator(str(tmp_path / "mine")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward")] == [(1, 0.25), (2, 0.5)]
    assert [(event.step, event.value) for event in events.Scalars("eval/pass@1")] == [(2, 0.25)]
    assert "moe/load" not in events.Tags()["scalars"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dvclive", r"\['dvclive'\] cannot be imported.*pip install dvclive"),
        ("wandbb", r"there is no tracker 'wandbb'. Did you mean 'wandb'\? Name each of those you want: aim, .*wandb"),
        ("all", r"there is no tracker 'all'. Name each of those you want"),
    ],
)
def test_a_tracker_that_cannot_be_is_refused_before_anything_is_loaded(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(recipe(report_to=[name]))  # whose model does not exist


def test_a_missing_tracker_is_named_in_a_process_without_an_accelerator() -> None:
    code = "from grpo.report.report import check_trackers; check_trackers(['dvclive'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith(
        "ValueError: report.report_to=['dvclive']: ['dvclive'] cannot be imported."
    )


def test_trackers_skip_what_has_no_finite_value(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = report(tmp_path, report_to=["tensorboard"])
    run.log(1, {"reward": None, "loss": float("nan"), "entropy": 0.5})
    run.log(2, {"reward": 0.5, "loss": 0.25, "entropy": None})
    run.close()
    events = EventAccumulator(str(tmp_path / "grpo")).Reload()
    tags = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert tags == {"reward": [(2, 0.5)], "loss": [(2, 0.25)], "entropy": [(1, 0.5)]}


def test_null_metrics_are_a_dash_and_their_column_returns_with_the_next_header(tmp_path: Path) -> None:
    out = io.StringIO()
    run = report(tmp_path, console=Console(file=out))
    run.log(1, {"reward": None, "step_time": 1.0})
    for step in range(2, 27):
        run.log(step, {"reward": 0.5, "entropy": 0.25, "step_time": 1.0})
    run.close()
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert lines[0] == ["step", "reward", "s/step", "left"] and lines[1][:2] == ["1/40", "–"]
    assert lines[2][:2] == ["warning:", "step"]
    assert lines[27] == ["step", "reward", "entropy", "s/step", "left"]


def test_warnings_are_written_to_the_row_and_printed_once_also_after_a_resume(tmp_path: Path) -> None:
    silent = {"reward": 0.0, "reward_std": 0.0}

    def logged(run: Report, first: int, last: int) -> list[int]:
        for step in range(first, last + 1):
            run.log(step, silent)
        run.close()
        return [row["step"] for row in rows(tmp_path / "metrics.jsonl") if "warnings" in row]

    out = io.StringIO()
    assert logged(report(tmp_path, console=Console(file=out), logging_steps=100), 1, 12) == [10]
    (warning,) = rows(tmp_path / "metrics.jsonl")[9]["warnings"]
    assert warning.startswith("No group has had a reward signal for 10 rollouts: ")
    assert out.getvalue().count(f"warning: step 10: {warning}") == 1
    assert logged(report(tmp_path, resume_step=9), 10, 12) == [10]  # counts on from the rows it kept
    assert logged(report(tmp_path, resume_step=11), 12, 30) == [10]


def test_a_full_disk_at_the_end_is_a_warning_and_everything_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_page(folder: Path) -> Path:
        raise OSError(28, "No space left on device")

    out = io.StringIO()
    run = report(tmp_path, console=Console(file=out, width=400))
    run.log(1, {"reward": 0.5})
    monkeypatch.setattr("grpo.report.report.write_page", write_page)
    run.close()
    assert f"warning: the report in {tmp_path} cannot be written (No space left on device)" in out.getvalue()
    assert run.metrics_file.closed and run.samples_file.closed and len(rows(tmp_path / "metrics.jsonl")) == 1


def test_error_is_named_on_terminal_and_page_until_the_run_is_resumed(tmp_path: Path) -> None:
    out = io.StringIO()
    run = report(tmp_path, console=Console(file=out))
    run.log(3, {"reward": 0.5})
    run.close(error=ValueError("loss is nan <b>"))
    run.close(error=ValueError("another"))
    assert "stopped after step 3: ValueError: loss is nan <b>" in out.getvalue()
    assert rows(tmp_path / "error.json") == [{"step": 3, "error": "ValueError: loss is nan <b>"}]
    assert "ValueError: loss is nan &lt;b&gt;" in (tmp_path / "index.html").read_text()
    run = report(tmp_path, resume_step=3)
    assert not (tmp_path / "error.json").exists()
    run.close(error=KeyboardInterrupt())
    assert not (tmp_path / "error.json").exists()
    assert "ValueError" not in (tmp_path / "index.html").read_text()
